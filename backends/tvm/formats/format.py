"""The interface of weight formats, and their registry.

Products are computed by panels of 32 columns (:mod:`tersor.backends.tvm.kernels.blocking`):

    acc[r, c]  =  sum over k of x[r, k] w[k, c]         emit_block
    y[r, c]    =  acc[r, c], times scales               emit_scaled, from numbers per column and row

The kernel emits the rest for every format: bias, activation, norm, quantization of x and y.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from tersor.backends.tvm import derive
from tersor.backends.tvm.derive import Step
from tersor.backends.tvm.kernels.emit import Isa
from tersor.ir import Encoding
from tersor.numerics.affine import ActivationForm

FLOAT, QUANTIZED = ActivationForm.FLOAT, ActivationForm.INT8_ROWS
"""Forms of the rows that are multiplied: floats, or each row quantized with a scale and a zero point."""

MAX_VECTORS = 2  # The maximum of a format's ``vectors``.
Derived = tuple[tuple[Step, ...], tuple[np.ndarray, ...]]
"""Steps of :mod:`tersor.backends.tvm.derive`, and the arrays that the first one takes."""


@dataclass(frozen=True)
class Operand:
    """An array that is passed to the kernel for a weight."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Block:
    """Rows to multiply with one panel.

    Attributes:
        isa: the available instructions.
        variant: the weight's :meth:`Format.variant`.
        x: float32[m, k], or uint8[m, k'] with k' = k rounded up to 64.
        row: the first of the rows.
        rows: the rows of ``acc``, a compile-time constant; 16 or 32 with AMX tiles.
        valid: how many of the rows exist: others must not be read. All exist with AMX tiles.
        weights: the buffers of :meth:`Format.operands`.
        panel: the panel's index.
        acc: ``Format.accumulator``[rows, 32], written.
    """

    isa: Isa
    variant: str
    x: Any
    row: Any
    rows: int
    valid: Any
    weights: Sequence[Any]
    panel: Any
    acc: Any


class Format(ABC):
    """How a weight [k, n] is stored for the kernel of linear layers and multiplied by it.

    Attributes:
        name: in the registry, in the fused op and in kernel names.
        rows: the form of the rows that it multiplies: ``FLOAT`` or ``QUANTIZED``.
        decodes: whether decoded numbers are packed, rather than the encoding's arrays.
        accumulator: the dtype of accumulators.
        vectors: how many numbers per column :meth:`columns` gives, at most two.
        steps: of :meth:`pack` beyond those of :mod:`tersor.backends.tvm.derive`: names, and functions from
            the arrays of the step before to one array. Libraries on disk name them: meanings are fixed.
    """

    name: ClassVar[str]
    rows: ClassVar[ActivationForm]
    decodes: ClassVar[bool] = False
    accumulator: ClassVar[str] = "float32"
    vectors: ClassVar[int] = 0
    steps: ClassVar[tuple[tuple[str, Callable[..., np.ndarray]], ...]] = ()

    @abstractmethod
    def accepts(self, weight: Encoding) -> str | None:
        """None if this format stores the weight exactly, else the reason why not."""

    def variant(self, weight: Encoding, isa: Isa) -> str:
        """The faster variant that the weight's numbers permit, as a word for the kernel's name, or empty."""
        return ""

    @abstractmethod
    def operands(self, k: int, n: int, isa: Isa) -> tuple[Operand, ...]:
        """The kernel's operands for a weight [k, n]."""

    @abstractmethod
    def pack(self, weight: Encoding, isa: Isa) -> tuple[Derived, ...]:
        """How each operand is computed from an accepted weight's arrays."""

    def columns(self, weight: Encoding, packed: Sequence[np.ndarray]) -> tuple[Derived, ...]:
        """How ``vectors`` arrays [n], the columns' numbers for :meth:`emit_scaled`, are computed: from the
        weight's arrays, or from those of :meth:`pack`."""
        return ()

    def uses_tiles(self, isa: Isa) -> bool:
        """Whether products use AMX tiles, of 16 or 32 rows, all of which must exist."""
        return False

    @abstractmethod
    def emit_block(self, block: Block) -> None:
        """Emits a block's products."""

    def emit_scaled(
        self, acc: Any, columns: Sequence[Any], row: tuple[Any, Any] | None, lanes: int
    ) -> Any:
        """A vector of accumulators as float32 results.

        Args:
            acc: of consecutive columns of a row.
            columns: vectors of these columns' numbers from :meth:`columns`.
            row: the row's scale and zero point in every lane, where it is quantized.
            lanes: of the vectors.
        """
        return acc


FORMATS: dict[str, Format] = {}
"""Every format by its name."""

F = TypeVar("F", bound=Format)


def register(format: type[F]) -> type[F]:
    """A decorator that adds a format to ``FORMATS``, and its steps to :mod:`tersor.backends.tvm.derive`.

    Raises:
        ValueError: the name is taken, or the format has too many vectors.
    """
    if format.name in FORMATS:
        raise ValueError(f"two formats are named {format.name}")
    if format.vectors > MAX_VECTORS:
        raise ValueError(f"format {format.name} has more than {MAX_VECTORS} numbers per column")
    for step in format.steps:
        derive.register(step[0], _of_one(step[1]))
    FORMATS[format.name] = format()
    return format


def _of_one(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda arrays, *arguments: function(*arrays, *arguments)


def choose(weight: Encoding, rows: ActivationForm, isa: Isa) -> Format | None:
    """Of the formats for rows of this form that accept a weight, the smallest, as products of few rows are
    bound by reading the weight; None if no format accepts it."""
    k, n = weight.type.shape

    def nbytes(format: Format) -> int:
        return sum(operand.nbytes for operand in format.operands(k, n, isa))

    return min(accepting(weight, rows), key=nbytes, default=None)


def accepting(weight: Encoding, rows: ActivationForm) -> list[Format]:
    """The formats for rows of this form that accept a weight."""
    return [f for f in FORMATS.values() if f.rows is rows and f.accepts(weight) is None]


def refusals(weight: Encoding, rows: ActivationForm) -> str:
    """Why formats for rows of this form do not accept a weight: ``int8: it has zero points``."""
    reasons = {f.name: f.accepts(weight) for f in FORMATS.values() if f.rows is rows}
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
