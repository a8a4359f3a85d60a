"""What every format of a weight answers, and the registry of formats.

A product is computed by panels of 32 columns (:mod:`tersor.backends.tvm.kernels.blocking`):

    sums[r, c]  =  sum over k of x[r, k] w[k, c]         emit_block
    y[r, c]     =  sums[r, c], times scales              emit_scaled, by numbers of column and row

Bias, activation, norm, and how x and y are quantized are the kernel's, whatever the format.
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
"""Forms of the rows that are multiplied: as they are, or each quantized with a scale and a zero point."""

MOST_VECTORS = 2  # At most, that a format has.
Derived = tuple[tuple[Step, ...], tuple[np.ndarray, ...]]
"""Steps of :mod:`tersor.backends.tvm.derive`, and the arrays that the first of them is given."""


@dataclass(frozen=True)
class Operand:
    """An array that the kernel is passed for a weight."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Block:
    """Rows that are multiplied with one panel.

    Attributes:
        isa: which instructions there are.
        variant: what :meth:`Format.variant` says of the weight.
        x: float32[m, k], or uint8[m, k'] with k' = k rounded up to 64.
        row: the first of the rows.
        rows: how many ``sums`` has room for: a number of Python's, 16 or 32 in tiles.
        there: how many of them count. No others may be read, but in tiles.
        weights: the buffers of :meth:`Format.operands`.
        panel: the panel's number.
        sums: ``Format.accumulator``[rows, 32], written.
    """

    isa: Isa
    variant: str
    x: Any
    row: Any
    rows: int
    there: Any
    weights: Sequence[Any]
    panel: Any
    sums: Any


class Format(ABC):
    """How a weight [k, n] is stored for the kernel of linear layers, and multiplied.

    Attributes:
        name: in the registry, in the fused op and in the names of kernels.
        rows: the form of the rows that it multiplies: ``FLOAT`` or ``QUANTIZED``.
        decodes: whether the numbers are packed, and not what an encoding stores.
        accumulator: dtype of sums.
        vectors: how many numbers :meth:`columns` gives for each column, at most two.
        steps: of :meth:`pack` beyond those of :mod:`tersor.backends.tvm.derive`: names, and functions from
            what the step before gave to one array. Libraries on disk name them: a name keeps its meaning.
    """

    name: ClassVar[str]
    rows: ClassVar[ActivationForm]
    decodes: ClassVar[bool] = False
    accumulator: ClassVar[str] = "float32"
    vectors: ClassVar[int] = 0
    steps: ClassVar[tuple[tuple[str, Callable[..., np.ndarray]], ...]] = ()

    @abstractmethod
    def accepts(self, weight: Encoding) -> str | None:
        """None where it can store this weight, exactly; else the reason why not."""

    def variant(self, weight: Encoding, isa: Isa) -> str:
        """What the weight's numbers allow beyond the format: a word in the kernel's name, or nothing."""
        return ""

    @abstractmethod
    def operands(self, k: int, n: int, isa: Isa) -> tuple[Operand, ...]:
        """What the kernel is passed for a weight [k, n]."""

    @abstractmethod
    def pack(self, weight: Encoding, isa: Isa) -> tuple[Derived, ...]:
        """How each of the operands is made of what an accepted weight holds."""

    def columns(self, weight: Encoding, packed: Sequence[np.ndarray]) -> tuple[Derived, ...]:
        """How ``vectors`` arrays [n] are made, of which :meth:`emit_scaled` gets the columns' numbers in
        float32: of what the weight holds, or of the arrays that :meth:`pack` makes of it, which a library
        has anyway."""
        return ()

    def in_tiles(self, isa: Isa) -> bool:
        """Whether products are of AMX's tiles: 16 or 32 rows at a time, which have to be there."""
        return False

    @abstractmethod
    def emit_block(self, block: Block) -> None:
        """Emits the sums of a block's products."""

    def emit_scaled(
        self, sums: Any, columns: Sequence[Any], row: tuple[Any, Any] | None, lanes: int
    ) -> Any:
        """A vector of sums as float32 results.

        Args:
            sums: of neighbouring columns of a row.
            columns: vectors of what :meth:`columns` gave for these.
            row: the row's scale and zero point in every lane of a vector, where it was quantized.
            lanes: of the vectors.
        """
        return sums


FORMATS: dict[str, Format] = {}
"""Every format by its name."""

F = TypeVar("F", bound=Format)


def register(format: type[F]) -> type[F]:
    """Adds a format to ``FORMATS``, and its steps to those of libraries: a decorator.

    Raises:
        ValueError: there is another one of that name, or one with more vectors than there is room for.
    """
    if format.name in FORMATS:
        raise ValueError(f"two formats are called {format.name}")
    if format.vectors > MOST_VECTORS:
        raise ValueError(f"format {format.name} has more than {MOST_VECTORS} numbers a column")
    for step in format.steps:
        derive.register(step[0], _of_one(step[1]))
    FORMATS[format.name] = format()
    return format


def _of_one(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda arrays, *arguments: function(*arrays, *arguments)


def choose(weight: Encoding, rows: ActivationForm, isa: Isa) -> Format | None:
    """The format for a weight that is multiplied with rows of this form: of those that accept it the one
    with the fewest bytes, for few rows take as long as it takes to read the weight. None where none does."""
    k, n = weight.type.shape

    def nbytes(format: Format) -> int:
        return sum(operand.nbytes for operand in format.operands(k, n, isa))

    return min(accepting(weight, rows), key=nbytes, default=None)


def accepting(weight: Encoding, rows: ActivationForm) -> list[Format]:
    """The formats that have rows of this form multiplied by a weight."""
    return [f for f in FORMATS.values() if f.rows is rows and f.accepts(weight) is None]


def refusals(weight: Encoding, rows: ActivationForm) -> str:
    """Why others for rows of this form do not accept a weight: ``int8: it has zero points``."""
    reasons = {f.name: f.accepts(weight) for f in FORMATS.values() if f.rows is rows}
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
