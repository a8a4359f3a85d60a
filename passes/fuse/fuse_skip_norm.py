"""The residual sum and the normalization that reads it, in one op.

    s = x + skip;  y = LayerNormalization(s)   ->   y, s = AddLayerNormalization(x, skip)

and the same with RMSNormalization.  Other readers of s read the second result.
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.ir import Graph, Node
from tersor.pipeline import ROUNDING, Pass, Rewrite
from tersor.transforms.skip_norm import FUSED, fused


@dataclass(frozen=True)
class FuseSkipNorm(Pass):
    """No options."""

    keeps = ROUNDING

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        return fused(graph, node) if node.op in FUSED else None
