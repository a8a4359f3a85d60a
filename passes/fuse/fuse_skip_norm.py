"""The residual sum and the normalization that reads it, in one op.

    s = x + skip;  y = LayerNormalization(s)   ->   y, s = AddLayerNormalization(x, skip)

and the same with RMSNormalization.  Other readers of s read the second result.
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.match import made_by, operand, same_type
from tersor.ir import Graph, Node
from tersor.pipeline import ROUNDING, Pass, Rewrite, Skip, erase_dead

_FUSED = {
    "LayerNormalization": "tersor.AddLayerNormalization",
    "RMSNormalization": "tersor.AddRMSNormalization",
}


@dataclass(frozen=True)
class FuseSkipNorm(Pass):
    """No options."""

    keeps = ROUNDING

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op not in _FUSED:
            return None
        total = made_by(operand(node, 0), "Add")
        if total is None or total.graph is not graph:
            return None
        x, skip = operand(total, 0), operand(total, 1)
        if not same_type(x, skip):
            raise Skip("the addends are of different types")
        if x.is_constant or skip.is_constant:
            raise Skip("an addend is a constant")
        if any(v.uses for v in node.outputs[1:]):
            raise Skip("its mean or deviation is read")
        s = total.output
        names = [node.output.name] if len(s.uses) == 1 else [node.output.name, s.name]
        attrs = {"axis": node.attrs["axis"], "epsilon": node.attrs["epsilon"]}
        operands = [x, skip, *node.inputs[1:]]
        # Readers of s may stand before the norm, so the fused node goes where s was made.
        if any(v is not None and v.producer is not None for v in node.inputs[1:]):
            raise Skip("its scale or bias is not a constant")
        fused = graph.emit_node(
            _FUSED[node.op], operands, attrs, names=names, scope=node.scope, before=total
        )
        if len(names) > 1:
            graph.replace(s, fused.outputs[1])
            erase_dead([total])
        return fused.output
