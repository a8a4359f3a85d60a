"""The branch of an If that is known to be taken stands in its place.

1. If(true) {then, else}                       =  then, among the nodes around it
2. If(c) {then returns v, else returns v}      =  v, where v is made outside of both
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.match import operand
from tersor.ir import Graph, Node
from tersor.ir.copy import inline
from tersor.pipeline import EXACT, Pass, Rewrite


@dataclass(frozen=True)
class InlineBranches(Pass):
    """No options."""

    keeps = EXACT

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op != "If":
            return None
        condition = operand(node, 0)
        if not condition.is_constant:
            return _agreed(graph, node)
        taken = _branch(node, "then_branch" if condition.numpy().all() else "else_branch")
        return inline(taken, node)


def _branch(node: Node, name: str) -> Graph:
    branch = node.attrs[name]
    assert isinstance(branch, Graph)
    return branch


def _agreed(graph: Graph, node: Node) -> bool:
    """Rule 2, result by result; what is not read any more goes as dead code."""
    branches = [_branch(node, name).outputs for name in ("then_branch", "else_branch")]
    changed = False
    # A file may name more results than its branches have.
    for made, one, other in zip(node.outputs, *branches, strict=False):
        inner = one.graph in node.subgraphs
        if one is other and not inner and made.uses and one.type == made.type:
            graph.replace(made, one)
            changed = True
    return changed
