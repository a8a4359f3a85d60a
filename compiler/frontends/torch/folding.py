"""Numbers that depend on weights alone, computed by torch where there is no converter.

Q = householder_product(A, tau)      parametrizations of weights, of modules that are not trained here,
y = x Q'                             are constants: Q is one
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.export.graph_signature import InputKind

from tersor.frontends.torch.registry import find

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Folded:
    """The nodes of a program that torch computes: constants without a converter, and what only these
    read. ``node in folded`` asks for one."""

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
        """What ``node`` makes: a tensor, or several."""
        if node not in self._known:
            args = torch.fx.node.map_arg(node.args, self.value)
            kwargs = torch.fx.node.map_arg(node.kwargs, self.value)
            self._known[node] = node.target(*args, **kwargs)
        return self._known[node]


def _weights(program: Any) -> dict[Any, Any]:
    """The tensors of the program's weights, by the nodes that stand for them."""
    held = {**program.constants, **program.state_dict}
    names = {
        s.arg.name: s.target for s in program.graph_signature.input_specs if s.kind in _WEIGHTS
    }
    return {n: held[names[n.name]] for n in program.graph.nodes if n.name in names}


def _constants(program: Any, weights: dict[Any, Any]) -> list[Any]:
    """Calls of weights, of numbers alone, and of what was made of them, in order."""
    found: dict[Any, None] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or not _is_a_function(node.target):
            continue
        if all(operand in weights or operand in found for operand in node.all_input_nodes):
            found[node] = None
    return list(found)


def _is_a_function(target: Any) -> bool:
    """Whether a call gives the same numbers each time, and changes nothing."""
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    fills = "empty" not in target._schema.name
    return fills and torch.Tag.nondeterministic_seeded not in target.tags
