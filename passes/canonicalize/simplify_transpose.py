"""Transposes around views that merge dims.

1. A swap of the last two dims that is written on a batch of matrices:
    Reshape(x[a, b, m, n] -> [a*b, m, n]), Transpose(0, 2, 1), Reshape(-> [a, b, n, m])
      = Transpose(x, 0, 1, 3, 2)

which is how exporters swap the last two dims of a batch of heads.

2. Dims that are merged between two Transposes are merged after both, which are then one:
    Transpose(Reshape(Transpose(x) as [a, b, c, d] -> [a, b, c*d]), 1, 0, 2)
      = Reshape(Transpose(Transpose(x), 1, 0, 2, 3) -> [b, a, c*d])
which is what exporters write behind a bidirectional recurrent layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.match import dims, has_one_use, operand, producer_if, rank
from tersor.ir import Dim, Graph, Node
from tersor.ir.dims import product
from tersor.ops import contents_of
from tersor.pipeline import ROUNDING, Pass, Rewrite
from tersor.transforms.reshapes import reshape_target, reshaped


@dataclass(frozen=True)
class SimplifyTranspose(Pass):
    """No options."""

    keeps = ROUNDING  # What reads the result may sum in another order over another layout.

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        return _merged_later(graph, node) if node.op == "Transpose" else _swapped(graph, node)


def _swapped(graph: Graph, node: Node) -> Rewrite:
    swap = producer_if(operand(node, 0), "Transpose") if node.op == "Reshape" else None
    if swap is None or swap.attrs.get("perm") != (0, 2, 1):
        return None
    merge = producer_if(operand(swap, 0), "Reshape")
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


def _merged_later(graph: Graph, node: Node) -> Rewrite:
    merge = producer_if(operand(node, 0), "Reshape")
    inner = producer_if(operand(merge, 0), "Transpose") if merge is not None else None
    perm = node.attrs.get("perm")
    if merge is None or inner is None or not isinstance(perm, tuple):
        return None
    if not has_one_use(merge.output) or not has_one_use(inner.output):
        return None
    have, made = dims(inner.output), dims(node.output)
    at = _merged_at(have, dims(merge.output))
    if at is None or have is None or made is None:
        return None
    order = [int(axis) for axis in perm if isinstance(axis, int)]
    wide: list[int] = []
    for axis in order:
        wide += (axis, axis + 1) if axis == at else (axis + (axis > at),)
    written = contents_of(operand(merge, 1))
    turned = [] if written is None else [written[axis] for axis in order]
    target = reshape_target([have[axis] for axis in wide], made, turned)
    if target is None:
        return None
    return reshaped(graph, graph.emit("Transpose", [inner.output], {"perm": tuple(wide)}), target)


def _merged_at(have: tuple[Dim, ...] | None, made: tuple[Dim, ...] | None) -> int | None:
    """The axis of ``have`` that a Reshape merges with the next one, all others being kept."""
    if have is None or made is None or len(have) != len(made) + 1 or None in have:
        return None
    for i in range(len(made)):
        both = product(have[i : i + 2])
        if both is not None and (*have[:i], both, *have[i + 2 :]) == made:
            return i
    return None
