"""Which ops and encodings ONNX Runtime has kernels for, given this lowering."""

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
        return "ONNX Runtime has no integer kernels for activations with one scale per row"
    if activations is ActivationForm.INT8:
        if op == "tersor.Linear" and all(map(is_per_column, encodings)):
            return None
        return f"ONNX Runtime multiplies {op} in integers by int8 weights with one scale per column only"
    for encoding in encodings:
        if not encoding.is_dense and not (op in _LOOKUPS and has_rows(encoding)):
            return no_kernel(op, encoding)
    return None
