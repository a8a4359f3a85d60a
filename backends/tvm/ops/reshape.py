"""Views that change the shape alone: Reshape, Flatten, Squeeze, Unsqueeze. The result's dims say all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax

from tersor.backends.tvm.lowering import Lowering, Rule
from tersor.ir import Node


def _reshape(lowering: Lowering, node: Node) -> Sequence[Any]:
    x = lowering[node.inputs[0]]
    return [lowering.emit(relax.op.reshape(x, lowering.shape_of(node.output)))]


RULES: dict[str, Rule] = dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape)
