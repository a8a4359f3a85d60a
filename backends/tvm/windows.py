"""Turns boolean masks over positions into windows of Attention, so that keys outside a block's window cost
nothing, and no mask over all queries and keys is read.

    Attention(q, k, v, (j <= i) & padding)   =   Attention(q, k, v, padding) {right_window_size = 0}
"""

from __future__ import annotations

from typing import Any

from tersor.analysis.attention_window import attention_window
from tersor.ir import Attribute, DType, Graph, Node
from tersor.pipeline.rewriting import erase_dead, replace_node


def set_windows(graph: Graph) -> None:
    """Rewrites every attention whose first query has the position of its first key."""
    for node in list(graph.nodes):
        if node.op == "Attention" and node.input(4) is None and node.input(6) is None:
            _set_window(graph, node)


def _set_window(graph: Graph, node: Node) -> None:
    mask, k = node.input(3), node.inputs[1]
    if mask is None or k is None or mask.tensor.dtype is not DType.BOOL:
        return
    shape, keys = mask.tensor.dims, k.tensor.dims
    # A shorter mask excludes the keys beyond its end.
    if not shape or not keys or len(shape) != 4 or shape[3] is None or shape[3] != keys[-2]:
        return
    window = attention_window(mask)
    if (window.left, window.right) == (-1, -1) or len(window.rest) > 1:
        return
    (rest,) = window.rest or (None,)
    if rest is not None and (rest.tensor.rank not in (2, 3, 4) or rest.tensor.dims[-1] != shape[3]):  # type: ignore[index]
        return
    attrs: dict[str, Attribute] = dict(node.attrs)
    for name, limit in (("left_window_size", window.left), ("right_window_size", window.right)):
        current: Any = attrs.get(name, -1)
        attrs[name] = min((n for n in (current, limit) if n >= 0), default=-1)
    with graph.at(node):
        windowed = graph.emit_node(
            "Attention", [*node.inputs[:3], rest], attrs, types=[v.type for v in node.outputs],
            names=[v.name for v in node.outputs],
        )  # fmt: skip
    replace_node(node, windowed.outputs)
    if mask.producer is not None:
        erase_dead([mask.producer])
