"""A residual sum and the normalization that reads it: as two nodes, and as one.

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
_APART = {fused: norm for norm, fused in FUSED.items()}


def fused(graph: Graph, norm: Node) -> Value | None:
    """The result of one node in place of ``norm`` and the Add before it; other readers of the sum read
    that node's second result already. None where no Add is before it.

    Raises:
        Skip: there is one, but they do not make one node.
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
        raise Skip("its mean or deviation is read")
    s = total.output
    names = [norm.output.name] if len(s.uses) == 1 else [norm.output.name, s.name]
    attrs = {"axis": norm.attrs["axis"], "epsilon": norm.attrs["epsilon"]}
    # Readers of s may stand before the norm, so the fused node goes where s was made.
    if any(v is not None and v.producer is not None for v in norm.inputs[1:]):
        raise Skip("its scale or bias is not a constant")
    one = graph.emit_node(
        FUSED[norm.op], [x, skip, *norm.inputs[1:]], attrs, names=names, scope=norm.scope,
        before=total,
    )  # fmt: skip
    if len(names) > 1:
        graph.replace(s, one.outputs[1])
        erase_dead([total])
    return one.output


def split_skip_norms(graph: Graph) -> list[Node]:
    """Makes two nodes of each such node of the outermost level; returns the normalizations."""
    norms = []
    for node in [n for n in graph.nodes if n.op in _APART]:
        with graph.at(node):
            total = graph.emit("Add", node.inputs[:2])
            attrs = {"axis": node.attrs["axis"], "epsilon": node.attrs["epsilon"]}
            made = graph.emit(_APART[node.op], [total, *node.inputs[2:]], attrs)
        assert made.producer is not None
        norms.append(made.producer)
        replace_node(node, [made, total])
    return norms


def fuse_skip_norms(graph: Graph, norms: list[Node]) -> None:
    """Makes one node again of each of ``norms`` that is still there, with the Add that it reads now."""
    for norm in norms:
        if norm.graph is not graph:
            continue
        try:
            one = fused(graph, norm)
        except Skip:
            continue
        if one is not None:
            replace_node(norm, [one])
