"""A linear layer on blocks of rows, with what comes before and after it: one launch.

    x   float rows, quantized row by row first; or rows that were quantized by another kernel
    y = act(x W + b)
    y = norm(y + residual)          where the layer ends a residual branch
    y   is written in float32 or bfloat16, or quantized row by row for the layer that reads it, or both

int8: with row r quantized as ``x = s_r (q - z_r)`` and column n of W as ``w_n v``,

    x W + b  =  s_r w_n (sum q v - z_r sum v) + b_n

A task has up to 64 rows and all columns, so that row norms and row scales need no other task; its
results stay in the core's cache until the row is done.  The last task begins early enough to have only
rows that exist: what two tasks compute twice is the same.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit, products, rowwise, vector
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.products import K_STEP, PANEL, padded

MOST_ROWS = 64  # Of a task.
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
        k, n: rows and columns of the weight; n a multiple of 16, k of 16.
        product: ``int8`` or ``float32``.
        quantized: whether x comes quantized (int8 only).
        activation: a name in ``ACTIVATIONS``.
        norm: ``none``, ``layer`` or ``rms``, of the sum with a residual.
        epsilon: of the norm.
        result: dtype that y is written in: ``float32``, ``bfloat16``, or empty.
        quantize: whether y is written quantized too.
        lead: how many dims x has before the last; m below is their product.
    """

    k: int
    n: int
    product: str = "int8"
    quantized: bool = False
    activation: str = "none"
    norm: str = "none"
    epsilon: float = 0.0
    result: str = "float32"
    quantize: bool = False
    lead: int = 2

    @property
    def name(self) -> str:
        """Unique among kernels."""
        parts = [
            f"linear{self.lead}", self.product, self.k, self.n, "q" if self.quantized else "",
            self.activation,
            self.norm, f"{self.epsilon:.0e}".replace("-", "m") if self.norm != "none" else "",
            self.result,
            "quantize" if self.quantize else "",
        ]  # fmt: skip
        return "_".join(str(p) for p in parts if p not in ("", "none"))


def column_vectors(
    spec: Linear,
    scale: np.ndarray | None,
    weight: np.ndarray,
    bias: np.ndarray | None,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
) -> np.ndarray:
    """The float32[5, n'] operand: scales and sums of the columns of an int8 ``weight`` [k, n], bias,
    and the norm's gamma and beta; n' is n padded to a panel."""
    table = np.zeros((5, padded(spec.n, PANEL)), np.float32)
    rows = (scale, weight.sum(0) if scale is not None else None, bias, gamma, beta)
    for row, values in zip(table, rows, strict=True):
        if values is not None:
            row[: spec.n] = values
    return table


def kernel(spec: Linear, isa: Isa) -> tirx.PrimFunc:
    """The kernel of ``spec``.

    Operands: x (float32[m, k]; or uint8[m', k'] with float32[m, 2] scales and zero points, where
    k' is k padded to 64 and m' at least 16), packed weight, :func:`column_vectors`, and the residual
    (float32[m, n]) where there is a norm.
    Results: y [m, n] where asked for; uint8[m', n'] and float32[m, 2] where it is quantized.
    """
    return emit.function(spec.name, lambda: _Body(spec, isa).emit())


class _Body:
    """Emits the kernel: operands first, then tasks."""

    def __init__(self, spec: Linear, isa: Isa) -> None:
        self.spec, self.isa = spec, isa
        lead = [emit.size(f"d{i}") for i in range(spec.lead)]
        tall, tall_out = emit.size("tall"), emit.size("tall_out")
        self.m = functools.reduce(operator.mul, lead)
        k, n, int8 = spec.k, spec.n, spec.product == "int8"
        self.width = padded(n, PANEL)
        self.rows: dict[str, Any] = {}
        if spec.quantized:
            self.q = emit.parameter("q", (tall, padded(k, K_STEP)), "uint8")
            self.rows["ranges"] = emit.parameter("ranges", (*lead, 2), "float32")
        else:
            self.rows["x"] = emit.parameter("x", (*lead, k), "float32")
        panels = self.width // PANEL
        packed = (panels, 2, padded(k, K_STEP) // 4, 64) if int8 else (panels, k, PANEL)
        self.w = emit.parameter("w", packed, "int8" if int8 else "float32")
        self.columns = emit.parameter("columns", (5, self.width), "float32")
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
    def _by_row(self) -> bool:
        """Whether a row has to be whole before it is written."""
        return self.spec.norm != "none" or self.spec.quantize

    def emit(self) -> None:
        m, threads = self.m, self.isa.threads
        count = T.int64(threads) * T.ceildiv(m, T.int64(MOST_ROWS * threads))
        rows = emit.bind(T.ceildiv(T.ceildiv(m, count), T.int64(16)) * T.int64(16))
        with T.parallel(0, emit.bind(T.ceildiv(m, rows))) as task:
            first = emit.bind(T.max(T.min(task * rows, m - rows), T.int64(0)))
            last = emit.bind(T.min(first + rows, m))
            if self.isa.dot == "amx" and self.spec.product == "int8":
                products.open_tiles()
            self._task(first, rows, last)
            if self.isa.dot == "amx" and self.spec.product == "int8":
                products.close_tiles()

    def _task(self, first: Any, rows: Any, last: Any) -> None:
        spec = self.spec
        # Where a is read from: row `first` of an operand, or row 0 of what the task made.
        base: Any = first
        if spec.product == "int8" and not spec.quantized:
            self._quantize_rows(first, last)
            base = T.int64(0)
        if self._by_row:
            self.made = emit.scratch((MOST_ROWS, self.width), "float32")
        acc_type = "int32" if spec.product == "int8" else "float32"
        acc = emit.scratch((PANEL, PANEL), acc_type)
        with T.serial(0, self.width // PANEL) as panel:
            with T.serial(0, rows // 32) as block:
                self._block(acc, panel, base, first, block * 32, 32, last)
            with T.If(rows % 32 != 0), T.Then():
                self._block(acc, panel, base, first, rows - 16, 16, last)
        if self._by_row:
            with T.serial(0, last - first) as r:
                self._finish(first, r)

    def _quantize_rows(self, first: Any, last: Any) -> None:
        """Float rows become quantized ones of the task's own."""
        k = self.spec.k
        self.q = emit.scratch((MOST_ROWS, padded(k, K_STEP)), "uint8")
        self.rows["ranges"] = emit.scratch((MOST_ROWS, 2), "float32")
        with T.serial(0, last - first) as r:

            def read(c: Any) -> Any:
                return emit.load(self.rows["x"], first + r, c, lanes=self.isa.lanes)

            rowwise.quantize(self.isa, k, read, self.q, r, self.rows["ranges"], r)

    def _block(
        self, acc: Any, panel: Any, base: Any, first: Any, at: Any, rows: int, last: Any
    ) -> None:
        """``rows`` rows from ``first + at`` on of one panel: product, scales, bias, activation."""
        isa, spec = self.isa, self.spec
        if spec.product == "int8":
            products.int8_block(isa, self.q, base + at, rows, self.w, panel, acc)
        else:
            products.float_block(isa, self.rows["x"], base + at, rows, self.w, panel, acc, self.m)
        lanes = isa.lanes
        columns = [panel * PANEL + v * lanes for v in range(PANEL // lanes)]
        wanted = range(3) if spec.product == "int8" else (2,)
        held = [
            {i: emit.bind(emit.load(self.columns, i, c, lanes=lanes)) for i in wanted}
            for c in columns
        ]
        with T.serial(0, T.min(T.int64(rows), last - first - at)) as r:
            if spec.product == "int8":
                scale = emit.bind(self.rows["ranges"][base + at + r, 0])
                zero = emit.bind(emit.splat(self.rows["ranges"][base + at + r, 1], lanes))
            for v, c in enumerate(columns):
                y = emit.load(acc, r, v * lanes, lanes=lanes)
                if spec.product == "int8":
                    y = emit.cast(y, f"float32x{lanes}") - zero * held[v][1]
                    y = y * (emit.splat(scale, lanes) * held[v][0])
                y = self._activate(emit.bind(y + held[v][2]))
                self._put(first, at + r, c, y, v)

    def _activate(self, y: Any) -> Any:
        if self.spec.activation == "gelu" and self.spec.product == "int8":
            return vector.gelu_coarse(y)
        return ACTIVATIONS[self.spec.activation](y)

    def _put(self, first: Any, r: Any, c: Any, y: Any, vector: int) -> None:
        lanes, spec = self.isa.lanes, self.spec
        if self._by_row:
            emit.store(self.made, y, r, c, lanes=lanes)
            return
        if spec.n % PANEL and vector * lanes >= spec.n % PANEL:
            # In the last panel there are no such columns.
            with T.If(c < spec.n), T.Then():
                self._write(first + r, c, y)
            return
        self._write(first + r, c, y)

    def _write(self, row: Any, c: Any, y: Any) -> None:
        lanes = self.isa.lanes
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
                self._write(first + r, c, value)

        def column(i: int) -> rowwise.Read:
            return lambda c: emit.load(self.columns, i, c, lanes=lanes)

        if whole is not None or spec.norm != "none":
            rowwise.over(isa, spec.n, take)
        if spec.norm != "none":
            beta = column(4) if spec.norm == "layer" else None
            rowwise.normalize(isa, spec.norm, spec.n, spec.epsilon, read, column(3), beta, write)
        elif spec.result:
            rowwise.over(isa, spec.n, lambda c, i: self._write(first + r, c, read(c)))
        if spec.quantize:
            out_ranges = self.rows["out_ranges"]
            rowwise.quantize(isa, spec.n, read, self.out, first + r, out_ranges, first + r)
