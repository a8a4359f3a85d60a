"""Attention on keys and values concatenated to a cache, to Attention with past and present.

k = Concat(past_k, new_k, axis 2), likewise v;   Attention(q, k, v, mask)
  = Attention(q, new_k, new_v, mask, past_k, past_v) -> y, k, v
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.match import dims, operand, producer_if
from tersor.ir import Graph, Node, Value
from tersor.pipeline import EXACT, Pass, Rewrite, Skip, erase_dead


@dataclass(frozen=True)
class AttentionCache(Pass):
    """No options."""

    keeps = EXACT

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op != "Attention" or len(node.outputs) > 1 or len(node.inputs) > 4:
            return None
        joins = [_join(operand(node, i)) for i in (1, 2)]
        k, v = joins
        if k is None or v is None or k is v:
            return None
        if node.attrs["is_causal"] or node.attrs.get("left_window_size", -1) != -1:
            raise Skip(
                "its positions count from the first key; with a past they would count from the last"
            )
        for join in (k, v):
            if any(isinstance(u.user, Node) and u.user is not node for u in join.output.uses):
                raise Skip("its keys or values have another user")
            if join.graph is not graph:
                raise Skip("its keys or values are concatenated outside the subgraph")
        pasts, news = zip(*((operand(j, 0), operand(j, 1)) for j in (k, v)), strict=True)
        fused = graph.emit_node(
            "Attention",
            [node.inputs[0], *news, node.input(3), *pasts],
            node.attrs,
            names=[node.output.name, k.output.name, v.output.name],
            scope=node.scope,
        )
        for join, present in zip((k, v), fused.outputs[1:], strict=True):
            graph.replace(join.output, present)
            erase_dead([join])
        return fused.outputs[0]


def _join(value: Value) -> Node | None:
    """The Concat of two [batch, heads, length, d] along the length that produces ``value``."""
    join = producer_if(value, "Concat")
    if join is None or len(join.inputs) != 2 or join.attrs["axis"] not in (2, -2):
        return None
    shapes = [dims(operand(join, i)) for i in (0, 1)]
    if any(s is None or len(s) != 4 or None in s for s in shapes):
        return None
    return join
