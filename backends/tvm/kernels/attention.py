"""Fused attention: scores, masks, softmax and the product with values, head by head in cache.

    out[i] = sum over j of p[i, j] v[j]  /  sum over j of p[i, j]
    p[i, j] = exp(s[i, j] - max over j of s[i, j])
    s[i, j] = softcap(scale q[i] k[j]) + mask[i, j],     softcap(x) = c tanh(x / c)

Results are divided by the sum at the end, so that rows of scores are read twice: for the maximum, and for p.
A query all of whose keys are masked gives zeros. Of a float mask only -inf masks a key: a row of lowest
floats gives the mean of all values, as it does where the mask is added to scores.

Query i has position i + offset, where the offset is the number of keys before the first query: those of a
past, or given by the lengths of a padded cache. It sees the keys of its window, and with ``causal`` none
after its own position; keys that no query of a block sees cost nothing.

Queries are processed in blocks of 16, for which keys and values are packed once per head
(:mod:`attention_products`, :mod:`attention_int16`). Fewer than four queries, as in a decoding step, read them
unpacked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit, products
from tersor.backends.tvm.kernels.attention_int16 import Int16Products
from tersor.backends.tvm.kernels.attention_products import (
    KEYS,
    ROWS,
    AmxProducts,
    Float32Products,
    Rows,
    UnpackedProducts,
)
from tersor.backends.tvm.kernels.attention_softmax import ROWS_AT_ONCE, KeyRange, Mask, Softmax
from tersor.backends.tvm.kernels.attention_spec import Attention
from tersor.backends.tvm.kernels.emit import Isa

FEW = 4  # The number of queries from which on keys and values are packed.
_PRODUCTS: dict[str, Callable[..., AmxProducts | Float32Products | Int16Products]] = {
    "bfloat16": AmxProducts,
    "float32": Float32Products,
    "int16": Int16Products,
}
_TASKS = 4  # Per thread at least, if there are enough queries.
_CHUNK = 64  # Queries of a task at least, as each packs keys and values again.


def kernel(spec: Attention, isa: Isa) -> tirx.PrimFunc:
    """The kernel of ``spec``.

    Operands: q, k and v (or one packed tensor) in float32 or, as uint16 bits, bfloat16; the mask;
    lengths i64[batch]; the number of keys before the first query. Result: float32, in the layout of the
    queries.
    """
    return emit.function(spec.name, lambda: _Body(spec, isa).emit())


class _Body:
    def __init__(self, spec: Attention, isa: Isa) -> None:
        self.spec, self.isa = spec, isa
        self.batch, self.queries = emit.size("batch"), emit.size("queries")
        self.keys = self.queries if spec.layout == "packed" else emit.size("keys")
        dtype = "uint16" if spec.dtype == "bfloat16" else "float32"
        widths = (spec.heads * spec.d, spec.kv_heads * spec.d, spec.kv_heads * spec.v_d)
        self.starts = (0, 0, 0)
        if spec.layout == "packed":
            qkv = emit.parameter("qkv", (self.batch, self.queries, sum(widths)), dtype)
            self.q = self.k = self.v = qkv
            self.starts = (0, widths[0], widths[0] + widths[1])
        else:
            self.q = self._operand("q", spec.layout, spec.heads, self.queries, spec.d, dtype)
            self.k = self._operand("k", spec.kv_layout, spec.kv_heads, self.keys, spec.d, dtype)
            self.v = self._operand("v", spec.kv_layout, spec.kv_heads, self.keys, spec.v_d, dtype)
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
            with products.tiles(self._amx):
                self._head(b, head, first, last)

    def _chunks(self) -> Any:
        """The number of tasks per head: several where there are few heads for the threads."""
        tasks = T.floordiv(T.int64(_TASKS * self.isa.threads), self.batch * self.spec.heads)
        return T.max(T.min(tasks, T.floordiv(self.queries, T.int64(_CHUNK))), T.int64(1))

    def _head(self, b: Any, head: Any, first: Any, last: Any) -> None:
        spec = self.spec
        kv_head = emit.bind(T.floordiv(head, spec.heads // spec.kv_heads))
        self.q_rows = self._rows_of(self.q, spec.layout, b, head, spec.d, self.starts[0])
        self.k_rows = self._rows_of(self.k, spec.kv_layout, b, kv_head, spec.d, self.starts[1])
        self.v_rows = self._rows_of(self.v, spec.kv_layout, b, kv_head, spec.v_d, self.starts[2])
        self.out_rows = self._rows_of(self.out, spec.layout, b, head, spec.v_d, 0)
        n_keys, offset = self.keys, T.int64(0)
        if self.mask is not None:
            n_keys = T.min(n_keys, self.mask.keys)
        if spec.past:
            offset = self.past
        if spec.lengths:
            n_keys = T.max(T.min(n_keys, self.lengths[b]), T.int64(0))
            offset = emit.bind(self.lengths[b] - self.queries)
        self.n_keys = emit.bind(n_keys)
        self.n_padded = emit.bind(T.ceildiv(self.n_keys, T.int64(KEYS)) * T.int64(KEYS))
        self.range = KeyRange(self.n_keys, offset, spec.causal, *spec.window)
        mask = (
            None if self.mask is None else self.mask.for_head(b, head, self.n_keys, self.n_padded)
        )
        self.softmax = Softmax(self.isa, spec, self.range, mask)
        if self._amx:
            self._blocks(first, last)
            return
        with T.If(self.queries < FEW):
            with T.Then():
                self._few(first, last)
            with T.Else():
                self._blocks(first, last)

    def _rows_of(self, buffer: Any, layout: str, b: Any, head: Any, size: int, start: int) -> Rows:
        if layout == "heads":
            return Rows(buffer, (b, head), 0)
        return Rows(buffer, (b,), emit.bind(start + head * size))

    def _few(self, first: Any, last: Any) -> None:
        """Query by query, on unpacked keys and values."""
        matmuls = UnpackedProducts(
            self.isa, self.spec, self.k_rows, self.v_rows, self.n_padded, self.softmax.factor
        )
        with T.serial(first, last) as i:
            start, stop = (emit.bind(bound) for bound in self.range.panels(i, 1))
            matmuls.load_queries(self.q_rows, i)
            matmuls.multiply_keys(self.n_keys, start, stop)
            self.softmax.rows(
                matmuls.scores, matmuls.scores, matmuls.inverse_sums, [T.int64(0)], i, start, stop
            )
            matmuls.multiply_values(self.out_rows, i, start * KEYS, T.min(stop * KEYS, self.n_keys))

    def _blocks(self, first: Any, last: Any) -> None:
        spec, make = self.spec, _PRODUCTS[self.spec.dtype]
        matmuls = make(
            self.isa, spec.d, spec.v_d, self.k_rows, self.v_rows, self.n_keys, self.n_padded,
            self.softmax.factor,
        )  # fmt: skip
        matmuls.pack()
        with T.serial(0, T.ceildiv(last - first, T.int64(ROWS))) as block:
            at = emit.bind(first + block * ROWS)
            count = emit.bind(T.min(last - at, T.int64(ROWS)))
            start, stop = (emit.bind(bound) for bound in self.range.panels(at, ROWS))
            matmuls.load_queries(self.q_rows, at, count)
            matmuls.multiply_keys(start, stop, count)
            with T.serial(0, T.ceildiv(count, T.int64(ROWS_AT_ONCE))) as group:
                rows = [emit.bind(group * ROWS_AT_ONCE + i) for i in range(ROWS_AT_ONCE)]
                self.softmax.rows(
                    matmuls.scores, matmuls.probs, matmuls.inverse_sums, rows, at, start, stop
                )
            matmuls.multiply_values(start, stop, count)
            with T.serial(0, count) as r:
                factor = emit.bind(matmuls.inverse_sums[r])
                for c, width in emit.pieces(spec.v_d, self.isa.lanes):
                    y = emit.load(matmuls.output, r, c, lanes=width) * emit.splat(factor, width)
                    self.out_rows.store(y, at + r, c, width)
