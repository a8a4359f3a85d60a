"""Linear layers that read the same value become one with their columns side by side (merged QKV).

    q, k, v = x Wq, x Wk, x Wv   ->   q, k, v = Split(x [Wq | Wk | Wv])

One large product runs nearer to the hardware's limit than three small ones, but the Split copies:
whether it pays is for the backend to measure, so this pass is not part of fusion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import operand
from tersor.ir import Dense, Graph, Node, Value
from tersor.pipeline import ROUNDING, Context, Pass, erase_dead


@dataclass(frozen=True)
class MergeLinears(Pass):
    """No options."""

    keeps = ROUNDING

    def run(self, graph: Graph, context: Context) -> None:
        for owner in list(graph.all_graphs()):
            groups: dict[tuple[Value, object, bool], list[Node]] = {}
            for node in owner.nodes:
                if node.op == "tersor.Linear" and _is_dense(node):
                    key = (operand(node, 0), node.attrs["activation"], node.input(2) is None)
                    groups.setdefault(key, []).append(node)
            for nodes in groups.values():
                if len(nodes) > 1 and context.may_rewrite():
                    _merge(owner, nodes)
                    context.rewrote()


def _is_dense(node: Node) -> bool:
    return all(isinstance(v.encoding, Dense) for v in node.inputs[1:] if v is not None)


def _merge(graph: Graph, nodes: list[Node]) -> None:
    first = nodes[0]
    weights = [operand(n, 1).numpy() for n in nodes]
    with graph.at(first):
        operands: list[Value | None] = [
            operand(first, 0),
            graph.constant(np.concatenate(weights, axis=1), operand(first, 1).name),
        ]
        if first.input(2) is not None:
            bias = np.concatenate([operand(n, 2).numpy() for n in nodes])
            operands.append(graph.constant(bias, operand(first, 2).name))
        wide = graph.emit("tersor.Linear", operands, first.attrs)
        sizes = graph.constant(np.array([w.shape[1] for w in weights]), "columns")
        names = [n.output.name for n in nodes]
        parts = graph.emit_node("Split", [wide, sizes], {"axis": -1}, names=names)
    for node, part in zip(nodes, parts.outputs, strict=True):
        graph.replace(node.output, part)
    erase_dead(nodes)
