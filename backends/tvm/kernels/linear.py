"""A linear layer with its prologue and epilogue, over blocks of rows, in one kernel.

    x   float rows, quantized here row by row if the format multiplies bytes; or rows that another kernel
        quantized
    y = act(x W + b)
    y = norm(y + residual)          where the layer ends a residual branch
    y   is written in float32 or bfloat16, or quantized row by row for the layer that reads it, or both;
        before quantization, times a factor per column if the reader was smoothed by it

The weight's format (:mod:`tersor.backends.tvm.formats`) determines how W is stored and multiplied, and
whether by float or by quantized rows.

With many rows, a task has up to 64 rows and all columns, so that norms and scales of rows need no other task,
and its results stay in the core's cache until a row is complete.  With few rows (a short sentence, a decoded
token) the time goes to reading the weights: then a task has all rows and some columns, and rows are finished
once all tasks are done.  AMX multiplies 16 or 32 rows at a time: the last task, or block, starts early enough
to have only existing rows, some of which are computed twice, to the same values.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.formats import FORMATS, QUANTIZED, Block
from tersor.backends.tvm.kernels import emit, products, rowwise, vector
from tersor.backends.tvm.kernels.blocking import PANEL, padded, panel_start
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.linear_spec import (
    ACTIVATIONS,
    BETA,
    BIAS,
    COLUMN_VECTORS,
    GAMMA,
    MIN_ROWS,
    SMOOTH,
    VECTOR,
    Grain,
    Linear,
)
from tersor.backends.tvm.kernels.products import K_STEP


def kernel(spec: Linear, isa: Isa, grain: Grain | None = None) -> tirx.PrimFunc:
    """The kernel of ``spec``.

    Operands: x (float32[m, k]; or uint8[m', k'] with float32[m, 2] scales and zero points, where
    k' is k rounded up to 64 and m' at least 16), those of the weight's format,
    :func:`tersor.backends.tvm.kernels.linear_spec.column_vectors`, and with a norm the residual
    (float32[m, n]).
    Results: y [m, n] with ``result``; uint8[m', n'] and float32[m, 2] with ``quantize``.
    """
    return emit.function(spec.name, lambda: _Body(spec, isa, grain or Grain()).emit())


class _Body:
    """Emits the kernel: its operands, then its tasks."""

    def __init__(self, spec: Linear, isa: Isa, grain: Grain) -> None:
        self.spec, self.isa, self.grain = spec, isa, grain
        self.format = FORMATS[spec.format]
        # The quantized rows that products read, and the rows before the epilogue: set by how tasks divide.
        self.read_q: Any = None
        self.read_ranges: Any = None
        self.staged: Any = None
        lead = [emit.size(f"d{i}") for i in range(spec.lead)]
        tall, tall_out = emit.size("tall"), emit.size("tall_out")
        self.m = functools.reduce(operator.mul, lead)
        k, n = spec.k, spec.n
        self.width = padded(n, PANEL)
        self.rows: dict[str, Any] = {}
        if spec.quantized:
            self.q = emit.parameter("q", (tall, padded(k, K_STEP)), "uint8")
            self.rows["ranges"] = emit.parameter("ranges", (*lead, 2), "float32")
        else:
            self.rows["x"] = emit.parameter("x", (*lead, k), "float32")
        self.weights = [
            emit.parameter(operand.name, operand.shape, operand.dtype)
            for operand in self.format.operands(k, n, isa)
        ]
        self.columns = emit.parameter("columns", (COLUMN_VECTORS, self.width), "float32")
        if spec.norm != "none":
            self.rows["residual"] = emit.parameter("residual", (*lead, n), "float32")
        if spec.result:
            dtype = "uint16" if spec.result == "bfloat16" else "float32"
            self.rows["y"] = emit.parameter("y", (*lead, n), dtype)
        if spec.quantize:
            self.out = emit.parameter("out", (tall_out, padded(n, K_STEP)), "uint8")
            self.rows["out_ranges"] = emit.parameter("out_ranges", (*lead, 2), "float32")

        # Views whose leading dims are one axis of rows; they must follow all operands.
        self.rows = {
            name: T.decl_buffer((self.m, operand.shape[-1]), operand.dtype, data=operand.data)
            for name, operand in self.rows.items()
        }

    @property
    def _needs_whole_rows(self) -> bool:
        """Whether the epilogue needs whole rows."""
        return self.spec.norm != "none" or self.spec.quantize

    def emit(self) -> None:
        with T.If(self.m <= self.grain.by_columns):
            with T.Then():
                self._by_columns()
            with T.Else():
                self._by_rows()

    # -- tasks of some rows and all columns --------------------------------------------------------

    def _by_rows(self) -> None:
        m, threads, max_rows = self.m, self.isa.threads, self.grain.rows
        count = T.int64(threads) * T.ceildiv(m, T.int64(max_rows * threads))
        each = T.ceildiv(m, count)
        if self._uses_tiles:
            each = T.ceildiv(each, T.int64(MIN_ROWS)) * MIN_ROWS
            whole_tiles = T.max(T.floordiv(m, T.int64(MIN_ROWS)) * MIN_ROWS, T.int64(MIN_ROWS))
            each = T.min(each, whole_tiles)
        rows = emit.bind(each)
        with T.parallel(0, emit.bind(T.ceildiv(m, rows))) as task, products.tiles(self._uses_tiles):
            first = task * rows
            if self._uses_tiles:
                first = T.max(T.min(first, m - rows), T.int64(0))
            first = emit.bind(first)
            last = emit.bind(T.min(first + rows, m))
            base = self._task_base(first, last)
            if self._needs_whole_rows:
                self.staged = emit.scratch((max_rows, self.width), "float32")
            acc = self._accumulators()
            with T.serial(0, self.width // PANEL) as panel:
                if self._uses_tiles:
                    with T.serial(0, rows // 32) as block:
                        self._block(acc, panel, base, first, block * 32, 32, last)
                    with T.If(rows % 32 != 0), T.Then():
                        self._block(acc, panel, base, first, rows - 16, 16, last)
                else:
                    self._block(acc, panel, base, first, T.int64(0), max_rows, last)
            if self._needs_whole_rows:
                with T.serial(0, last - first) as r:
                    self._finish_row(first, r)

    def _task_base(self, first: Any, last: Any) -> Any:
        """The index of a task's first row in what products read: ``first`` of an operand, or 0 of its own
        rows, quantized here."""
        spec = self.spec
        if not self._quantizes:
            return first
        if spec.quantized:
            self.read_q, self.read_ranges = self.q, self.rows["ranges"]
            return first
        self.read_q = emit.scratch((self.grain.rows, padded(spec.k, K_STEP)), "uint8")
        self.read_ranges = emit.scratch((self.grain.rows, 2), "float32")
        with T.serial(0, last - first) as r:
            self._quantize_row(first, r)
        return T.int64(0)

    # -- tasks of some columns and all rows --------------------------------------------------------

    def _by_columns(self) -> None:
        spec, m, threads = self.spec, self.m, self.isa.threads
        if spec.quantized:
            self.read_q, self.read_ranges = self.q, self.rows["ranges"]
        elif self._quantizes:
            tall = T.max(m, T.int64(MIN_ROWS))
            self.read_q = emit.scratch((tall, padded(spec.k, K_STEP)), "uint8")
            self.read_ranges = emit.scratch((tall, 2), "float32")
            with T.parallel(0, m) as r:
                self._quantize_row(T.int64(0), r)
        if self._needs_whole_rows:
            self.staged = emit.scratch((m, self.width), "float32")
        panels = self.width // PANEL
        each = -(-panels // threads)
        with T.parallel(0, -(-panels // each)) as task, products.tiles(self._uses_tiles):
            acc = self._accumulators()
            with T.serial(0, T.min(T.int64(each), panels - task * each)) as i:
                panel = emit.bind(task * each + i)
                if self._uses_tiles:
                    with T.If(m >= 32):
                        with T.Then():
                            self._column_blocks(acc, panel, 32)
                        with T.Else():
                            self._column_blocks(acc, panel, 16)
                else:
                    self._column_blocks(acc, panel, self.grain.rows)
        if self._needs_whole_rows:
            with T.parallel(0, m) as r:
                self._finish_row(T.int64(0), r)

    def _column_blocks(self, acc: Any, panel: Any, rows: int) -> None:
        with T.serial(0, T.ceildiv(self.m, T.int64(rows))) as block:
            at = emit.bind(block * rows)
            if self._uses_tiles:
                at = emit.bind(T.max(T.min(at, self.m - rows), T.int64(0)))
            self._block(acc, panel, T.int64(0), T.int64(0), at, rows, self.m)

    # -- shared by both ----------------------------------------------------------------------------

    @property
    def _quantizes(self) -> bool:
        """Whether products read quantized rows, quantized here or by another kernel."""
        return self.format.rows == QUANTIZED

    @property
    def _uses_tiles(self) -> bool:
        """Whether products use AMX tiles, which need multiples of 16 rows."""
        return self.format.uses_tiles(self.isa)

    def _accumulators(self) -> Any:
        rows = PANEL if self._uses_tiles else self.grain.rows
        return emit.scratch((rows, PANEL), self.format.accumulator)

    def _quantize_row(self, first: Any, r: Any) -> None:
        """Quantizes row ``first + r`` of x to row ``r`` of what products read."""

        def read(c: Any) -> Any:
            return emit.load(self.rows["x"], first + r, c, lanes=self.isa.lanes)

        rowwise.quantize(self.isa, self.spec.k, read, self.read_q, r, self.read_ranges, r)

    def _block(
        self, acc: Any, panel: Any, base: Any, first: Any, at: Any, rows: int, last: Any
    ) -> None:
        """Emits ``rows`` rows of one panel from ``first + at`` on: product, scales, bias and activation."""
        spec, weights = self.spec, self.weights
        valid = emit.bind(T.min(T.int64(rows), last - first - at))
        x = self.read_q if self._quantizes else self.rows["x"]
        self.format.emit_block(
            Block(self.isa, spec.variant, x, base + at, rows, valid, weights, panel, acc)
        )
        lanes = self._columns_at_once
        start = emit.bind(panel_start(panel, spec.n))
        columns = [start + v * lanes for v in range(min(PANEL, spec.n) // lanes)]
        own = range(self.format.vectors)
        vectors = [
            {i: emit.bind(emit.load(self.columns, i, c, lanes=lanes)) for i in (*own, BIAS)}
            for c in columns
        ]
        with T.serial(0, valid) as r:
            row = None
            if self._quantizes:
                scale = emit.bind(self.read_ranges[base + at + r, 0])
                zero = emit.bind(emit.splat(self.read_ranges[base + at + r, 1], lanes))
                row = (emit.splat(scale, lanes), zero)
            for v, c in enumerate(columns):
                sums = emit.load(acc, r, v * lanes, lanes=lanes)
                y = self.format.emit_scaled(sums, [vectors[v][i] for i in own], row, lanes)
                y = self._activate(emit.bind(y + vectors[v][BIAS]))
                self._store(first, at + r, c, y)

    @property
    def _columns_at_once(self) -> int:
        """Columns that are scaled, biased and activated at once: several vectors, so that their instructions
        interleave and hide latency."""
        if self.spec.result == "bfloat16" or self.spec.activation == "none":
            return self.isa.lanes
        return PANEL if self.spec.n >= PANEL else VECTOR

    def _activate(self, y: Any) -> Any:
        if self.spec.activation == "gelu" and self._quantizes:
            return vector.gelu_coarse(y)  # Its error is below that of the rows' quantization.
        return ACTIVATIONS[self.spec.activation](y)

    def _store(self, first: Any, r: Any, c: Any, y: Any) -> None:
        if self._needs_whole_rows:
            emit.store(self.staged, y, r, c, lanes=self._columns_at_once)
        else:
            self._write(first + r, c, y, self._columns_at_once)

    def _write(self, row: Any, c: Any, y: Any, lanes: int) -> None:
        if self.spec.result == "bfloat16":
            y = rowwise.to_bfloat16(y)
        emit.store(self.rows["y"], y, row, c, lanes=lanes)

    def _finish_row(self, first: Any, r: Any) -> None:
        """Emits the epilogue of a whole row ``first + r``: norm, result, quantization."""
        isa, spec, lanes = self.isa, self.spec, self.isa.lanes
        in_registers: dict[Any, Any] | None = {} if rowwise.fits_registers(isa, spec.n) else None

        def read(c: Any) -> Any:
            return (
                emit.load(self.staged, r, c, lanes=lanes)
                if in_registers is None
                else in_registers[c]
            )

        def put(c: Any, value: Any) -> Any:
            value = emit.bind(value)
            if in_registers is None:
                emit.store(self.staged, value, r, c, lanes=lanes)
            else:
                in_registers[c] = value
            return value

        def add_residual(c: Any, i: int) -> None:
            value = emit.load(self.staged, r, c, lanes=lanes)
            if spec.norm != "none":
                value = value + emit.load(self.rows["residual"], first + r, c, lanes=lanes)
            put(c, value)

        def write(c: Any, value: Any) -> None:
            value = put(c, value)
            if spec.result:
                self._write(first + r, c, value, lanes)

        def column(i: int) -> rowwise.Read:
            return lambda c: emit.load(self.columns, i, c, lanes=lanes)

        if in_registers is not None or spec.norm != "none":
            rowwise.for_each_vector(isa, spec.n, add_residual)
        if spec.norm != "none":
            beta = column(BETA) if spec.norm == "layer" else None
            rowwise.normalize(
                isa, spec.norm, spec.n, spec.epsilon, read, column(GAMMA), beta, write
            )
        elif spec.result:
            rowwise.for_each_vector(
                isa, spec.n, lambda c, i: self._write(first + r, c, read(c), lanes)
            )
        if spec.quantize:
            out_ranges = self.rows["out_ranges"]

            def smoothed(c: Any) -> Any:
                return read(c) * column(SMOOTH)(c) if spec.smooth else read(c)

            rowwise.quantize(isa, spec.n, smoothed, self.out, first + r, out_ranges, first + r)
