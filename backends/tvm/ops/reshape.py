"""Views that change the shape alone: Reshape, Flatten, Squeeze, Unsqueeze. The result's dims say all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax

from tersor.backends.tvm.lowering import Lowering, Rule, dtype_of
from tersor.ir import Node


def _reshape(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, dims = lowering[node.inputs[0]], lowering.shape_of(node.output)
    if node.output.tensor.numel == 0:
        # Relax takes a dim of 0 for one that is copied.
        return [lowering.emit(relax.op.zeros(dims, dtype_of(node.output.type)))]
    return [lowering.emit(relax.op.reshape(x, dims))]


RULES: dict[str, Rule] = dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape)
