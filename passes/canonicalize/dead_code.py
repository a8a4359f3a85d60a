"""Nodes and constants that nothing reads are erased."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.ir import Graph
from tersor.pipeline import EXACT, Context, Pass, erase_dead


@dataclass(frozen=True)
class DeadCode(Pass):
    """No options."""

    keeps = EXACT

    def run(self, graph: Graph, context: Context) -> None:
        if not context.may_rewrite():
            return
        erased = 0
        for owner in list(graph.all_graphs()):
            erased += erase_dead(reversed(list(owner.nodes)))
        for owner in graph.all_graphs():
            for constant in [c for c in owner.constants.values() if not c.uses]:
                owner.erase_constant(constant)
                erased += 1
        if erased:
            context.report.rewrites += erased
