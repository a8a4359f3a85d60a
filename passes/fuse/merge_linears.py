"""Merges linear layers of the same input into one with their columns side by side (merged QKV).

    q, k, v = x Wq, x Wk, x Wv   ->   q, k, v = Split(x [Wq | Wk | Wv])

Weights may have any encoding, if it is the same for all.  One large product uses the hardware better than
three small ones, but the Split copies.  The backend measures whether it pays, so this pass is not part of
fusion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import operand
from tersor.ir import Graph, Node, Value, concat
from tersor.pipeline import ROUNDING, Context, Pass, erase_dead


@dataclass(frozen=True)
class MergeLinears(Pass):
    """No options."""

    keeps = ROUNDING

    def run(self, graph: Graph, context: Context) -> None:
        for owner in list(graph.all_graphs()):
            groups: dict[tuple[object, ...], list[Node]] = {}
            for node in owner.nodes:
                if node.op == "tersor.Linear" and (form := _form(node)):
                    key = (_quantized(operand(node, 0)), node.attrs["activation"], *form)
                    groups.setdefault(key, []).append(node)
            for nodes in groups.values():
                if len(nodes) > 1 and context.may_rewrite():
                    _merge(owner, nodes)
                    context.rewrote()


def _form(node: Node) -> tuple[object, ...]:
    """What must agree for layers to be merged, besides their input; empty if they cannot be."""
    weight, bias = operand(node, 1).encoding, node.input(2)
    if weight is None or (bias is not None and not bias.is_dense):
        return ()
    key = weight.unmasked.concat_key(1)
    return () if key is None else (*key, bias is None)


def _quantized(x: Value) -> Value:
    """The value that ``x`` is dequantized from, else ``x``: two dequantizers of one value are the same."""
    producer = x.producer
    if producer is None or producer.op != "DequantizeLinear":
        return x
    return operand(producer, 0)


def _merge(graph: Graph, nodes: list[Node]) -> None:
    first = nodes[0]
    weights = [e for n in nodes if (e := operand(n, 1).encoding) is not None]
    with graph.at(first):
        operands: list[Value | None] = [
            operand(first, 0),
            graph.constant(concat(weights, 1), operand(first, 1).name),
        ]
        if first.input(2) is not None:
            bias = np.concatenate([operand(n, 2).numpy() for n in nodes])
            operands.append(graph.constant(bias, operand(first, 2).name))
        wide = graph.emit("tersor.Linear", operands, first.attrs)
        sizes = graph.constant(np.array([operand(n, 1).tensor.shape[1] for n in nodes]), "columns")
        names = [n.output.name for n in nodes]
        parts = graph.emit_node("Split", [wide, sizes], {"axis": -1}, names=names)
    for node, part in zip(nodes, parts.outputs, strict=True):
        graph.replace(node.output, part)
    erase_dead(nodes)
