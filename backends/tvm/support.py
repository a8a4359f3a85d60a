"""Which ops and encodings have kernels, given this lowering."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.backends.tvm import contrib
from tersor.backends.tvm.formats import FLOAT, QUANTIZED, accepting, refusals
from tersor.backends.tvm.lowering import no_kernel
from tersor.backends.tvm.ops import RULES
from tersor.backends.tvm.ops.fused import EMBEDDING, has_int8_rows
from tersor.backends.tvm.ops.indexing import has_rows
from tersor.ir import Encoding
from tersor.numerics.affine import ActivationForm

LINEAR = "tersor.Linear"


def supports(op: str, encodings: Sequence[Encoding], activations: ActivationForm) -> str | None:
    """See :meth:`tersor.backend.BackendOf.supports`."""
    if op not in RULES and op not in contrib.RULES:
        return f"TVM has no lowering for {op}"
    if activations is not ActivationForm.FLOAT:
        if activations is QUANTIZED and op == LINEAR:
            refused = [e for e in encodings if not accepting(e, QUANTIZED)]
            if not refused:
                return None
            return f"no integer kernel takes its weight: {refusals(refused[0], QUANTIZED)}"
        return (
            "integer kernels multiply rows with one scale each by weights of tersor.Linear: "
            f"not {op} of {activations.value} activations"
        )
    for encoding in encodings:
        looked_up = (op == "Gather" and has_rows(encoding)) or (
            op == EMBEDDING and has_int8_rows(encoding)
        )
        packed = op == LINEAR and any(not f.decodes for f in accepting(encoding, FLOAT))
        if not (encoding.is_dense or looked_up or packed):
            return no_kernel(op, encoding)
    return None
