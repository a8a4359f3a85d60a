"""What ONNX Runtime has kernels for, by what the lowering writes."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.backends.ort.constants import has_rows, no_kernel
from tersor.backends.ort.linear import is_per_column
from tersor.backends.ort.lower import RULES
from tersor.ir import Encoding
from tersor.numerics.affine import ActivationForm

_LOOKUPS = {"Gather", "tersor.EmbeddingLayerNormalization"}


def supports(op: str, encodings: Sequence[Encoding], activations: ActivationForm) -> str | None:
    """See :meth:`tersor.backend.BackendOf.supports`."""
    if op.startswith("tersor.") and op not in RULES:
        return f"ONNX Runtime has no form of {op}"
    if activations is ActivationForm.INT8_ROWS:
        return "ONNX Runtime has no integer kernels for activations with one scale a row"
    if activations is ActivationForm.INT8:
        if op == "tersor.Linear" and all(map(is_per_column, encodings)):
            return None
        return (
            f"ONNX Runtime multiplies {op} in integers by int8 weights with one scale a column only"
        )
    for held in encodings:
        if not held.is_dense and not (op in _LOOKUPS and has_rows(held)):
            return no_kernel(op, held)
    return None
