"""Linear layers that read the same value become one with their columns side by side (merged QKV).

    q, k, v = x Wq, x Wk, x Wv   ->   q, k, v = Split(x [Wq | Wk | Wv])

Float weights and int8 weights with a scale a column alike.  One large product runs nearer to the
hardware's limit than three small ones, but the Split copies: whether it pays is for the backend to
measure, so this pass is not part of fusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import operand
from tersor.ir import Affine, Dense, Encoding, Graph, Masked, Node, Value
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
    """What must agree for layers to be merged, besides their input; empty where they cannot be."""
    held, bias = operand(node, 1).encoding, node.input(2)
    weight = held.unmasked if held is not None else None
    if bias is not None and not isinstance(bias.encoding, Dense):
        return ()
    if isinstance(weight, Dense):
        return ("dense", bias is None)
    if isinstance(weight, Affine) and weight.axis == 1 and not weight.block:
        return (weight.storage, bias is None)
    return ()


def _quantized(x: Value) -> Value:
    """What ``x`` is dequantized from, else itself: two dequantizers of one value are the same."""
    maker = x.producer
    if maker is None or maker.op != "DequantizeLinear":
        return x
    return operand(maker, 0)


def _merge(graph: Graph, nodes: list[Node]) -> None:
    first = nodes[0]
    weights = [e for n in nodes if (e := operand(n, 1).encoding) is not None]
    with graph.at(first):
        operands: list[Value | None] = [
            operand(first, 0),
            graph.constant(_side_by_side(weights), operand(first, 1).name),
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


def _side_by_side(weights: Sequence[Encoding]) -> Encoding:
    """The columns of all; with a mask where one has it, which covers the others whole."""
    whole = _columns(weights)
    if not any(isinstance(w, Masked) for w in weights):
        return whole
    masks = [w.mask if isinstance(w, Masked) else np.ones(w.type.shape, bool) for w in weights]
    return Masked.of(np.concatenate(masks, axis=1), whole)


def _columns(weights: Sequence[Encoding]) -> Dense | Affine:
    affine = [w.unmasked for w in weights if isinstance(w.unmasked, Affine)]
    if not affine:
        return Dense(np.concatenate([w.decode() for w in weights], axis=1))
    return Affine(
        np.concatenate([w.values for w in affine], axis=1),
        np.concatenate([w.scale for w in affine]),
        np.concatenate([w.zero_point for w in affine]),
        axis=1,
    )
