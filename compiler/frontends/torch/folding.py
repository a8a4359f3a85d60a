"""Folding of ops without a converter that depend on weights alone: torch computes them.

Q = householder_product(A, tau)      a parametrization of a weight (A, tau): Q becomes a constant
y = x Q'
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.export.graph_signature import InputKind

from tersor.frontends.torch.registry import find

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Folded:
    """The folded nodes of a program: constant nodes without a converter, and nodes that only these read."""

    def __init__(self, program: Any) -> None:
        self._known = _weights(program)
        constants = _constants(program, self._known)
        self._nodes: set[Any] = set()
        for node in reversed(constants):
            within = bool(node.users) and all(user in self._nodes for user in node.users)
            if within or find(node.target) is None:
                self._nodes.add(node)

    def __contains__(self, node: Any) -> bool:
        return node in self._nodes

    def value(self, node: Any) -> Any:
        """The result of ``node``: a tensor, or several."""
        if node not in self._known:
            args = torch.fx.node.map_arg(node.args, self.value)
            kwargs = torch.fx.node.map_arg(node.kwargs, self.value)
            self._known[node] = node.target(*args, **kwargs)
        return self._known[node]


def _weights(program: Any) -> dict[Any, Any]:
    """The program's weights, by their placeholders."""
    tensors = {**program.constants, **program.state_dict}
    names = {
        s.arg.name: s.target for s in program.graph_signature.input_specs if s.kind in _WEIGHTS
    }
    return {n: tensors[names[n.name]] for n in program.graph.nodes if n.name in names}


def _constants(program: Any, weights: dict[Any, Any]) -> list[Any]:
    """Nodes that depend only on weights and on numbers, in order."""
    constants: dict[Any, None] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or not _is_pure(node.target):
            continue
        if all(operand in weights or operand in constants for operand in node.all_input_nodes):
            constants[node] = None
    return list(constants)


def _is_pure(target: Any) -> bool:
    """Whether a call is deterministic and has no side effects."""
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    initialized = "empty" not in target._schema.name
    return initialized and torch.Tag.nondeterministic_seeded not in target.tags
