"""What there are kernels for, by what the lowering emits."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.backends.tvm import contrib
from tersor.backends.tvm.fuse import multiplies_in_integers
from tersor.backends.tvm.ops import RULES
from tersor.backends.tvm.ops.fused import EMBEDDING, has_int8_rows
from tersor.backends.tvm.ops.indexing import has_rows
from tersor.ir import Encoding
from tersor.numerics.affine import ActivationForm


def supports(op: str, encodings: Sequence[Encoding], activations: ActivationForm) -> str | None:
    """See :meth:`tersor.backend.BackendOf.supports`."""
    if op not in RULES and op not in contrib.RULES:
        return f"TVM has no lowering for {op}"
    if activations is not ActivationForm.FLOAT:
        rows = activations is ActivationForm.INT8_ROWS
        if rows and op == "tersor.Linear" and all(map(multiplies_in_integers, encodings)):
            return None
        return (
            "the integer kernels multiply rows with one scale each by int8 weights of tersor.Linear "
            f"with one scale a column: not {op} of {activations.value} activations"
        )
    for held in encodings:
        looked_up = (op == "Gather" and has_rows(held)) or (op == EMBEDDING and has_int8_rows(held))
        if not held.is_dense and not looked_up:
            return f"no kernel of {op} reads {held.describe()}: it is made floats when the model is loaded"
    return None
