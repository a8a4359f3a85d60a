"""The specialization of the kernel of linear layers: :mod:`tersor.backends.tvm.kernels.linear`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.backends.tvm.derive import register
from tersor.backends.tvm.formats import QUANTIZED
from tersor.backends.tvm.formats.format import MAX_VECTORS
from tersor.backends.tvm.kernels import emit, vector
from tersor.backends.tvm.kernels.blocking import PANEL, padded
from tersor.numerics.affine import ActivationForm

VECTOR = 16  # Lanes of the widest vector.
BIAS, GAMMA, BETA, SMOOTH = range(MAX_VECTORS, MAX_VECTORS + 4)  # After the format's vectors.
SHARED = (BIAS, GAMMA, BETA, SMOOTH)
COLUMN_VECTORS = SMOOTH + 1
MIN_ROWS = 16  # Quantized rows are padded to this: the rows of an AMX tile.
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "none": lambda x: x,
    "relu": lambda x: vector.at_least(x, 0.0),
    "gelu": vector.gelu,
    "gelu_tanh": vector.gelu_tanh,
    "tanh": vector.tanh,
    "sigmoid": vector.sigmoid,
    "silu": lambda x: x * vector.sigmoid(x),
}  # Values of tersor.Linear's attribute ``activation``.


@dataclass(frozen=True)
class Linear:
    """The specialization of a kernel.

    Attributes:
        k, n: rows and columns of the weight, as :func:`takes` permits.
        format: the weight's: a name in ``FORMATS``.
        quantized: whether x is quantized already (formats of quantized rows only).
        activation: a name in ``ACTIVATIONS``.
        norm: ``none``, ``layer`` or ``rms``, of the sum with a residual.
        epsilon: of the norm.
        result: the dtype in which y is written: ``float32``, ``bfloat16``, or empty for not at all.
        quantize: whether y is written quantized.
        smooth: whether y is multiplied by a factor per column before quantization.
        lead: the number of dims of x before the last; m below is their product.
        variant: the weight's, by its format.
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
            self.norm, emit.name_part(self.epsilon) if self.norm != "none" else "",
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
    """The operand float32[6, n']: the ``own`` vectors of the weight's format (at most two), bias, the norm's
    gamma and beta, and the factors before quantization; n' is n rounded up to a panel."""
    rows = {**dict(enumerate(own)), BIAS: bias, GAMMA: gamma, BETA: beta, SMOOTH: smooth}
    given = {row: values for row, values in rows.items() if values is not None}
    return _column_table(list(given.values()), spec.n, *given)


def _column_table(vectors: Sequence[np.ndarray], n: int, *rows: int) -> np.ndarray:
    """The operand with ``vectors`` in the first n columns of ``rows``."""
    table = np.zeros((COLUMN_VECTORS, padded(n, PANEL)), np.float32)
    for row, numbers in zip(rows, vectors, strict=True):
        table[row, :n] = numbers
    return table


COLUMNS = "columns"  # The derivation step of that operand.
register(COLUMNS, _column_table)


def takes(k: int, n: int, rows: ActivationForm, *, norm: bool) -> bool:
    """Whether there is a kernel for a weight [k, n] and rows of this form. The sums of a norm need a whole
    number of vectors; elsewhere the last vector may overlap the one before, so that a row needs one at
    least."""
    fits = n % VECTOR == 0 or (n >= PANEL and not norm)
    return fits and (k >= VECTOR or rows != QUANTIZED)


@dataclass(frozen=True)
class Grain:
    """How a kernel's work is divided among tasks, as chosen by tuning.

    Attributes:
        rows: the maximum of a task, a multiple of 16.
        by_columns: up to this number of rows, tasks divide the columns instead, so that each weight is
            read by one core only.
    """

    rows: int = 64
    by_columns: int = 64
