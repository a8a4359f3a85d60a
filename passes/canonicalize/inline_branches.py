"""Inlines the branch of an If that is known to be taken.

1. If(true) {then, else}                       =  then
2. If(c) {then returns v, else returns v}      =  v, if v is defined outside of both
3. If(x.dims[a] == 1) {Squeeze(x, a), else}    =  Squeeze(x, a), if users reject the rank that else returns:
   for other sizes of that dim the model fails, and so does the Squeeze

   torch exports ``x.squeeze(a)`` as the If of rule 3; ``if x.dim() == 2`` matches rule 1 once the rank is
   known. So users of an inlined branch are reinferred within the same sweep.
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.match import dims, operand, producer_if
from tersor.analysis.ranks import RankProofs
from tersor.ir import Dim, Graph, Node, Value
from tersor.ir.copy import inline
from tersor.ops import contents_of
from tersor.pipeline import EXACT, Context, Pass, Rewrite
from tersor.transforms.refine_types import refine_types


@dataclass(frozen=True)
class InlineBranches(Pass):
    """No options."""

    keeps = EXACT

    def run(self, graph: Graph, context: Context) -> None:
        if any(node.op == "If" for node in graph.walk()):
            super().run(graph, context)

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        refine_types(graph, node)
        if node.op != "If":
            return None
        taken = _taken(node)
        return _agreed(graph, node) if taken is None else inline(taken, node)


def _branch(node: Node, name: str) -> Graph:
    branch = node.attrs[name]
    assert isinstance(branch, Graph)
    return branch


def _taken(node: Node) -> Graph | None:
    """The branch that every successful run takes."""
    branches = _branch(node, "then_branch"), _branch(node, "else_branch")
    condition = operand(node, 0)
    contents = contents_of(condition)
    if contents is not None and contents.size == 1 and isinstance(contents.item(), int):
        return branches[0] if contents.item() else branches[1]
    for branch, other, truth in ((*branches, True), (*branches[::-1], False)):
        if _squeezes(branch, _size_of_one(condition, truth)):
            return branch if RankProofs().impossible(node) == [other] else None
    return None


def _size_of_one(condition: Value, truth: bool) -> Dim:
    """The symbolic size that is 1 exactly if ``condition`` is ``truth``."""
    while (negated := producer_if(condition, "Not")) is not None:
        condition, truth = operand(negated, 0), not truth
    equal = producer_if(condition, "Equal")
    if equal is None or not truth:
        return None
    sides = [contents_of(operand(equal, i)) for i in (0, 1)]
    sizes = [side.reshape(-1)[0] for side in sides if side is not None and side.size == 1]
    return next((d for d in sizes if d != 1), None) if len(sizes) == 2 and 1 in sizes else None


def _squeezes(branch: Graph, size: Dim) -> bool:
    """Whether a branch fails unless ``size`` is 1: it squeezes such a dim."""
    return size is not None and any(
        node.op == "Squeeze" and size in _squeezed(node) for node in branch.nodes
    )


def _squeezed(node: Node) -> list[Dim]:
    """Dims that a Squeeze with explicit axes drops."""
    shape, axes = dims(operand(node, 0)), contents_of(node.input(1))
    if shape is None or axes is None:
        return []
    valid = range(-len(shape), len(shape))
    return [shape[a] for a in axes.reshape(-1) if isinstance(a, int) and a in valid]


def _agreed(graph: Graph, node: Node) -> bool:
    """Rule 2, for each result; the rest of the If is dead code."""
    branches = [_branch(node, name).outputs for name in ("then_branch", "else_branch")]
    changed = False
    # A file may declare more results than its branches have.
    for result, then, other in zip(node.outputs, *branches, strict=False):
        inner = then.graph in node.subgraphs
        if then is other and not inner and result.uses and then.type == result.type:
            graph.replace(result, then)
            changed = True
    return changed
