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

import numpy as np

from tersor.analysis.match import dims, made_by, operand, rank, read_once
from tersor.ir import Dim, Graph, Node
from tersor.ir.dims import product
from tersor.pipeline import ROUNDING, Pass, Rewrite


@dataclass(frozen=True)
class SimplifyTranspose(Pass):
    """No options."""

    keeps = ROUNDING  # What reads the result may sum in another order over another layout.

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        return _merged_later(graph, node) if node.op == "Transpose" else _swapped(graph, node)


def _swapped(graph: Graph, node: Node) -> Rewrite:
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


def _merged_later(graph: Graph, node: Node) -> Rewrite:
    merge = made_by(operand(node, 0), "Reshape")
    inner = made_by(operand(merge, 0), "Transpose") if merge is not None else None
    perm = node.attrs.get("perm")
    if merge is None or inner is None or not isinstance(perm, tuple):
        return None
    if not read_once(merge.output) or not read_once(inner.output):
        return None
    at = _merged_at(dims(inner.output), dims(merge.output))
    target = _target(dims(node.output), perm, at)
    if at is None or target is None:
        return None
    wide: list[int] = []
    for axis in perm:
        assert isinstance(axis, int)
        wide += (axis, axis + 1) if axis == at else (axis + (axis > at),)
    moved = graph.emit("Transpose", [inner.output], {"perm": tuple(wide)})
    return graph.emit("Reshape", [moved, graph.constant(np.array(target, np.int64), "shape")])


def _merged_at(have: tuple[Dim, ...] | None, made: tuple[Dim, ...] | None) -> int | None:
    """The axis of ``have`` that a Reshape merges with the next one, all others being kept."""
    if have is None or made is None or len(have) != len(made) + 1 or None in have:
        return None
    for i in range(len(made)):
        both = product(have[i : i + 2])
        if both is not None and (*have[:i], both, *have[i + 2 :]) == made:
            return i
    return None


def _target(
    made: tuple[Dim, ...] | None, perm: tuple[object, ...], at: int | None
) -> list[int] | None:
    """The shape for a Reshape to ``made`` of the transposed value: what is before the merged dims
    stays in its place (0), the rest are numbers, but for one (-1)."""
    if made is None or at is None:
        return None
    place = perm.index(at)
    rest = [d if isinstance(d, int) else -1 for d in made[place:]]
    return [*[0] * place, *rest] if rest.count(-1) <= 1 else None
