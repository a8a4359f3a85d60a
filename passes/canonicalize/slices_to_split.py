"""Slices that partition an axis to one Split: the gates of an unrolled recurrent cell.

g[b, 768]:  Slice(g, 0, 256), Slice(g, 256, 512), Slice(g, 512, 768)  =  Split(g, [256, 256, 256])

Two halves are left alone: later passes recognize rotary embeddings by them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import dims, operand
from tersor.ir import Graph, Node, Value
from tersor.pipeline import EXACT, Context, Pass, erase_dead

LEAST = 3


@dataclass(frozen=True)
class SlicesToSplit(Pass):
    """No options."""

    keeps = EXACT

    def run(self, graph: Graph, context: Context) -> None:
        for owner in list(graph.all_graphs()):
            for value in [v for v in owner.values() if not v.is_constant]:
                parts = _parts(value, owner)
                if len(parts) >= LEAST and context.may_rewrite():
                    _split(owner, value, parts)
                    context.rewrote()


@dataclass(frozen=True)
class _Part:
    """One Slice: the positions ``start`` to ``end`` of ``axis``."""

    node: Node
    axis: int
    start: int
    end: int


def _parts(value: Value, owner: Graph) -> list[_Part]:
    """The Slices of a value in the order of the axis if they partition it; else none."""
    if len(value.uses) < LEAST:
        return []
    slices = [n for n in value.users if n.op == "Slice" and n.graph is owner]
    parts = [part for n in slices if n.inputs[0] is value and (part := _part(n)) is not None]
    parts.sort(key=lambda part: part.start)
    shape = dims(value)
    if len(parts) < LEAST or shape is None or len({part.axis for part in parts}) > 1:
        return []
    bounds = [0, *(part.end for part in parts)]
    starts = [part.start for part in parts]
    return parts if starts == bounds[:-1] and bounds[-1] == shape[parts[0].axis] else []


def _part(node: Node) -> _Part | None:
    starts, ends, axes, steps = (node.input(i) for i in range(1, 5))
    shape = dims(operand(node, 0))
    if shape is None or any(
        v is not None and not v.is_constant for v in (starts, ends, axes, steps)
    ):
        return None
    assert starts is not None and ends is not None
    if starts.numpy().size != 1 or (steps is not None and steps.numpy().reshape(-1)[0] != 1):
        return None
    axis = 0 if axes is None else int(axes.numpy().reshape(-1)[0]) % len(shape)
    size = shape[axis]
    if not isinstance(size, int):
        return None
    start, end = (int(v.numpy().reshape(-1)[0]) for v in (starts, ends))
    start, end = (min(max(p + size if p < 0 else p, 0), size) for p in (start, end))
    return _Part(node, axis, start, end) if start < end else None


def _split(graph: Graph, value: Value, parts: list[_Part]) -> None:
    nodes = {part.node for part in parts}
    first = next(n for n in graph.nodes if n in nodes)
    sizes = graph.constant(np.array([part.end - part.start for part in parts]), "sizes")
    with graph.at(first):
        names = [part.node.output.name for part in parts]
        split = graph.emit_node(
            "Split", [value, sizes], {"axis": parts[0].axis}, names=names, scope=first.scope
        )
    for part, result in zip(parts, split.outputs, strict=True):
        graph.replace(part.node.output, result)
    erase_dead(part.node for part in parts)
