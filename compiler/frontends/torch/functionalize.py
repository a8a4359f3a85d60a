"""Decomposes ops of an exported program that have no converter, and removes writes to shared memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import default_decompositions

from tersor.errors import Unsupported
from tersor.frontends.torch.folding import Folded
from tersor.frontends.torch.lowering import is_assertion, missing_message
from tersor.frontends.torch.registry import find, is_in_place

ROUNDS = 4  # A decomposition may contain ops that must be decomposed themselves.

# Ops that may return their operand or a view of it, although their schema does not declare it.
_MAYBE_VIEWS = {
    "contiguous", "dropout", "expand_as", "flatten", "reshape", "reshape_as", "to", "type_as",
    "unflatten", "chunk", "split", "tensor_split", "view_as",
}  # fmt: skip


def prepare(program: Any) -> Any:
    """``program`` without writes that other nodes can see, and with ops decomposed that have no converter,
    unless they depend on weights alone, which are folded. Layers with a converter stay whole.

    Raises:
        Unsupported: an op has neither a converter nor a decomposition.
    """
    if any(_writes_shared(node) for node in _calls(program)):
        program = program.run_decompositions({})
    for _ in range(ROUNDS):
        folded = Folded(program)
        missing = {
            n.target: n
            for n in _calls(program)
            if find(n.target) is None and not is_assertion(n) and n not in folded
        }
        if not missing:
            return program
        known = default_decompositions()
        table = {op: known[op] for op in missing if op in known}
        for op, node in missing.items():
            if op not in table:
                raise Unsupported(missing_message(node))
        program = program.run_decompositions(table)
    raise Unsupported(missing_message(next(iter(missing.values()))))


def _calls(program: Any) -> list[Any]:
    """All calls, including those in the bodies of higher-order ops."""
    modules = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return [n for m in modules for n in m.graph.nodes if n.op == "call_function"]


def _writes_shared(node: Any) -> bool:
    """Whether a node writes to memory that another node may read. If the in-place op is the only reader of
    its operand, it is equivalent to the op that returns a new tensor."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return False
    if not is_in_place(node.target):
        return True
    operand = node.args[0]
    return len(operand.users) > 1 or _may_view(operand)


def _may_view(node: Any) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return True
    schema = node.target._schema
    name = schema.name.partition("::")[2]
    aliases = any(r.alias_info is not None for r in schema.returns) and not schema.is_mutable
    if is_in_place(node.target):
        return _writes_shared(node)
    return aliases or name in _MAYBE_VIEWS
