"""Omits initial states of recurrent layers that are zero, which is the default.

zeros = ConstantOfShape([2, batch, 64]);  LSTM(x, W, R, B, _, zeros, zeros)  =  LSTM(x, W, R, B)
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.match import uniform
from tersor.ir import Graph, Node
from tersor.pipeline import EXACT, Pass, Rewrite

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}


@dataclass(frozen=True)
class ZeroStates(Pass):
    """No options."""

    keeps = EXACT

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        changed = False
        for index in _STATES.get(node.op, ()):
            state = node.input(index)
            if state is not None and uniform(state) == 0.0:
                graph.set_input(node, index, None)
                changed = True
        return changed
