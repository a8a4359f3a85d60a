"""Elementwise ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax

from tersor.backends.tvm.lowering import Lowering, Rule
from tersor.ir import Node


def _same(function: Callable[..., Any]) -> Rule:
    """The Relax op takes the node's operands and no attributes."""

    def rule(lowering: Lowering, node: Node) -> Sequence[Any]:
        return [lowering.emit(function(*(lowering[v] for v in node.inputs)))]

    return rule


RULES: dict[str, Rule] = {
    "Add": _same(relax.op.add),
    "Mul": _same(relax.op.multiply),
    "Sub": _same(relax.op.subtract),
    "Exp": _same(relax.op.exp),
    "Relu": _same(relax.op.nn.relu),
}
