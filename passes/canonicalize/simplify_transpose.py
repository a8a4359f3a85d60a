"""Transposes written as matrices of merged dims.

    Reshape(x[a, b, m, n] -> [a*b, m, n]), Transpose(0, 2, 1), Reshape(-> [a, b, n, m])
      = Transpose(x, 0, 1, 3, 2)

which is how exporters swap the last two dims of a batch of heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.match import dims, made_by, operand, rank
from tersor.ir import Graph, Node
from tersor.pipeline import ROUNDING, Pass, Rewrite


@dataclass(frozen=True)
class SimplifyTranspose(Pass):
    """No options."""

    keeps = ROUNDING  # What reads the result may sum in another order over another layout.

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        swap = made_by(operand(node, 0), "Transpose") if node.op == "Reshape" else None
        if swap is None or swap.attrs.get("perm") != (0, 2, 1):
            return None
        merge = made_by(operand(swap, 0), "Reshape")
        if merge is None:
            return None
        x, out = operand(merge, 0), node.output
        size, have, made = rank(x), dims(x), dims(out)
        merged = dims(merge.output)
        if size is None or size < 3 or have is None or made is None or merged is None:
            return None
        lead = have[:-2]
        if None in have or made != (*lead, have[-1], have[-2]) or merged[1:] != have[-2:]:
            return None
        perm = (*range(size - 2), size - 1, size - 2)
        return graph.emit("Transpose", [x], {"perm": perm})
