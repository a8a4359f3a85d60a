"""What boolean masks say by positions, told to Attention as a window: keys that no query of a block sees
cost nothing then, and no mask of all queries and keys is read.

    Attention(q, k, v, (j <= i) & padding)   =   Attention(q, k, v, padding) {right_window_size = 0}
"""

from __future__ import annotations

from typing import Any

from tersor.analysis.attention_window import attention_window
from tersor.ir import Attribute, DType, Graph, Node
from tersor.pipeline.rewriting import erase_dead, replace_node


def tell_windows(graph: Graph) -> None:
    """Of every attention whose queries are counted from its first key on."""
    for node in list(graph.nodes):
        if node.op == "Attention" and node.input(4) is None and node.input(6) is None:
            _tell(graph, node)


def _tell(graph: Graph, node: Node) -> None:
    mask, k = node.input(3), node.inputs[1]
    if mask is None or k is None or mask.tensor.dtype is not DType.BOOL:
        return
    shape, keys = mask.tensor.dims, k.tensor.dims
    # A mask that does not reach all keys leaves the others out.
    if not shape or not keys or len(shape) != 4 or shape[3] is None or shape[3] != keys[-2]:
        return
    found = attention_window(mask)
    if (found.left, found.right) == (-1, -1) or len(found.rest) > 1:
        return
    (rest,) = found.rest or (None,)
    if rest is not None and (rest.tensor.rank not in (2, 3, 4) or rest.tensor.dims[-1] != shape[3]):  # type: ignore[index]
        return
    attrs: dict[str, Attribute] = dict(node.attrs)
    for name, far in (("left_window_size", found.left), ("right_window_size", found.right)):
        have: Any = attrs.get(name, -1)
        attrs[name] = min((n for n in (have, far) if n >= 0), default=-1)
    with graph.at(node):
        told = graph.emit_node(
            "Attention", [*node.inputs[:3], rest], attrs, types=[v.type for v in node.outputs],
            names=[v.name for v in node.outputs],
        )  # fmt: skip
    replace_node(node, told.outputs)
    if mask.producer is not None:
        erase_dead([mask.producer])
