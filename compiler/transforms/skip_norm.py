"""Fusing a residual sum with the normalization that reads it, and splitting them again.

    s = x + skip;  y = LayerNormalization(s)   <->   y, s = tersor.AddLayerNormalization(x, skip)

and the same with RMSNormalization.
"""

from __future__ import annotations

from tersor.analysis.match import operand, producer_if, same_type
from tersor.ir import Graph, Node, Value
from tersor.pipeline.rewriting import Skip, erase_dead, replace_node

FUSED = {
    "LayerNormalization": "tersor.AddLayerNormalization",
    "RMSNormalization": "tersor.AddRMSNormalization",
}
_NORMS = {fused: norm for norm, fused in FUSED.items()}


def fused_skip_norm(graph: Graph, norm: Node) -> Value | None:
    """The result of a fused node for ``norm`` and the Add that it reads; other users of the sum are moved
    to the fused node's second result. None where ``norm`` reads no Add.

    Raises:
        Skip: it reads one, but they cannot be fused.
    """
    total = producer_if(operand(norm, 0), "Add")
    if total is None or total.graph is not graph:
        return None
    x, skip = operand(total, 0), operand(total, 1)
    if not same_type(x, skip):
        raise Skip("the addends are of different types")
    if x.is_constant or skip.is_constant:
        raise Skip("an addend is a constant")
    if any(v.uses for v in norm.outputs[1:]):
        raise Skip("its mean or deviation is used")
    s = total.output
    names = [norm.output.name] if len(s.uses) == 1 else [norm.output.name, s.name]
    attrs = {"axis": norm.attrs["axis"], "epsilon": norm.attrs["epsilon"]}
    # Users of s may precede the norm, so the fused node goes where the Add was.
    if any(v is not None and v.producer is not None for v in norm.inputs[1:]):
        raise Skip("its scale or bias is not a constant")
    node = graph.emit_node(
        FUSED[norm.op], [x, skip, *norm.inputs[1:]], attrs, names=names, scope=norm.scope,
        before=total,
    )  # fmt: skip
    if len(names) > 1:
        graph.replace(s, node.outputs[1])
        erase_dead([total])
    return node.output


def split_skip_norms(graph: Graph) -> list[Node]:
    """Splits each fused node of ``graph`` (not of subgraphs) in two; returns the normalizations."""
    norms = []
    for node in [n for n in graph.nodes if n.op in _NORMS]:
        with graph.at(node):
            total = graph.emit("Add", node.inputs[:2])
            attrs = {"axis": node.attrs["axis"], "epsilon": node.attrs["epsilon"]}
            result = graph.emit(_NORMS[node.op], [total, *node.inputs[2:]], attrs)
        assert result.producer is not None
        norms.append(result.producer)
        replace_node(node, [result, total])
    return norms


def fuse_skip_norms(graph: Graph, norms: list[Node]) -> None:
    """Fuses each of ``norms`` that is still in ``graph`` with the Add that it now reads."""
    for norm in norms:
        if norm.graph is not graph:
            continue
        try:
            result = fused_skip_norm(graph, norm)
        except Skip:
            continue
        if result is not None:
            replace_node(norm, [result])
