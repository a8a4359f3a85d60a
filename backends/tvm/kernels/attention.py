"""Attention of one head at a time: scores, masks, softmax and value product without leaving the cache.

    out[i] = sum over j of p[i, j] v[j]  /  sum over j of p[i, j]
    p[i, j] = exp(s[i, j] - max of these over j)
    s[i, j] = softcap(scale q[i] k[j]) + mask[i, j],     softcap(x) = c tanh(x / c)

The sum divides at the end, so rows are read twice: for their maximum, and for p. A query that no key is
left for gives zeros; to float masks -inf alone leaves a key out, and rows of lowest floats give the mean of
all values, as they do where such masks are added.

Query i stands at position i + offset, where the offset is the number of keys before the first query: those
of a past, or what the lengths of a padded cache say. It sees keys of its window alone, and with ``causal``
none behind its own position; keys that no query of a block sees cost nothing.

Queries go in blocks of 16, for which keys and values are packed once a head (:mod:`attention_products`). Up
to three queries, a step of a decoder, read them where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit, products
from tersor.backends.tvm.kernels.attention_form import Attention
from tersor.backends.tvm.kernels.attention_products import KEYS, ROWS, Direct, Rows, Tiles, Vectors
from tersor.backends.tvm.kernels.attention_shorts import Shorts
from tersor.backends.tvm.kernels.attention_softmax import TOGETHER, Mask, Softmax, Span
from tersor.backends.tvm.kernels.emit import Isa

FEW = 4  # Queries from which on keys and values are packed.
_PRODUCTS: dict[str, Callable[..., Tiles | Vectors | Shorts]] = {
    "bfloat16": Tiles,
    "float32": Vectors,
    "int16": Shorts,
}
_TASKS = 4  # For each thread at least, if there are queries enough.
_CHUNK = 64  # Queries that are worth packing keys and values for once more.


def kernel(spec: Attention, isa: Isa) -> tirx.PrimFunc:
    """The kernel of ``spec``.

    Operands: q, k and v (or one packed tensor) in float32 or, as bits in uint16, bfloat16; the mask;
    lengths i64[batch]; the number of keys before the first query. Result: float32, laid out as the queries
    are.
    """
    return emit.function(spec.name, lambda: _Body(spec, isa).emit())


class _Body:
    def __init__(self, spec: Attention, isa: Isa) -> None:
        self.spec, self.isa = spec, isa
        self.batch, self.queries = emit.size("batch"), emit.size("queries")
        self.keys = self.queries if spec.layout == "packed" else emit.size("keys")
        held = "uint16" if spec.dtype == "bfloat16" else "float32"
        widths = (spec.heads * spec.d, spec.kv_heads * spec.d, spec.kv_heads * spec.v_d)
        self.starts = (0, 0, 0)
        if spec.layout == "packed":
            all_of_it = emit.parameter("qkv", (self.batch, self.queries, sum(widths)), held)
            self.q = self.k = self.v = all_of_it
            self.starts = (0, widths[0], widths[0] + widths[1])
        else:
            self.q = self._operand("q", spec.layout, spec.heads, self.queries, spec.d, held)
            self.k = self._operand("k", spec.kv_layout, spec.kv_heads, self.keys, spec.d, held)
            self.v = self._operand("v", spec.kv_layout, spec.kv_heads, self.keys, spec.v_d, held)
        self.mask = Mask.parameter(spec.mask, spec.axes) if spec.mask else None
        if spec.lengths:
            self.lengths = emit.parameter("lengths", (self.batch,), "int64")
        if spec.past:
            self.past = T.arg("past", emit.size("past"))
        self.out = self._operand("out", spec.layout, spec.heads, self.queries, spec.v_d, "float32")

    def _operand(self, name: str, layout: str, heads: int, length: Any, d: int, dtype: str) -> Any:
        shape: tuple[Any, ...] = (self.batch, length, heads * d)
        if layout == "heads":
            shape = (self.batch, heads, length, d)
        return emit.parameter(name, shape, dtype)

    @property
    def _amx(self) -> bool:
        return self.spec.dtype == "bfloat16"

    def emit(self) -> None:
        heads = self.spec.heads
        chunks = emit.bind(self._chunks())
        with T.parallel(0, self.batch * heads * chunks) as task:
            chunk, pair = emit.bind(task % chunks), emit.bind(T.floordiv(task, chunks))
            b, head = emit.bind(T.floordiv(pair, heads)), emit.bind(pair % heads)
            each = emit.bind(T.ceildiv(T.ceildiv(self.queries, T.int64(ROWS)), chunks) * ROWS)
            first = emit.bind(chunk * each)
            last = emit.bind(T.min(first + each, self.queries))
            with self._tiles():
                self._head(b, head, first, last)

    def _chunks(self) -> Any:
        """Of the queries of a head, where there are few heads for the threads."""
        wanted = T.floordiv(T.int64(_TASKS * self.isa.threads), self.batch * self.spec.heads)
        return T.max(T.min(wanted, T.floordiv(self.queries, T.int64(_CHUNK))), T.int64(1))

    @contextmanager
    def _tiles(self) -> Iterator[None]:
        if self._amx:
            products.open_tiles()
        yield
        if self._amx:
            products.close_tiles()

    def _head(self, b: Any, head: Any, first: Any, last: Any) -> None:
        spec = self.spec
        kv_head = emit.bind(T.floordiv(head, spec.heads // spec.kv_heads))
        self.q_rows = self._rows(self.q, spec.layout, b, head, spec.d, self.starts[0])
        self.k_rows = self._rows(self.k, spec.kv_layout, b, kv_head, spec.d, self.starts[1])
        self.v_rows = self._rows(self.v, spec.kv_layout, b, kv_head, spec.v_d, self.starts[2])
        self.out_rows = self._rows(self.out, spec.layout, b, head, spec.v_d, 0)
        there, offset = self.keys, T.int64(0)
        if self.mask is not None:
            there = T.min(there, self.mask.keys)
        if spec.past:
            offset = self.past
        if spec.lengths:
            there = T.max(T.min(there, self.lengths[b]), T.int64(0))
            offset = emit.bind(self.lengths[b] - self.queries)
        self.there = emit.bind(there)
        self.wide = emit.bind(T.ceildiv(self.there, T.int64(KEYS)) * T.int64(KEYS))
        self.span = Span(self.there, offset, spec.causal, *spec.window)
        mask = None if self.mask is None else self.mask.of(b, head, self.there, self.wide)
        self.softmax = Softmax(self.isa, spec, self.span, mask)
        if self._amx:
            self._blocks(first, last)
            return
        with T.If(self.queries < FEW):
            with T.Then():
                self._few(first, last)
            with T.Else():
                self._blocks(first, last)

    def _rows(self, buffer: Any, layout: str, b: Any, head: Any, size: int, start: int) -> Rows:
        if layout == "heads":
            return Rows(buffer, (b, head), 0)
        return Rows(buffer, (b,), emit.bind(start + head * size))

    def _few(self, first: Any, last: Any) -> None:
        """Query by query, nothing packed."""
        work = Direct(self.isa, self.spec, self.k_rows, self.v_rows, self.wide, self.softmax.factor)
        with T.serial(first, last) as i:
            start, stop = (emit.bind(bound) for bound in self.span.panels(i, 1))
            work.take(self.q_rows, i)
            work.scores(self.there, start, stop)
            self.softmax.rows(work.scored, work.scored, work.inverse, [T.int64(0)], i, start, stop)
            work.values(self.out_rows, i, start * KEYS, T.min(stop * KEYS, self.there))

    def _blocks(self, first: Any, last: Any) -> None:
        spec, make = self.spec, _PRODUCTS[self.spec.dtype]
        work = make(
            self.isa, spec.d, spec.v_d, self.k_rows, self.v_rows, self.there, self.wide,
            self.softmax.factor,
        )  # fmt: skip
        work.pack()
        with T.serial(0, T.ceildiv(last - first, T.int64(ROWS))) as block:
            at = emit.bind(first + block * ROWS)
            count = emit.bind(T.min(last - at, T.int64(ROWS)))
            start, stop = (emit.bind(bound) for bound in self.span.panels(at, ROWS))
            work.take(self.q_rows, at, count)
            work.scores(start, stop, count)
            with T.serial(0, T.ceildiv(count, T.int64(TOGETHER))) as group:
                rows = [emit.bind(group * TOGETHER + i) for i in range(TOGETHER)]
                self.softmax.rows(work.scored, work.chances, work.inverse, rows, at, start, stop)
            work.values(start, stop, count)
            with T.serial(0, count) as r:
                factor = emit.bind(work.inverse[r])
                for c, width in emit.pieces(spec.v_d, self.isa.lanes):
                    y = emit.load(work.made, r, c, lanes=width) * emit.splat(factor, width)
                    self.out_rows.store(y, at + r, c, width)
