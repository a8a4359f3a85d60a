"""The two products of attention, Q K^T and P V, on keys and values that are packed once per head.

    bfloat16 (AMX)   keys    [keys / 16][d / 2][16][2]        pairs along d interleaved
                     values  [keys / 32][v_d / 16][16][16][2] pairs of keys interleaved
    float32          keys    [keys / 32][d][32]
                     values  [keys][v_d]

Keys are padded to a multiple of 32 by repeating the last one; the softmax masks the padding. Head sizes are
padded on packing: for AMX, d of queries and keys with zeros, as products are summed over it; v_d with
anything, as the padding of the result is not read.

The register tile of float32 products leaves room for two vectors of packed columns: 8 x 32 with AVX-512,
6 x 16 with AVX2.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit
from tersor.backends.tvm.kernels.attention_spec import Attention
from tersor.backends.tvm.kernels.blocking import padded
from tersor.backends.tvm.kernels.emit import Isa

ROWS = 16  # Queries per block.
KEYS = 32  # The number of keys is padded to a multiple of this.
LARGEST = 4095  # The magnitude of 16-bit probabilities and values: 4095 * 4095 * 128 < 2^31.


@dataclass(frozen=True)
class Rows:
    """The rows of one head in an operand: ``buffer[*lead, row, column + c]``."""

    buffer: Any
    lead: tuple[Any, ...]
    column: Any

    def load(self, row: Any, c: Any, lanes: int) -> Any:
        """Loads a vector from column ``c`` on."""
        return emit.load(self.buffer, *self.lead, row, self.column + c, lanes=lanes)

    def store(self, value: Any, row: Any, c: Any, lanes: int) -> None:
        """Stores a vector from column ``c`` on."""
        emit.store(self.buffer, value, *self.lead, row, self.column + c, lanes=lanes)


class PackedProducts:
    """The packed keys and values of a head, and the buffers of a block of queries: its scores, the
    probabilities (not yet divided), the reciprocals of their sums, and the output.

    Attributes:
        n_keys: the number of keys.
        n_padded: the same, rounded up to a multiple of ``KEYS``.
        factor: by which queries are multiplied, unless the softmax multiplies the scores.
    """

    def __init__(
        self, isa: Isa, d: int, v_d: int, keys: Rows, values: Rows, n_keys: Any, n_padded: Any,
        factor: float,
    ) -> None:  # fmt: skip
        self.isa, self.d, self.v_d, self.factor = isa, d, v_d, factor
        self.keys, self.values, self.n_keys, self.n_padded = keys, values, n_keys, n_padded
        self.scores = emit.scratch((ROWS, n_padded), "float32")
        self.inverse_sums = emit.scratch((ROWS,), "float32")


class VectorProducts(PackedProducts):
    """Products by vector instructions, with accumulators in register tiles; of floats, if not overridden.

    Attributes:
        accumulator: the dtype of accumulators.
        tile_rows: the rows of a tile.
    """

    accumulator = "float32"
    tile_rows = 6

    def _broadcast(self, a: Any, r: Any, k: Any) -> Any:
        """The operand of row ``r`` in step ``k``, in every lane."""
        return emit.splat(a[r, k], self.isa.lanes)

    def _multiply_add(self, total: Any, a: Any, w: Any) -> Any:
        return total + a * w

    def _tiles(
        self, count: Any, a: Any, steps: tuple[Any, Any], vectors: int,
        column: Callable[[Any, int], Any], put: Callable[[int, int, Any], None],
    ) -> None:  # fmt: skip
        """``put(r, v, sum over k of a[r, k] column(k, v))`` for ``count`` rows and all ``vectors``."""
        lanes = self.isa.lanes
        for first in range(0, ROWS, self.tile_rows):
            rows = range(first, min(first + self.tile_rows, ROWS))
            with T.If(T.int64(first) < count), T.Then():
                places = itertools.product(rows, range(vectors))
                sums = {place: emit.register(lanes, self.accumulator) for place in places}
                for register in sums.values():
                    emit.put(register, T.broadcast(tirx.const(0, self.accumulator), lanes))
                with T.serial(*steps) as k:
                    columns = [emit.bind(column(k, v)) for v in range(vectors)]
                    for r in rows:
                        broadcast = emit.bind(self._broadcast(a, r, k))
                        for v, w in enumerate(columns):
                            total = emit.get(sums[r, v])
                            emit.put(sums[r, v], self._multiply_add(total, broadcast, w))
                for (r, v), register in sums.items():
                    put(r, v, emit.get(register))


class Float32Products(VectorProducts):
    """Products in float32."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        lanes = self.isa.lanes
        self.width = padded(self.v_d, lanes)
        self.packed_keys = emit.scratch((self.n_padded // KEYS, self.d, KEYS), "float32")
        self.packed_values = emit.scratch((self.n_padded, self.width), "float32")
        self.probs = self.scores
        self.query_block = emit.scratch((ROWS, self.d), "float32")
        self.output = emit.scratch((ROWS, self.width), "float32")
        self.tile_rows = 8 if lanes == 16 else 6

    def pack(self) -> None:
        """Packs the keys and values of the head."""
        lanes = self.isa.lanes
        with T.serial(0, self.n_padded // KEYS) as panel:
            for c, width in emit.pieces(self.d, lanes):
                with T.serial(0, KEYS // width) as part:
                    at = emit.bind(panel * KEYS + part * width)
                    rows = [T.min(at + i, self.n_keys - 1) for i in range(width)]
                    columns = [self.keys.load(row, c, width) for row in rows]
                    transposed = emit.transposed(columns) if width > 1 else columns
                    for i, column in enumerate(transposed):
                        emit.store(
                            self.packed_keys, column, panel, c + i, part * width, lanes=width
                        )
        with T.serial(0, self.n_keys) as j:
            for c, width in emit.pieces(self.v_d, lanes):
                emit.store(self.packed_values, self.values.load(j, c, width), j, c, lanes=width)

    def load_queries(self, queries: Rows, first: Any, count: Any) -> None:
        """Loads queries from ``first`` on, times the factor of the scores."""
        with T.serial(0, count) as r:
            for c, width in emit.pieces(self.d, self.isa.lanes):
                value = queries.load(first + r, c, width) * emit.splat(
                    T.float32(self.factor), width
                )
                emit.store(self.query_block, value, r, c, lanes=width)

    def multiply_keys(self, start: Any, stop: Any, count: Any) -> None:
        """Scores of the block's queries with the keys of panels ``start`` to ``stop``."""
        lanes = self.isa.lanes
        with T.serial(start, stop) as panel:
            for c in range(0, KEYS, 2 * lanes):

                def column(k: Any, v: int, c: int = c) -> Any:
                    return emit.load(self.packed_keys, panel, k, c + v * lanes, lanes=lanes)

                def put(r: int, v: int, y: Any, c: int = c) -> None:
                    emit.store(self.scores, y, r, panel * KEYS + c + v * lanes, lanes=lanes)

                self._tiles(count, self.query_block, (0, self.d), 2, column, put)

    def multiply_values(self, start: Any, stop: Any, count: Any) -> None:
        """The output: values of these panels' keys, weighted by their probabilities."""
        lanes, vectors = self.isa.lanes, self.width // self.isa.lanes
        end = emit.bind(T.min(stop * KEYS, self.n_keys))
        for first in range(0, vectors, 2):

            def column(k: Any, v: int, first: int = first) -> Any:
                return emit.load(self.packed_values, k, (first + v) * lanes, lanes=lanes)

            def put(r: int, v: int, y: Any, first: int = first) -> None:
                emit.store(self.output, y, r, (first + v) * lanes, lanes=lanes)

            steps = (start * KEYS, end)
            self._tiles(count, self.scores, steps, min(2, vectors - first), column, put)


class AmxProducts(PackedProducts):
    """Products in bfloat16, by AMX. Queries are exact: the softmax multiplies scores by the factor."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.width, self.v_width = padded(self.d, 32), padded(self.v_d, 16)
        self.packed_keys = emit.scratch((self.n_padded // 16, self.width // 32, 16, 16), "uint32")
        self.packed_values = emit.scratch(
            (self.n_padded // 32, self.v_width // 16, 16, 16), "uint32"
        )
        self.probs = emit.scratch((ROWS, self.n_padded), "uint16")
        self.query_block = emit.scratch((ROWS, self.width), "uint16")
        self.output = emit.scratch((ROWS, self.v_width), "float32")
        if self.width != self.d:
            emit.fill_zeros(self.query_block)

    def pack(self) -> None:
        """Packs the keys and values of the head."""
        self._pack_keys()
        self._pack_values()

    def _pack_keys(self) -> None:
        """Packs blocks of 16 keys, transposed in units of pairs along d."""
        whole, rest = divmod(self.d, 32)

        def pack(block: Any, part: Any, read: Callable[[int], Any]) -> None:
            pairs = [emit.as_bits(read(i), "uint32x16") for i in range(16)]
            for pair, column in enumerate(emit.transposed(pairs)):
                emit.store(self.packed_keys, column, block, part, pair, 0, lanes=16)

        def key(block: Any, i: int) -> Any:
            return T.min(block * 16 + i, self.n_keys - 1)

        with T.serial(0, self.n_padded // 16) as block, T.serial(0, whole) as part:
            keys = [key(block, i) for i in range(16)]
            pack(block, part, lambda i: self.keys.load(keys[i], part * 32, 32))
        if rest:
            last = emit.scratch((16, 32), "uint16")
            emit.fill_zeros(last)
            with T.serial(0, self.n_padded // 16) as block:
                for i in range(16):
                    at = emit.bind(key(block, i))
                    for c, width in emit.pieces(rest, 16):
                        value = self.keys.load(at, whole * 32 + c, width)
                        emit.store(last, value, i, c, lanes=width)
                pack(block, whole, lambda i: emit.load(last, i, 0, lanes=32))

    def _pack_values(self) -> None:
        whole, rest = divmod(self.v_d, 16)
        last = emit.scratch((2, 16), "uint16") if rest else None
        with T.serial(0, self.n_padded // 2) as pair:
            rows = [emit.bind(T.min(pair * 2 + i, self.n_keys - 1)) for i in range(2)]
            for c, width in emit.pieces(rest, 16):
                for i, row in enumerate(rows):
                    value = self.values.load(row, whole * 16 + c, width)
                    emit.store(last, value, i, c, lanes=width)
            for part in range(self.v_width // 16):
                low, high = (
                    emit.cast(
                        self.values.load(row, part * 16, 16)
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

    def load_queries(self, queries: Rows, first: Any, count: Any) -> None:
        """Loads queries from ``first`` on, padded by repeating the last one."""
        with T.serial(0, ROWS) as r:
            row = emit.bind(first + T.min(r, count - 1))
            for c, width in emit.pieces(self.d, self.isa.lanes):
                emit.store(self.query_block, queries.load(row, c, width), r, c, lanes=width)

    def multiply_keys(self, start: Any, stop: Any, count: Any) -> None:
        """Scores. Tiles 0-1: accumulators of 16 queries x 32 keys; 4: queries; 6-7: keys."""
        parts = self.width // 32
        with T.serial(start, stop) as panel:
            for j in range(2):
                emit.run("llvm.x86.tilezero", T.uint8(j))
            for part in range(parts):
                queries = self.query_block.access_ptr("r", offset=part * 32)
                emit.run("llvm.x86.tileloadd64", T.uint8(4), queries, T.int64(self.width * 2))
                for j in range(2):
                    at = ((panel * 2 + j) * parts + part) * 256
                    keys = self.packed_keys.access_ptr("r", offset=at)
                    emit.run("llvm.x86.tileloadd64", T.uint8(6 + j), keys, T.int64(64))
                    emit.run("llvm.x86.tdpbf16ps", T.uint8(j), T.uint8(4), T.uint8(6 + j))
            for j in range(2):
                to = self.scores.access_ptr("w", offset=panel * KEYS + j * 16)
                emit.run("llvm.x86.tilestored64", T.uint8(j), to, self.n_padded * 4)

    def multiply_values(self, start: Any, stop: Any, count: Any) -> None:
        """The output. Tiles 0-1: accumulators of 16 queries x 32 of v_d; 4: probabilities; 6-7: values."""
        parts = self.v_width // 16
        for first in range(0, parts, 2):
            tiles = range(min(2, parts - first))
            for j in tiles:
                emit.run("llvm.x86.tilezero", T.uint8(j))
            with T.serial(start, stop) as panel:
                chances = self.probs.access_ptr("r", offset=panel * KEYS)
                emit.run("llvm.x86.tileloadd64", T.uint8(4), chances, self.n_padded * 2)
                for j in tiles:
                    at = (panel * parts + first + j) * 256
                    values = self.packed_values.access_ptr("r", offset=at)
                    emit.run("llvm.x86.tileloadd64", T.uint8(6 + j), values, T.int64(64))
                    emit.run("llvm.x86.tdpbf16ps", T.uint8(j), T.uint8(4), T.uint8(6 + j))
            for j in tiles:
                to = self.output.access_ptr("w", offset=(first + j) * 16)
                emit.run("llvm.x86.tilestored64", T.uint8(j), to, T.int64(self.v_width * 4))


class UnpackedProducts:
    """Products of one query at a time with unpacked keys and values."""

    def __init__(
        self, isa: Isa, spec: Attention, keys: Rows, values: Rows, n_padded: Any, factor: float
    ) -> None:
        self.isa, self.d, self.v_d, self.factor = isa, spec.d, spec.v_d, factor
        self.keys, self.values = keys, values
        self.scores = emit.scratch((1, n_padded), "float32")
        self.inverse_sums = emit.scratch((1,), "float32")
        self.query = emit.scratch((spec.d,), "float32")

    def load_queries(self, queries: Rows, i: Any) -> None:
        """Loads query ``i``, times the factor of the scores."""
        for c, width in emit.pieces(self.d, self.isa.lanes):
            value = queries.load(i, c, width) * emit.splat(T.float32(self.factor), width)
            emit.store(self.query, value, c, lanes=width)

    def multiply_keys(self, n_keys: Any, start: Any, stop: Any) -> None:
        """Scores with a vector of keys at a time, padded by repeating the last key; each key's products are
        summed over lanes."""
        lanes = self.isa.lanes
        whole = self.d // lanes * lanes
        with T.serial(start * (KEYS // lanes), stop * (KEYS // lanes)) as step:
            rows = [emit.bind(T.min(step * lanes + i, n_keys - 1)) for i in range(lanes)]
            sums = [emit.number(0.0, lanes)] * lanes
            for c in range(0, whole, lanes):
                query = emit.bind(emit.load(self.query, c, lanes=lanes))
                sums = [
                    emit.bind(s + query * self.keys.load(row, c, lanes))
                    for s, row in zip(sums, rows, strict=True)
                ]
            total = emit.lane_sums(sums) if whole else None
            emit.store(self.scores, total if whole else sums[0], 0, step * lanes, lanes=lanes)
            for i, row in enumerate(rows if whole < self.d else []):
                at = [0, step * lanes + i]
                rest = self.scores[tuple(at)]
                for c in range(whole, self.d):
                    rest = rest + self.query[c] * self.keys.load(row, c, 1)
                T.buffer_store(self.scores, rest, at)

    def multiply_values(self, out: Rows, i: Any, begin: Any, end: Any) -> None:
        """Writes the weighted sum of values, normalized; with several chains of accumulators, to hide
        latency."""
        pieces = emit.pieces(self.v_d, self.isa.lanes)
        inverse = emit.bind(self.inverse_sums[0])
        for first in range(0, len(pieces), 8):
            group = pieces[first : first + 8]
            chains = max(1, 8 // len(group))
            sums = [[emit.register(w, "float32") for _, w in group] for _ in range(chains)]
            for line in sums:
                for register, (_, width) in zip(line, group, strict=True):
                    emit.put(register, emit.splat(T.float32(0), width))

            def add(line: list[Any], j: Any, group: list[tuple[int, int]] = group) -> None:
                prob = emit.bind(self.scores[0, j])
                for register, (c, width) in zip(line, group, strict=True):
                    value = emit.splat(prob, width) * self.values.load(j, c, width)
                    emit.put(register, emit.get(register) + value)

            steps = emit.bind(T.floordiv(T.max(end - begin, T.int64(0)), T.int64(chains)))
            with T.serial(0, steps) as step:
                for n, line in enumerate(sums):
                    add(line, emit.bind(begin + step * chains + n))
            if chains > 1:
                with T.serial(begin + steps * chains, end) as j:
                    add(sums[0], j)
            for n, (c, width) in enumerate(group):
                total = emit.get(sums[0][n])
                for line in sums[1:]:
                    total = total + emit.get(line[n])
                out.store(total * emit.splat(inverse, width), i, c, width)
