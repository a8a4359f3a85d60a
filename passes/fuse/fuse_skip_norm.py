"""Fuses a residual sum with the normalization that reads it.

    s = x + skip;  y = LayerNormalization(s)   ->   y, s = AddLayerNormalization(x, skip)

and likewise RMSNormalization.  Other users of s read the second result.
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.ir import Graph, Node
from tersor.pipeline import ROUNDING, Pass, Rewrite
from tersor.transforms.skip_norm import FUSED, fused_skip_norm


@dataclass(frozen=True)
class FuseSkipNorm(Pass):
    """No options."""

    keeps = ROUNDING

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        return fused_skip_norm(graph, node) if node.op in FUSED else None
