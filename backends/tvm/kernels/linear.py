"""A linear layer on blocks of rows, with what comes before and after it: one launch.

    x   float rows, quantized row by row first; or rows that were quantized by another kernel
    y = act(x W + b)
    y = norm(y + residual)          where the layer ends a residual branch
    y   is written in float32 or bfloat16, or quantized row by row for the layer that reads it, or both;
        quantized is y times a factor a column, where the reader was smoothed by it

How W is stored and multiplied, and whether by float rows or by quantized ones, its format says
(:mod:`tersor.backends.tvm.formats`).

Where there are many rows, a task has up to 64 of them and all columns, so that row norms and row scales
need no other task, and its results stay in the core's cache until the row is done.  Few rows (a short
sentence, one token that is decoded) are bound by reading the weights: there a task has all rows and some
columns, and rows are finished once all tasks are done.  AMX multiplies 16 rows or 32: there the last task,
or block, begins early enough to have only rows that exist, and what is computed twice is the same.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.derive import register
from tersor.backends.tvm.formats import FORMATS, QUANTIZED, Block
from tersor.backends.tvm.formats.format import MOST_VECTORS
from tersor.backends.tvm.kernels import emit, products, rowwise, vector
from tersor.backends.tvm.kernels.blocking import PANEL, padded, panel_start
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.products import K_STEP
from tersor.numerics.affine import ActivationForm

VECTOR = 16  # Numbers of the widest vector.
BIAS, GAMMA, BETA, SMOOTH = range(MOST_VECTORS, MOST_VECTORS + 4)  # Behind the format's.
SHARED = (BIAS, GAMMA, BETA, SMOOTH)
COLUMN_VECTORS = SMOOTH + 1
LEAST_ROWS = 16  # What quantized rows are padded to: those of an AMX tile.
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "none": lambda x: x,
    "relu": lambda x: vector.at_least(x, 0.0),
    "gelu": vector.gelu,
    "gelu_tanh": vector.gelu_tanh,
    "tanh": vector.tanh,
    "sigmoid": vector.sigmoid,
    "silu": lambda x: x * vector.sigmoid(x),
}  # Of tersor.Linear.


@dataclass(frozen=True)
class Linear:
    """What a kernel is specialized for.

    Attributes:
        k, n: rows and columns of the weight: :func:`takes` says which.
        format: of the weight: a name in ``FORMATS``.
        quantized: whether x comes quantized (formats of quantized rows only).
        activation: a name in ``ACTIVATIONS``.
        norm: ``none``, ``layer`` or ``rms``, of the sum with a residual.
        epsilon: of the norm.
        result: dtype that y is written in: ``float32``, ``bfloat16``, or empty.
        quantize: whether y is written quantized too.
        smooth: whether it is multiplied by a factor a column before that.
        lead: how many dims x has before the last; m below is their product.
        variant: of the weight: what its format says that its numbers allow.
    """

    k: int
    n: int
    format: str = "int8"
    quantized: bool = False
    activation: str = "none"
    norm: str = "none"
    epsilon: float = 0.0
    result: str = "float32"
    quantize: bool = False
    smooth: bool = False
    lead: int = 2
    variant: str = ""

    @property
    def name(self) -> str:
        """Unique among kernels."""
        parts = [
            f"linear{self.lead}", self.format, self.k, self.n, "q" if self.quantized else "",
            self.activation,
            self.norm, emit.in_name(self.epsilon) if self.norm != "none" else "",
            self.result,
            "quantize" if self.quantize else "", "smooth" if self.smooth else "", self.variant,
        ]  # fmt: skip
        return "_".join(str(p) for p in parts if p not in ("", "none"))


def column_vectors(
    spec: Linear,
    own: Sequence[np.ndarray],
    bias: np.ndarray | None,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    smooth: np.ndarray | None = None,
) -> np.ndarray:
    """The float32[6, n'] operand: ``own`` vectors of the weight's format (at most two), bias, the norm's
    gamma and beta, and factors before quantization; n' is n padded to a panel."""
    rows = {**dict(enumerate(own)), BIAS: bias, GAMMA: gamma, BETA: beta, SMOOTH: smooth}
    there = {row: values for row, values in rows.items() if values is not None}
    return _in_rows(list(there.values()), spec.n, *there)


def _in_rows(vectors: Sequence[np.ndarray], n: int, *rows: int) -> np.ndarray:
    """That operand, with ``vectors`` in the first n columns of ``rows``."""
    table = np.zeros((COLUMN_VECTORS, padded(n, PANEL)), np.float32)
    for row, numbers in zip(rows, vectors, strict=True):
        table[row, :n] = numbers
    return table


COLUMNS = "columns"  # The step of a library that puts vectors into the rows of the operand.
register(COLUMNS, _in_rows)


def takes(k: int, n: int, rows: ActivationForm, *, norm: bool) -> bool:
    """Whether there is a kernel for a weight [k, n] and rows of this form. Sums over a row (a norm's) take
    each vector once, and what is written or quantized may overlap, but a vector has to fit."""
    fits = n % VECTOR == 0 or (n >= PANEL and not norm)
    return fits and (k >= VECTOR or rows != QUANTIZED)


@dataclass(frozen=True)
class Grain:
    """How the work of a kernel is divided: what tuning chooses.

    Attributes:
        rows: of a task at most, a multiple of 16.
        by_columns: up to so many rows, tasks divide the columns instead, so that each weight is read
            by one core only.
    """

    rows: int = 64
    by_columns: int = 64


def kernel(spec: Linear, isa: Isa, grain: Grain | None = None) -> tirx.PrimFunc:
    """The kernel of ``spec``.

    Operands: x (float32[m, k]; or uint8[m', k'] with float32[m, 2] scales and zero points, where
    k' is k padded to 64 and m' at least 16), those of the weight's format, :func:`column_vectors`, and
    the residual (float32[m, n]) where there is a norm.
    Results: y [m, n] where asked for; uint8[m', n'] and float32[m, 2] where it is quantized.
    """
    return emit.function(spec.name, lambda: _Body(spec, isa, grain or Grain()).emit())


class _Body:
    """Emits the kernel: operands first, then tasks."""

    def __init__(self, spec: Linear, isa: Isa, grain: Grain) -> None:
        self.spec, self.isa, self.grain = spec, isa, grain
        self.format = FORMATS[spec.format]
        # Where products read quantized rows, and what a task makes of its rows: set by the mode.
        self.read_q: Any = None
        self.read_ranges: Any = None
        self.made: Any = None
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
            held = "uint16" if spec.result == "bfloat16" else "float32"
            self.rows["y"] = emit.parameter("y", (*lead, n), held)
        if spec.quantize:
            self.out = emit.parameter("out", (tall_out, padded(n, K_STEP)), "uint8")
            self.rows["out_ranges"] = emit.parameter("out_ranges", (*lead, 2), "float32")

        # Their leading dims are one axis of rows; such views come after all operands.
        self.rows = {
            name: T.decl_buffer((self.m, given.shape[-1]), given.dtype, data=given.data)
            for name, given in self.rows.items()
        }

    @property
    def _whole_rows(self) -> bool:
        """Whether a row has to be whole before it is written."""
        return self.spec.norm != "none" or self.spec.quantize

    def emit(self) -> None:
        with T.If(self.m <= self.grain.by_columns):
            with T.Then():
                self._by_columns()
            with T.Else():
                self._by_rows()

    # -- a task has some rows, and all columns -----------------------------------------------------

    def _by_rows(self) -> None:
        m, threads, most = self.m, self.isa.threads, self.grain.rows
        count = T.int64(threads) * T.ceildiv(m, T.int64(most * threads))
        each = T.ceildiv(m, count)
        if self._in_tiles:
            each = T.ceildiv(each, T.int64(LEAST_ROWS)) * LEAST_ROWS
            there = T.max(T.floordiv(m, T.int64(LEAST_ROWS)) * LEAST_ROWS, T.int64(LEAST_ROWS))
            each = T.min(each, there)
        rows = emit.bind(each)
        with T.parallel(0, emit.bind(T.ceildiv(m, rows))) as task, self._tiles():
            first = task * rows
            if self._in_tiles:
                first = T.max(T.min(first, m - rows), T.int64(0))
            first = emit.bind(first)
            last = emit.bind(T.min(first + rows, m))
            base = self._task_source(first, last)
            if self._whole_rows:
                self.made = emit.scratch((most, self.width), "float32")
            acc = self._accumulators()
            with T.serial(0, self.width // PANEL) as panel:
                if self._in_tiles:
                    with T.serial(0, rows // 32) as block:
                        self._block(acc, panel, base, first, block * 32, 32, last)
                    with T.If(rows % 32 != 0), T.Then():
                        self._block(acc, panel, base, first, rows - 16, 16, last)
                else:
                    self._block(acc, panel, base, first, T.int64(0), most, last)
            if self._whole_rows:
                with T.serial(0, last - first) as r:
                    self._finish(first, r)

    def _task_source(self, first: Any, last: Any) -> Any:
        """Where a task's rows are read from: at ``first`` of an operand, or at 0 of what it quantizes."""
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

    # -- a task has some columns, and all rows -----------------------------------------------------

    def _by_columns(self) -> None:
        spec, m, threads = self.spec, self.m, self.isa.threads
        if spec.quantized:
            self.read_q, self.read_ranges = self.q, self.rows["ranges"]
        elif self._quantizes:
            tall = T.max(m, T.int64(LEAST_ROWS))
            self.read_q = emit.scratch((tall, padded(spec.k, K_STEP)), "uint8")
            self.read_ranges = emit.scratch((tall, 2), "float32")
            with T.parallel(0, m) as r:
                self._quantize_row(T.int64(0), r)
        if self._whole_rows:
            self.made = emit.scratch((m, self.width), "float32")
        panels = self.width // PANEL
        each = -(-panels // threads)
        with T.parallel(0, -(-panels // each)) as task, self._tiles():
            acc = self._accumulators()
            with T.serial(0, T.min(T.int64(each), panels - task * each)) as i:
                panel = emit.bind(task * each + i)
                if self._in_tiles:
                    with T.If(m >= 32):
                        with T.Then():
                            self._column_blocks(acc, panel, 32)
                        with T.Else():
                            self._column_blocks(acc, panel, 16)
                else:
                    self._column_blocks(acc, panel, self.grain.rows)
        if self._whole_rows:
            with T.parallel(0, m) as r:
                self._finish(T.int64(0), r)

    def _column_blocks(self, acc: Any, panel: Any, rows: int) -> None:
        with T.serial(0, T.ceildiv(self.m, T.int64(rows))) as block:
            at = emit.bind(block * rows)
            if self._in_tiles:
                at = emit.bind(T.max(T.min(at, self.m - rows), T.int64(0)))
            self._block(acc, panel, T.int64(0), T.int64(0), at, rows, self.m)

    # -- what both are made of ---------------------------------------------------------------------

    @property
    def _quantizes(self) -> bool:
        """Whether the rows that are multiplied are quantized, here or by another kernel."""
        return self.format.rows == QUANTIZED

    @property
    def _in_tiles(self) -> bool:
        """Whether products are of AMX's tiles, which need rows by 16."""
        return self.format.in_tiles(self.isa)

    @contextmanager
    def _tiles(self) -> Iterator[None]:
        """Within it, the core's tiles are configured, where products use them."""
        if not self._in_tiles:
            yield
            return
        products.open_tiles()
        yield
        products.close_tiles()

    def _accumulators(self) -> Any:
        rows = PANEL if self._in_tiles else self.grain.rows
        return emit.scratch((rows, PANEL), self.format.accumulator)

    def _quantize_row(self, first: Any, r: Any) -> None:
        """Row ``first + r`` of x becomes row r of what products read."""

        def read(c: Any) -> Any:
            return emit.load(self.rows["x"], first + r, c, lanes=self.isa.lanes)

        rowwise.quantize(self.isa, self.spec.k, read, self.read_q, r, self.read_ranges, r)

    def _block(
        self, acc: Any, panel: Any, base: Any, first: Any, at: Any, rows: int, last: Any
    ) -> None:
        """``rows`` rows from ``first + at`` on of one panel: product, scales, bias, activation."""
        spec, weights = self.spec, self.weights
        there = emit.bind(T.min(T.int64(rows), last - first - at))
        x = self.read_q if self._quantizes else self.rows["x"]
        self.format.emit_block(
            Block(self.isa, spec.variant, x, base + at, rows, there, weights, panel, acc)
        )
        lanes = self._together
        start = emit.bind(panel_start(panel, spec.n))
        columns = [start + v * lanes for v in range(min(PANEL, spec.n) // lanes)]
        own = range(self.format.vectors)
        wanted = (*own, BIAS)
        held = [
            {i: emit.bind(emit.load(self.columns, i, c, lanes=lanes)) for i in wanted}
            for c in columns
        ]
        with T.serial(0, there) as r:
            row = None
            if self._quantizes:
                scale = emit.bind(self.read_ranges[base + at + r, 0])
                zero = emit.bind(emit.splat(self.read_ranges[base + at + r, 1], lanes))
                row = (emit.splat(scale, lanes), zero)
            for v, c in enumerate(columns):
                sums = emit.load(acc, r, v * lanes, lanes=lanes)
                y = self.format.emit_scaled(sums, [held[v][i] for i in own], row, lanes)
                y = self._activate(emit.bind(y + held[v][BIAS]))
                self._put(first, at + r, c, y)

    @property
    def _together(self) -> int:
        """How many columns the scales, the bias and the activation are taken of at once: more than a vector
        has, so that instructions of several vectors alternate and need not wait for each other."""
        if self.spec.result == "bfloat16" or self.spec.activation == "none":
            return self.isa.lanes
        return PANEL if self.spec.n >= PANEL else VECTOR

    def _activate(self, y: Any) -> Any:
        if self.spec.activation == "gelu" and self._quantizes:
            return vector.gelu_coarse(y)  # It is off by less than the rows' quantization.
        return ACTIVATIONS[self.spec.activation](y)

    def _put(self, first: Any, r: Any, c: Any, y: Any) -> None:
        if self._whole_rows:
            emit.store(self.made, y, r, c, lanes=self._together)
        else:
            self._write(first + r, c, y, self._together)

    def _write(self, row: Any, c: Any, y: Any, lanes: int) -> None:
        if self.spec.result == "bfloat16":
            y = rowwise.bfloat16(y)
        emit.store(self.rows["y"], y, row, c, lanes=lanes)

    def _finish(self, first: Any, r: Any) -> None:
        """The row ``first + r`` is whole: the norm, and how it is written."""
        isa, spec, lanes = self.isa, self.spec, self.isa.lanes

        whole: dict[Any, Any] | None = {} if rowwise.in_registers(isa, spec.n) else None

        def read(c: Any) -> Any:
            return emit.load(self.made, r, c, lanes=lanes) if whole is None else whole[c]

        def keep(c: Any, value: Any) -> Any:
            value = emit.bind(value)
            if whole is None:
                emit.store(self.made, value, r, c, lanes=lanes)
            else:
                whole[c] = value
            return value

        def take(c: Any, i: int) -> None:
            value = emit.load(self.made, r, c, lanes=lanes)
            if spec.norm != "none":
                value = value + emit.load(self.rows["residual"], first + r, c, lanes=lanes)
            keep(c, value)

        def write(c: Any, value: Any) -> None:
            value = keep(c, value)
            if spec.result:
                self._write(first + r, c, value, lanes)

        def column(i: int) -> rowwise.Read:
            return lambda c: emit.load(self.columns, i, c, lanes=lanes)

        if whole is not None or spec.norm != "none":
            rowwise.over(isa, spec.n, take)
        if spec.norm != "none":
            beta = column(BETA) if spec.norm == "layer" else None
            rowwise.normalize(
                isa, spec.norm, spec.n, spec.epsilon, read, column(GAMMA), beta, write
            )
        elif spec.result:
            rowwise.over(isa, spec.n, lambda c, i: self._write(first + r, c, read(c), lanes))
        if spec.quantize:
            out_ranges = self.rows["out_ranges"]

            def smoothed(c: Any) -> Any:
                return read(c) * column(SMOOTH)(c) if spec.smooth else read(c)

            rowwise.quantize(isa, spec.n, smoothed, self.out, first + r, out_ranges, first + r)
