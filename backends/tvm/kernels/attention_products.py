"""The two products of attention, on keys and values packed for them once a head.

    bfloat16 (AMX)   keys    [keys / 16][d / 2][16][2]      two neighbours of d together
                     values  [keys / 32][v_d / 16][16][16][2] two neighbouring keys together
    float32          keys    [keys / 32][d][32]
                     values  [keys][v_d]

Keys are padded to a multiple of 32 by repeating the last one; the softmax leaves them out. Heads of any size
are padded where they are packed: for AMX queries and keys with zeros, as their products are summed over d;
values with anything, for nobody reads what comes of it.

float32 products keep as many accumulators as registers hold beside two vectors of packed columns: 8 x 32 with
AVX-512, 6 x 16 with AVX2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit
from tersor.backends.tvm.kernels.attention_form import Attention
from tersor.backends.tvm.kernels.blocking import padded
from tersor.backends.tvm.kernels.emit import Isa

ROWS = 16  # Queries of a block.
KEYS = 32  # What keys are padded to.
LARGEST = 4095  # What chances and values in 16 bits are within: 4095 * 4095 * 128 < 2^31.


@dataclass(frozen=True)
class Rows:
    """Rows of one head in an operand: ``buffer[*lead, row, column + c]``."""

    buffer: Any
    lead: tuple[Any, ...]
    column: Any

    def load(self, row: Any, c: Any, lanes: int) -> Any:
        """A vector from column ``c`` on."""
        return emit.load(self.buffer, *self.lead, row, self.column + c, lanes=lanes)

    def store(self, value: Any, row: Any, c: Any, lanes: int) -> None:
        """Writes one."""
        emit.store(self.buffer, value, *self.lead, row, self.column + c, lanes=lanes)


class Packed:
    """Keys and values of a head, and what a block of queries needs: its scores, their chances, one over
    the sums of these, and what is made of them."""

    def __init__(
        self, isa: Isa, d: int, v_d: int, keys: Rows, values: Rows, there: Any, wide: Any,
        factor: float,
    ) -> None:  # fmt: skip
        self.isa, self.d, self.v_d, self.factor = isa, d, v_d, factor
        self.keys, self.values_of, self.there, self.wide = keys, values, there, wide
        self.scored = emit.scratch((ROWS, wide), "float32")
        self.inverse = emit.scratch((ROWS,), "float32")


class Vectors(Packed):
    """In float32."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        lanes = self.isa.lanes
        self.width = padded(self.v_d, lanes)
        self.packed_keys = emit.scratch((self.wide // KEYS, self.d, KEYS), "float32")
        self.packed_values = emit.scratch((self.wide, self.width), "float32")
        self.chances = self.scored
        self.block = emit.scratch((ROWS, self.d), "float32")
        self.made = emit.scratch((ROWS, self.width), "float32")
        self.step = 8 if lanes == 16 else 6

    def pack(self) -> None:
        """Keys and values of the head."""
        lanes = self.isa.lanes
        with T.serial(0, self.wide // KEYS) as panel:
            for c, width in emit.pieces(self.d, lanes):
                with T.serial(0, KEYS // width) as part:
                    at = emit.bind(panel * KEYS + part * width)
                    rows = [T.min(at + i, self.there - 1) for i in range(width)]
                    columns = [self.keys.load(row, c, width) for row in rows]
                    turned = emit.transposed(columns) if width > 1 else columns
                    for i, column in enumerate(turned):
                        emit.store(
                            self.packed_keys, column, panel, c + i, part * width, lanes=width
                        )
        with T.serial(0, self.there) as j:
            for c, width in emit.pieces(self.v_d, lanes):
                emit.store(self.packed_values, self.values_of.load(j, c, width), j, c, lanes=width)

    def take(self, queries: Rows, first: Any, count: Any) -> None:
        """Queries from ``first`` on, times the factor of their scores."""
        with T.serial(0, count) as r:
            for c, width in emit.pieces(self.d, self.isa.lanes):
                value = queries.load(first + r, c, width) * emit.splat(
                    T.float32(self.factor), width
                )
                emit.store(self.block, value, r, c, lanes=width)

    def scores(self, start: Any, stop: Any, count: Any) -> None:
        """Of the block's queries with keys of the panels from ``start`` to ``stop``."""
        lanes = self.isa.lanes
        with T.serial(start, stop) as panel:
            for c in range(0, KEYS, 2 * lanes):

                def column(k: Any, v: int, c: int = c) -> Any:
                    return emit.load(self.packed_keys, panel, k, c + v * lanes, lanes=lanes)

                self._tiles(count, self.block, 0, self.d, column, 2, self.scored, panel * KEYS + c)

    def values(self, start: Any, stop: Any, count: Any) -> None:
        """Weighted by the chances of keys of these panels."""
        lanes, vectors = self.isa.lanes, self.width // self.isa.lanes
        end = emit.bind(T.min(stop * KEYS, self.there))
        for first in range(0, vectors, 2):

            def column(k: Any, v: int, first: int = first) -> Any:
                return emit.load(self.packed_values, k, (first + v) * lanes, lanes=lanes)

            together = min(2, vectors - first)
            begin = start * KEYS
            self._tiles(count, self.scored, begin, end, column, together, self.made, first * lanes)

    def _tiles(
        self, count: Any, a: Any, begin: Any, end: Any, column: Callable[[Any, int], Any],
        vectors: int, out: Any, to: Any,
    ) -> None:  # fmt: skip
        """out[r, to …] = sum over k of a[r, k] column(k), for all rows, as many at a time as there are
        registers for."""
        for row in range(0, ROWS, self.step):
            rows = min(self.step, ROWS - row)
            with T.If(T.int64(row) < count), T.Then():
                self._tile(row, rows, a, begin, end, column, vectors, out, to)

    def _tile(
        self, row: int, rows: int, a: Any, begin: Any, end: Any, column: Callable[[Any, int], Any],
        vectors: int, out: Any, to: Any,
    ) -> None:  # fmt: skip
        lanes = self.isa.lanes
        sums = [[emit.registers(lanes, "float32") for _ in range(vectors)] for _ in range(rows)]
        for held in (h for line in sums for h in line):
            emit.put(held, emit.number(0.0, lanes), lanes)
        with T.serial(begin, end) as k:
            columns = [emit.bind(column(k, v)) for v in range(vectors)]
            for r, line in enumerate(sums):
                spread = emit.bind(emit.splat(a[row + r, k], lanes))
                for held, w in zip(line, columns, strict=True):
                    emit.put(held, emit.get(held, lanes) + spread * w, lanes)
        for r, line in enumerate(sums):
            for v, held in enumerate(line):
                emit.store(out, emit.get(held, lanes), row + r, to + v * lanes, lanes=lanes)


class Tiles(Packed):
    """In bfloat16, by AMX. Queries keep their eight bits: the softmax multiplies scores by the factor."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.width, self.v_width = padded(self.d, 32), padded(self.v_d, 16)
        self.packed_keys = emit.scratch((self.wide // 16, self.width // 32, 16, 16), "uint32")
        self.packed_values = emit.scratch((self.wide // 32, self.v_width // 16, 16, 16), "uint32")
        self.chances = emit.scratch((ROWS, self.wide), "uint16")
        self.block = emit.scratch((ROWS, self.width), "uint16")
        self.made = emit.scratch((ROWS, self.v_width), "float32")
        if self.width != self.d:
            emit.clear(self.block)

    def pack(self) -> None:
        """Keys and values of the head."""
        self._pack_keys()
        self._pack_values()

    def _pack_keys(self) -> None:
        """Transposes blocks of 16 keys, pairs of d as units."""
        whole, rest = divmod(self.d, 32)

        def pack(block: Any, part: Any, read: Callable[[int], Any]) -> None:
            pairs = [emit.as_bits(read(i), "uint32x16") for i in range(16)]
            for pair, found in enumerate(emit.transposed(pairs)):
                emit.store(self.packed_keys, found, block, part, pair, 0, lanes=16)

        def key(block: Any, i: int) -> Any:
            return T.min(block * 16 + i, self.there - 1)

        with T.serial(0, self.wide // 16) as block, T.serial(0, whole) as part:
            keys = [key(block, i) for i in range(16)]
            pack(block, part, lambda i: self.keys.load(keys[i], part * 32, 32))
        if rest:
            last = emit.scratch((16, 32), "uint16")
            emit.clear(last)
            with T.serial(0, self.wide // 16) as block:
                for i in range(16):
                    at = emit.bind(key(block, i))
                    for c, width in emit.pieces(rest, 16):
                        value = self.keys.load(at, whole * 32 + c, width)
                        emit.store(last, value, i, c, lanes=width)
                pack(block, whole, lambda i: emit.load(last, i, 0, lanes=32))

    def _pack_values(self) -> None:
        whole, rest = divmod(self.v_d, 16)
        last = emit.scratch((2, 16), "uint16") if rest else None
        with T.serial(0, self.wide // 2) as pair:
            rows = [emit.bind(T.min(pair * 2 + i, self.there - 1)) for i in range(2)]
            for c, width in emit.pieces(rest, 16):
                for i, row in enumerate(rows):
                    value = self.values_of.load(row, whole * 16 + c, width)
                    emit.store(last, value, i, c, lanes=width)
            for part in range(self.v_width // 16):
                low, high = (
                    emit.cast(
                        self.values_of.load(row, part * 16, 16)
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

    def take(self, queries: Rows, first: Any, count: Any) -> None:
        """Queries from ``first`` on; the last one again where they end."""
        with T.serial(0, ROWS) as r:
            row = emit.bind(first + T.min(r, count - 1))
            for c, width in emit.pieces(self.d, self.isa.lanes):
                emit.store(self.block, queries.load(row, c, width), r, c, lanes=width)

    def scores(self, start: Any, stop: Any, count: Any) -> None:
        """Tiles 0-1: 16 queries x 32 keys; 4: queries; 6-7: keys."""
        parts = self.width // 32
        with T.serial(start, stop) as panel:
            for j in range(2):
                emit.run("llvm.x86.tilezero", T.uint8(j))
            for part in range(parts):
                queries = self.block.access_ptr("r", offset=part * 32)
                emit.run("llvm.x86.tileloadd64", T.uint8(4), queries, T.int64(self.width * 2))
                for j in range(2):
                    at = ((panel * 2 + j) * parts + part) * 256
                    keys = self.packed_keys.access_ptr("r", offset=at)
                    emit.run("llvm.x86.tileloadd64", T.uint8(6 + j), keys, T.int64(64))
                    emit.run("llvm.x86.tdpbf16ps", T.uint8(j), T.uint8(4), T.uint8(6 + j))
            for j in range(2):
                to = self.scored.access_ptr("w", offset=panel * KEYS + j * 16)
                emit.run("llvm.x86.tilestored64", T.uint8(j), to, self.wide * 4)

    def values(self, start: Any, stop: Any, count: Any) -> None:
        """Tiles 0-1: 16 queries x 32 of v_d; 4: chances; 6-7: values."""
        parts = self.v_width // 16
        for first in range(0, parts, 2):
            tiles = range(min(2, parts - first))
            for j in tiles:
                emit.run("llvm.x86.tilezero", T.uint8(j))
            with T.serial(start, stop) as panel:
                chances = self.chances.access_ptr("r", offset=panel * KEYS)
                emit.run("llvm.x86.tileloadd64", T.uint8(4), chances, self.wide * 2)
                for j in tiles:
                    at = (panel * parts + first + j) * 256
                    values = self.packed_values.access_ptr("r", offset=at)
                    emit.run("llvm.x86.tileloadd64", T.uint8(6 + j), values, T.int64(64))
                    emit.run("llvm.x86.tdpbf16ps", T.uint8(j), T.uint8(4), T.uint8(6 + j))
            for j in tiles:
                to = self.made.access_ptr("w", offset=(first + j) * 16)
                emit.run("llvm.x86.tilestored64", T.uint8(j), to, T.int64(self.v_width * 4))


class Direct:
    """One query at a time, keys and values where they lie."""

    def __init__(
        self, isa: Isa, spec: Attention, keys: Rows, values: Rows, wide: Any, factor: float
    ) -> None:
        self.isa, self.d, self.v_d, self.factor = isa, spec.d, spec.v_d, factor
        self.keys, self.values_of = keys, values
        self.scored = emit.scratch((1, wide), "float32")
        self.inverse = emit.scratch((1,), "float32")
        self.query = emit.scratch((spec.d,), "float32")

    def take(self, queries: Rows, i: Any) -> None:
        """Query ``i``, times the factor of its scores."""
        for c, width in emit.pieces(self.d, self.isa.lanes):
            value = queries.load(i, c, width) * emit.splat(T.float32(self.factor), width)
            emit.store(self.query, value, c, lanes=width)

    def scores(self, there: Any, start: Any, stop: Any) -> None:
        """With a vector of keys at a time, each summed over its own lanes; the last key again where they
        end."""
        lanes = self.isa.lanes
        whole = self.d // lanes * lanes
        with T.serial(start * (KEYS // lanes), stop * (KEYS // lanes)) as step:
            rows = [emit.bind(T.min(step * lanes + i, there - 1)) for i in range(lanes)]
            sums = [emit.number(0.0, lanes)] * lanes
            for c in range(0, whole, lanes):
                query = emit.bind(emit.load(self.query, c, lanes=lanes))
                sums = [
                    emit.bind(s + query * self.keys.load(row, c, lanes))
                    for s, row in zip(sums, rows, strict=True)
                ]
            total = emit.lane_sums(sums) if whole else None
            emit.store(self.scored, total if whole else sums[0], 0, step * lanes, lanes=lanes)
            for i, row in enumerate(rows if whole < self.d else []):
                at = [0, step * lanes + i]
                rest = self.scored[tuple(at)]
                for c in range(whole, self.d):
                    rest = rest + self.query[c] * self.keys.load(row, c, 1)
                T.buffer_store(self.scored, rest, at)

    def values(self, out: Rows, i: Any, begin: Any, end: Any) -> None:
        """Weighted, added up and divided; several keys at once, so that sums do not wait."""
        pieces = emit.pieces(self.v_d, self.isa.lanes)
        inverse = emit.bind(self.inverse[0])
        for first in range(0, len(pieces), 8):
            some = pieces[first : first + 8]
            together = max(1, 8 // len(some))
            sums = [[emit.registers(w, "float32") for _, w in some] for _ in range(together)]
            for line in sums:
                for held, (_, width) in zip(line, some, strict=True):
                    emit.put(held, emit.splat(T.float32(0), width), width)

            def add(line: list[Any], j: Any, some: list[tuple[int, int]] = some) -> None:
                chance = emit.bind(self.scored[0, j])
                for held, (c, width) in zip(line, some, strict=True):
                    value = emit.splat(chance, width) * self.values_of.load(j, c, width)
                    emit.put(held, emit.get(held, width) + value, width)

            steps = emit.bind(T.floordiv(T.max(end - begin, T.int64(0)), T.int64(together)))
            with T.serial(0, steps) as step:
                for n, line in enumerate(sums):
                    add(line, emit.bind(begin + step * together + n))
            if together > 1:
                with T.serial(begin + steps * together, end) as j:
                    add(sums[0], j)
            for n, (c, width) in enumerate(some):
                total = emit.get(sums[0][n], width)
                for line in sums[1:]:
                    total = total + emit.get(line[n], width)
                out.store(total * emit.splat(inverse, width), i, c, width)
