"""Linear layers by their weight, and what calibration tells of what they read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.ir import Graph, Node, Value
from tersor.numerics.lowrank import centred
from tersor.pipeline import Context
from tersor.statistics.gram import Gram, grams
from tersor.statistics.observing import TAPS


@dataclass
class LinearLayer:
    """A weight W[k, n] and the nodes that multiply by it, several where they are tied.

    Attributes:
        gram: second moments of what all of the nodes read; None where nothing was seen.
    """

    weight: Value
    nodes: list[Node]
    gram: Gram | None = None

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.nodes[0].scope or self.nodes[0].output.name

    @property
    def shape(self) -> tuple[int, int]:
        """(k, n)."""
        k, n = self.weight.tensor.shape
        return k, n

    @property
    def dense(self) -> np.ndarray:
        """W, f64[k, n]."""
        return self.weight.numpy().astype(np.float64)

    @property
    def reads(self) -> list[Value]:
        """What the nodes multiply, each value once."""
        return list(dict.fromkeys(x for n in self.nodes if (x := n.inputs[0]) is not None))

    @property
    def about(self) -> np.ndarray:
        """f64[k, k], second moments about the mean row of what was seen."""
        assert self.gram is not None
        return centred(self.gram.xtx, self.gram.total, self.gram.rows)


def by_weight(nodes: Sequence[Node]) -> list[LinearLayer]:
    """tersor.Linear nodes in layers, in order."""
    found: dict[Value, list[Node]] = {}
    for node in nodes:
        weight = node.inputs[1]
        assert weight is not None
        found.setdefault(weight, []).append(node)
    return [LinearLayer(weight, readers) for weight, readers in found.items()]


def observed(
    graph: Graph, layers: Sequence[LinearLayer], context: Context
) -> Iterator[LinearLayer]:
    """``layers`` with their moments, where there is calibration and they are of the outermost level;
    each layer's are let go of after it, as they may be larger than its weight."""
    for start in range(0, len(layers), TAPS):
        group = layers[start : start + TAPS]
        seen: dict[Value, Gram] = {}
        if context.calibration and context.evaluate is not None:
            reads = [x for layer in group for x in layer.reads if x.graph is graph]
            seen = grams(graph, reads, context.calibration, context.evaluate)
        for layer in group:
            layer.gram = _sum([seen[x] for x in layer.reads if x in seen])
            yield layer
            layer.gram = None


def _sum(found: Sequence[Gram]) -> Gram | None:
    """None where nothing was seen, or what was holds NaN or infinity."""
    if not found or not any(g.rows for g in found):
        return None
    total = Gram(
        np.sum([g.xtx for g in found], axis=0),
        np.sum([g.total for g in found], axis=0),
        sum(g.rows for g in found),
    )
    return total if np.isfinite(total.xtx).all() else None
