"""Attention between a split of the hidden axis into heads and a merge back, to Attention on [batch, length,
heads*d] without reshapes and transposes.

    q = Transpose(Reshape(x[b, s, h*d] -> [b, s, h, d]), 0 2 1 3), likewise k and v
    y = Reshape(Transpose(Attention(q, k, v), 0 2 1 3) -> [b, s, h*d])
      = Attention(x, x_k, x_v) {q_num_heads = h, kv_num_heads = ...}

Past and present keys and values stay [batch, heads, length, d].
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.match import dims, has_one_use, operand, producer_if
from tersor.ir import Graph, Node, Value
from tersor.pipeline import ROUNDING, Pass, Rewrite, Skip


@dataclass(frozen=True)
class AttentionToHidden(Pass):
    """No options."""

    keeps = ROUNDING

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        merge = producer_if(operand(node, 0), "Transpose") if node.op == "Reshape" else None
        attention = producer_if(operand(merge, 0), "Attention") if merge is not None else None
        if merge is None or attention is None or merge.attrs.get("perm") != (0, 2, 1, 3):
            return None
        if len(attention.outputs) > 3 or len(attention.inputs) > 6:
            raise Skip("its scores are used, or it reads the lengths of a padded cache")
        out, heads = dims(attention.output), attention.inputs
        key = dims(operand(attention, 1))
        if out is None or key is None or len(out) != 4:
            return None
        heads_out, size = out[1], out[3]
        if (
            not isinstance(heads_out, int)
            or not isinstance(size, int)
            or not isinstance(key[1], int)
        ):
            return None
        if dims(node.output) != (out[0], out[2], heads_out * size):
            return None
        if not has_one_use(attention.output) or not has_one_use(merge.output):
            raise Skip("its result has another user")
        q, k, v = (_before_split(x) for x in heads[:3] if x is not None)
        if q is None or k is None or v is None:
            raise Skip("an operand was not split from the hidden axis")
        attrs = {**attention.attrs, "q_num_heads": heads_out, "kv_num_heads": key[1]}
        # Users of the present keys and values may precede the merge.
        hidden = graph.emit_node(
            "Attention",
            [q, k, v, *heads[3:]],
            attrs,
            names=[""] * len(attention.outputs),
            scope=attention.scope,
            before=attention,
        )
        for old, new in zip(attention.outputs[1:], hidden.outputs[1:], strict=True):
            graph.replace(old, new)
        return hidden.outputs[0]


def _before_split(x: Value) -> Value | None:
    """The [b, s, h*d] that x[b, h, s, d] was split from."""
    transpose = producer_if(x, "Transpose")
    if transpose is None or transpose.attrs.get("perm") != (0, 2, 1, 3):
        return None
    reshape = producer_if(operand(transpose, 0), "Reshape")
    if reshape is None:
        return None
    hidden = operand(reshape, 0)
    merged, split = dims(hidden), dims(reshape.output)
    if merged is None or split is None or len(merged) != 3 or len(split) != 4:
        return None
    if merged[:2] != split[:2] or None in (*merged, *split):
        return None
    return hidden if merged[2] == split[2] * split[3] else None  # type: ignore[operator, arg-type]
