"""Erases nodes and constants that nothing reads."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.ir import Graph
from tersor.pipeline import EXACT, Context, Pass, erase_unread


@dataclass(frozen=True)
class DeadCode(Pass):
    """No options."""

    keeps = EXACT

    def run(self, graph: Graph, context: Context) -> None:
        if not context.may_rewrite():
            return
        context.report.rewrites += erase_unread(graph)
