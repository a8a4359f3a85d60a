"""Attention of one head at a time: scores, mask, softmax and value product without leaving the cache.

    out[i] = sum over j of p[i, j] v[j]  /  sum over j of p[i, j]
    p[i, j] = exp(scale q[i] k[j] + mask[j] - max of these over j)

The sum divides at the end, so rows are read twice: for their maximum, and for p. A query that no key
is left for gives zeros. Queries go in blocks of 16; keys are rearranged once a head, as both products
read them in packed columns:

    bfloat16 (AMX)   keys    [keys / 16][d / 2][16][2]      two neighbours of d together
                     values  [keys / 32][d / 16][16][16][2] two neighbouring keys together
    float32          keys    [keys / 32][d][32]
                     values  [d / 32][keys][32]

Keys are padded to a multiple of 32 by repeating the last one, with a mask that leaves them out. Heads of any
size are padded to these blocks where they are packed: queries and keys with zeros, for their products are
summed over d; values with anything, for nobody reads what comes of it.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit, products, rowwise, vector
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.products import padded

ROWS = 16  # Queries of a block.
TOGETHER = 4  # Rows of it whose softmax is taken at once.
KEYS = 32  # What keys are padded to.
LEFT_OUT = -1e30  # A score that no sum of real scores comes near to.
_SEEN = -1e29
_COARSE = (1.0, 0.69328296, 0.24221113, 0.05500874)  # 2^f to 1e-4, |f| <= 1/2


@dataclass(frozen=True)
class Attention:
    """What a kernel is specialized for.

    Attributes:
        heads, kv_heads: of queries, and of keys and values (a divisor of it).
        d, v_d: size of a head of queries and keys, and of values.
        scale: of the scores.
        dtype: that queries, keys and values are held in: ``bfloat16`` or ``float32``.
        packed: whether they are one tensor [batch, length, (heads + kv_heads) d + kv_heads v_d], in
            this order.
        mask: whether there is a boolean mask [batch, 1, 1, keys].
        causal: whether query i sees keys 0 … i only.
    """

    heads: int
    kv_heads: int
    d: int
    v_d: int
    scale: float
    dtype: str
    packed: bool
    mask: bool
    causal: bool

    @property
    def name(self) -> str:
        """Unique among kernels."""
        flags = [f for f in ("packed", "mask", "causal") if getattr(self, f)]
        sizes = f"{self.heads}_{self.kv_heads}_{self.d}_{self.v_d}_{emit.in_name(self.scale)}_{self.dtype}"
        return "_".join(["attention", sizes, *flags])


def kernel(spec: Attention, isa: Isa) -> tirx.PrimFunc:
    """The kernel of ``spec``.

    Operands: q, k [batch, length, heads * d] and v [batch, length, kv_heads * v_d] (or one packed tensor) in
    float32 or, as bits in uint16, bfloat16; the mask.
    Result: float32[batch, queries, heads * v_d].
    """
    return emit.function(spec.name, lambda: _Body(spec, isa).emit())


class _Body:
    def __init__(self, spec: Attention, isa: Isa) -> None:
        self.spec, self.isa = spec, isa
        self.batch, self.queries = emit.size("batch"), emit.size("queries")
        self.keys = self.queries if spec.packed else emit.size("keys")
        held = "uint16" if spec.dtype == "bfloat16" else "float32"
        widths = (spec.heads * spec.d, spec.kv_heads * spec.d, spec.kv_heads * spec.v_d)
        # What the last blocks of d and of values are padded to.
        self.d = padded(spec.d, 32) if self._amx else spec.d
        self.v_d = padded(spec.v_d, 16 if self._amx else 32)
        if spec.packed:
            all_of_it = emit.parameter("qkv", (self.batch, self.queries, sum(widths)), held)
            self.q = self.k = self.v = all_of_it
            self.starts = (0, widths[0], widths[0] + widths[1])
        else:
            self.q = emit.parameter("q", (self.batch, self.queries, widths[0]), held)
            self.k = emit.parameter("k", (self.batch, self.keys, widths[1]), held)
            self.v = emit.parameter("v", (self.batch, self.keys, widths[2]), held)
            self.starts = (0, 0, 0)
        if spec.mask:
            self.mask = emit.parameter("mask", (self.batch, 1, 1, self.keys), "bool")
        width = spec.heads * spec.v_d
        self.out = emit.parameter("out", (self.batch, self.queries, width), "float32")

    @property
    def _amx(self) -> bool:
        return self.spec.dtype == "bfloat16"

    def emit(self) -> None:
        spec = self.spec
        self.wide = emit.bind(T.ceildiv(self.keys, T.int64(KEYS)) * T.int64(KEYS))
        with T.parallel(0, self.batch * spec.heads) as task:
            b, head = emit.bind(T.floordiv(task, spec.heads)), emit.bind(task % spec.heads)
            kv_head = T.floordiv(head, spec.heads // spec.kv_heads)
            columns = [
                emit.bind(start + h * size)
                for start, h, size in zip(
                    self.starts,
                    (head, kv_head, kv_head),
                    (spec.d, spec.d, spec.v_d),
                    strict=True,
                )
            ]
            if self._amx:
                products.open_tiles()
            self._head(b, head, columns)
            if self._amx:
                products.close_tiles()

    def _head(self, b: Any, head: Any, columns: list[Any]) -> None:
        spec, wide = self.spec, self.wide
        self.masked = emit.scratch((wide,), "float32")
        with T.serial(0, wide) as j:
            keep: Any = j < self.keys
            if spec.mask:
                last = T.min(j, self.keys - 1)
                keep = tirx.all(keep, self.mask[b, 0, 0, last])
            T.buffer_store(self.masked, T.Select(keep, T.float32(0), T.float32(LEFT_OUT)), [j])
        if self._amx:
            self.packed_keys = emit.scratch((wide // 16, self.d // 32, 16, 16), "uint32")
            self.packed_values = emit.scratch((wide // 32, self.v_d // 16, 16, 16), "uint32")
            self._pack_keys_bfloat16(b, columns[1])
            self._pack_values_bfloat16(b, columns[2])
        else:
            self.packed_keys = emit.scratch((wide // KEYS, spec.d, KEYS), "float32")
            self.packed_values = emit.scratch((self.v_d // 32, wide, 32), "float32")
            self._pack_float(b, columns[1], columns[2])
        self.scores = emit.scratch((ROWS, wide), "float32")
        self.chances = emit.scratch((ROWS, wide), "uint16") if self._amx else self.scores
        self.block = emit.scratch((ROWS, self.d), "uint16" if self._amx else "float32")
        self.made = emit.scratch((ROWS, self.v_d), "float32")
        self.sums = emit.scratch((ROWS,), "float32")
        if self.d != spec.d:
            emit.clear(self.block)
        with T.serial(0, T.ceildiv(self.queries, T.int64(ROWS))) as block:
            self._queries(b, head, columns[0], block * ROWS)

    def _queries(self, b: Any, head: Any, column: Any, first: Any) -> None:
        spec, lanes = self.spec, self.isa.lanes
        with T.serial(0, ROWS) as r:
            row = T.min(first + r, self.queries - 1)
            for c, width in emit.pieces(spec.d, lanes):
                value = emit.load(self.q, b, row, column + c, lanes=width)
                emit.store(self.block, value, r, c, lanes=width)
        seen: Any = self.wide
        if spec.causal:
            seen = emit.bind(
                T.min(T.ceildiv(first + ROWS, T.int64(KEYS)) * T.int64(KEYS), self.wide)
            )
        if self._amx:
            self._scores_bfloat16(seen)
        else:
            with T.serial(0, seen // KEYS) as panel:
                products.float_block(
                    self.isa, self.block, 0, ROWS, self.packed_keys, panel, self.scores,
                    panel * KEYS,
                )  # fmt: skip
        with T.serial(0, ROWS // TOGETHER) as group:
            self._softmax([emit.bind(group * TOGETHER + i) for i in range(TOGETHER)], first, seen)
        if self._amx:
            self._values_bfloat16(seen)
        else:
            self._values_float(seen)
        with T.serial(0, T.min(T.int64(ROWS), self.queries - first)) as r:
            factor = emit.bind(self.sums[r])
            for c, width in emit.pieces(spec.v_d, lanes):
                y = emit.load(self.made, r, c, lanes=width) * emit.splat(factor, width)
                emit.store(self.out, y, b, first + r, head * spec.v_d + c, lanes=width)

    # -- softmax -----------------------------------------------------------------------------------

    def _softmax(self, rows: list[Any], first: Any, seen: Any) -> None:
        """Rows of the scores become chances, not yet divided; ``sums`` gets one over their sums. Scores
        are scaled to be exponents of two. Several rows at once, for each waits for its maximum and its
        sum."""
        lanes, spec = self.isa.lanes, self.spec
        unroll = KEYS // lanes
        scale = emit.number(spec.scale * math.log2(math.e), lanes)
        steps = T.ramp(T.int32(0), 1, lanes)

        def score(r: Any, c: Any, masked: Any) -> Any:
            value = emit.bind(emit.load(self.scores, r, c, lanes=lanes) * scale + masked)
            if not spec.causal:
                return value
            limit = emit.splat(emit.cast(first + r - c, "int32"), lanes)
            return emit.bind(T.Select(steps <= limit, value, emit.number(LEFT_OUT, lanes)))

        def accumulators(start: float) -> list[list[Any]]:
            made = [[emit.registers(lanes, "float32") for _ in range(unroll)] for _ in rows]
            for held in itertools.chain.from_iterable(made):
                emit.put(held, emit.number(start, lanes), lanes)
            return made

        def folded(held: list[Any], combine: Callable[[Any, Any], Any]) -> Any:
            values = [emit.get(one, lanes) for one in held]
            both = functools.reduce(combine, values)
            return emit.bind(emit.reduce_lanes(both, lanes, combine))

        highs, sums = accumulators(LEFT_OUT), accumulators(0.0)
        with T.serial(0, seen // KEYS) as step:
            for i in range(unroll):
                c = step * KEYS + i * lanes
                masked = emit.bind(emit.load(self.masked, c, lanes=lanes))
                for r, high in zip(rows, highs, strict=True):
                    value = score(r, c, masked)
                    emit.store(self.scores, value, r, c, lanes=lanes)
                    emit.put(high[i], tirx.max(emit.get(high[i], lanes), value), lanes)
        most = [folded(high, tirx.max) for high in highs]
        shifts = [emit.bind(emit.splat(one, lanes)) for one in most]
        with T.serial(0, seen // KEYS) as step:
            for i in range(unroll):
                c = step * KEYS + i * lanes
                for r, total, shift in zip(rows, sums, shifts, strict=True):
                    y = emit.bind(emit.load(self.scores, r, c, lanes=lanes) - shift)
                    y = emit.bind(self._exp2(y))
                    emit.put(total[i], emit.get(total[i], lanes) + y, lanes)
                    held = rowwise.bfloat16(y) if self._amx else y
                    emit.store(self.chances, held, r, c, lanes=lanes)
        for r, total, high in zip(rows, sums, most, strict=True):
            inverse = T.float32(1) / folded(total, operator.add)
            T.buffer_store(self.sums, T.Select(high > T.float32(_SEEN), inverse, T.float32(0)), [r])

    def _exp2(self, x: Any) -> Any:
        """2^x of what is at most zero: 2^n 2^f with n whole and |f| <= 1/2. What is rounded to bfloat16
        needs no more than a cubic."""
        lanes = self.isa.lanes
        if lanes != 16:
            x = emit.bind(tirx.max(x, emit.number(-126.0, lanes)))
        n = emit.bind(T.nearbyint(x))
        y = vector.polynomial(emit.bind(x - n), _COARSE if self._amx else vector.TWO_TO_F)
        return emit.times_power_of_two(y, n, lanes)

    # -- bfloat16 ----------------------------------------------------------------------------------

    def _pack_keys_bfloat16(self, b: Any, column: Any) -> None:
        """Transposes blocks of 16 keys, pairs of d as units."""
        whole, rest = divmod(self.spec.d, 32)

        def pack(block: Any, part: Any, read: Callable[[int], Any]) -> None:
            pairs = [emit.as_bits(read(i), "uint32x16") for i in range(16)]
            for pair, found in enumerate(emit.transposed(pairs)):
                emit.store(self.packed_keys, found, block, part, pair, 0, lanes=16)

        def key(block: Any, i: int) -> Any:
            return T.min(block * 16 + i, self.keys - 1)

        with T.serial(0, self.wide // 16) as block, T.serial(0, whole) as part:
            keys = [key(block, i) for i in range(16)]
            pack(
                block,
                part,
                lambda i: emit.load(self.k, b, keys[i], column + part * 32, lanes=32),
            )
        if rest:
            padded_keys = emit.scratch((16, 32), "uint16")
            emit.clear(padded_keys)
            with T.serial(0, self.wide // 16) as block:
                for i in range(16):
                    at = emit.bind(key(block, i))
                    for c, width in emit.pieces(rest, 16):
                        value = emit.load(self.k, b, at, column + whole * 32 + c, lanes=width)
                        emit.store(padded_keys, value, i, c, lanes=width)
                pack(block, whole, lambda i: emit.load(padded_keys, i, 0, lanes=32))

    def _pack_values_bfloat16(self, b: Any, column: Any) -> None:
        whole, rest = divmod(self.spec.v_d, 16)
        last = emit.scratch((2, 16), "uint16") if rest else None
        with T.serial(0, self.wide // 2) as pair:
            rows = [emit.bind(T.min(pair * 2 + i, self.keys - 1)) for i in range(2)]
            for c, width in emit.pieces(rest, 16):
                for i, row in enumerate(rows):
                    value = emit.load(self.v, b, row, column + whole * 16 + c, lanes=width)
                    emit.store(last, value, i, c, lanes=width)
            for part in range(self.v_d // 16):
                low, high = (
                    emit.cast(
                        emit.load(self.v, b, row, column + part * 16, lanes=16)
                        if part < whole
                        else emit.load(last, i, 0, lanes=16),
                        "uint32x16",
                    )
                    for i, row in enumerate(rows)
                )
                both = low | (high << T.broadcast(T.uint32(16), 16))
                emit.store(
                    self.packed_values, both, T.floordiv(pair, 16), part, pair % 16, 0, lanes=16
                )

    def _scores_bfloat16(self, seen: Any) -> None:
        """Tiles 0-1: 16 queries x 32 keys; 4: queries; 6-7: keys."""
        parts = self.d // 32
        with T.serial(0, seen // KEYS) as panel:
            for j in range(2):
                emit.run("llvm.x86.tilezero", T.uint8(j))
            for part in range(parts):
                queries = self.block.access_ptr("r", offset=part * 32)
                emit.run("llvm.x86.tileloadd64", T.uint8(4), queries, T.int64(self.d * 2))
                for j in range(2):
                    at = ((panel * 2 + j) * parts + part) * 256
                    keys = self.packed_keys.access_ptr("r", offset=at)
                    emit.run("llvm.x86.tileloadd64", T.uint8(6 + j), keys, T.int64(64))
                    emit.run("llvm.x86.tdpbf16ps", T.uint8(j), T.uint8(4), T.uint8(6 + j))
            for j in range(2):
                to = self.scores.access_ptr("w", offset=panel * KEYS + j * 16)
                emit.run("llvm.x86.tilestored64", T.uint8(j), to, self.wide * 4)

    def _values_bfloat16(self, seen: Any) -> None:
        """Tiles 0-1: 16 queries x 32 of v_d; 4: chances; 6-7: values."""
        parts = self.v_d // 16
        for first in range(0, parts, 2):
            tiles = range(min(2, parts - first))
            for j in tiles:
                emit.run("llvm.x86.tilezero", T.uint8(j))
            with T.serial(0, seen // KEYS) as panel:
                chances = self.chances.access_ptr("r", offset=panel * KEYS)
                emit.run("llvm.x86.tileloadd64", T.uint8(4), chances, self.wide * 2)
                for j in tiles:
                    at = (panel * parts + first + j) * 256
                    values = self.packed_values.access_ptr("r", offset=at)
                    emit.run("llvm.x86.tileloadd64", T.uint8(6 + j), values, T.int64(64))
                    emit.run("llvm.x86.tdpbf16ps", T.uint8(j), T.uint8(4), T.uint8(6 + j))
            for j in tiles:
                to = self.made.access_ptr("w", offset=(first + j) * 16)
                emit.run("llvm.x86.tilestored64", T.uint8(j), to, T.int64(self.v_d * 4))

    # -- float32 -----------------------------------------------------------------------------------

    def _pack_float(self, b: Any, k_column: Any, v_column: Any) -> None:
        lanes, spec = self.isa.lanes, self.spec
        with T.serial(0, self.wide) as j:
            row = emit.bind(T.min(j, self.keys - 1))
            with T.serial(0, spec.d) as c:
                value = self.k[b, row, k_column + c]
                T.buffer_store(self.packed_keys, value, [T.floordiv(j, KEYS), c, j % KEYS])
            for c, width in emit.pieces(spec.v_d, lanes):
                value = emit.load(self.v, b, row, v_column + c, lanes=width)
                emit.store(self.packed_values, value, c // 32, j, c % 32, lanes=width)

    def _values_float(self, seen: Any) -> None:
        """The packed values have ``wide`` rows, of which ``seen`` count."""
        view = _Seen(self.packed_values, seen)
        with T.serial(0, self.v_d // 32) as panel:
            products.float_block(
                self.isa, self.chances, 0, ROWS, view, panel, self.made, panel * 32
            )


class _Seen:
    """A packed operand of which only the first ``k`` steps are to be used."""

    def __init__(self, buffer: Any, k: Any) -> None:
        self._buffer, self.shape = buffer, (None, k)

    def __getitem__(self, index: Any) -> Any:
        return self._buffer[index]
