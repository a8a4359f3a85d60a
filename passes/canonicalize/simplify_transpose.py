"""Transposes around views that merge dims.

1. A swap of the last two dims on a merged batch of matrices, as exporters write it for heads:
    Reshape(x[a, b, m, n] -> [a*b, m, n]), Transpose(0, 2, 1), Reshape(-> [a, b, n, m])
      = Transpose(x, 0, 1, 3, 2)

2. Dims that are merged between two Transposes, as behind a bidirectional recurrent layer, are merged after
   both, which become one:
    Transpose(Reshape(Transpose(x) as [a, b, c, d] -> [a, b, c*d]), 1, 0, 2)
      = Reshape(Transpose(Transpose(x), 1, 0, 2, 3) -> [b, a, c*d])
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

    keeps = ROUNDING  # Users may sum in another order over another layout.

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
    size, old, new = rank(x), dims(x), dims(out)
    merged = dims(merge.output)
    if size is None or size < 3 or old is None or new is None or merged is None:
        return None
    if None in old or new != (*old[:-2], old[-1], old[-2]) or merged[1:] != old[-2:]:
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
    old, new = dims(inner.output), dims(node.output)
    at = _merged_at(old, dims(merge.output))
    if at is None or old is None or new is None:
        return None
    order = [int(axis) for axis in perm if isinstance(axis, int)]
    wide: list[int] = []
    for axis in order:
        wide += (axis, axis + 1) if axis == at else (axis + (axis > at),)
    written = contents_of(operand(merge, 1))
    reordered = [] if written is None else [written[axis] for axis in order]
    target = reshape_target([old[axis] for axis in wide], new, reordered)
    if target is None:
        return None
    return reshaped(graph, graph.emit("Transpose", [inner.output], {"perm": tuple(wide)}), target)


def _merged_at(old: tuple[Dim, ...] | None, new: tuple[Dim, ...] | None) -> int | None:
    """The axis of ``old`` that a Reshape to ``new`` merges with the next one, keeping all others."""
    if old is None or new is None or len(old) != len(new) + 1 or None in old:
        return None
    for i in range(len(new)):
        both = product(old[i : i + 2])
        if both is not None and (*old[:i], both, *old[i + 2 :]) == new:
            return i
    return None
