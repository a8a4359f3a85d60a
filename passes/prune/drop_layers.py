"""Drops the layers that change the direction of their input least (Gromov et al. 2024, arXiv 2403.17887).

    d(u, v) = arccos(mean cos(u_i, v_i)) / pi,       u_i, v_i: rows of a layer's input and output

0: the direction is unchanged; 1/2: right angles. To drop a layer from u to v, users of v read u instead. The
distance of ``count`` consecutive layers is that from the input of the first to the output of the last.

A layer is a block (attention and feed-forward) or a sublayer, whichever repeats in the graph
(:mod:`tersor.analysis.residual`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from tersor.analysis.residual import Layer, Unit, find_layers
from tersor.errors import InvalidOption
from tersor.ir import Graph, Value, extract
from tersor.pipeline import LOSSY, Context, Evaluate, Feeds, Pass, erase_dead
from tersor.statistics.observers import real_rows
from tersor.statistics.padding import padding_mask
from tersor.transforms.skip_norm import fuse_skip_norms, split_skip_norms

Pair = tuple[Value, Value]


@dataclass(frozen=True)
class DropLayers(Pass):
    """Options:

    count: number of layers to drop.
    amount: alternatively, the share of all layers to drop, rounded to the nearest number.
    unit: what counts as a layer: ``block``, or ``sublayer``, a single attention or feed-forward.
    consecutive: drop consecutive layers at once; else one by one, measuring again after each.
    """

    keeps = LOSSY
    budget = frozenset({"count", "amount"})
    needs: ClassVar[frozenset[str]] = frozenset({"calibration", "evaluate"})
    count: Annotated[int, Field(ge=0)] = 0
    amount: Annotated[float, Field(ge=0, le=1)] = 0.0
    unit: Unit = "block"
    consecutive: bool = True

    def run(self, graph: Graph, context: Context) -> None:
        whole = graph.copy()
        split_skip_norms(whole)
        layers = list(itertools.chain(*find_layers(whole, self.unit)))
        for layer in layers:
            if layer.pinned:
                context.skip(layer.nodes[-1], layer.pinned, method=f"layer {layer.where} stays")
        count = self._how_many(layers)
        if not layers:
            context.remark(f"no {self.unit} repeats: nothing to drop")
        elif all(layer.pinned for layer in layers):
            context.remark("no layer can be dropped: nothing to drop")
        elif not count:
            context.remark(f"0 of {len(layers)} layers to drop: set count or amount")
        else:
            norms = split_skip_norms(graph)
            for size in [count] if self.consecutive else [1] * count:
                self._drop(graph, size, context)
            fuse_skip_norms(graph, norms)
            kept = len(layers) - count
            context.remark(f"{kept} of {len(layers)} layers are left")

    def _how_many(self, layers: Sequence[Layer]) -> int:
        """The number of layers to drop.

        Raises:
            InvalidOption: too many, or both options are set.
        """
        if self.count and self.amount:
            raise InvalidOption(f"{self.label}: set count or amount, not both")
        total, pinned = len(layers), [layer for layer in layers if layer.pinned]
        count = self.count or round(self.amount * total)
        if not total or len(pinned) == total:
            return 0
        if count >= total:
            raise InvalidOption(
                f"{self.label}: cannot drop {count} of {total} layers: one has to stay"
            )
        if count > total - len(pinned):
            raise InvalidOption(
                f"{self.label}: cannot drop {count} of {total} layers: {len(pinned)} have to stay, "
                f"{pinned[0].where} because {pinned[0].pinned}"
            )
        return count

    def _drop(self, graph: Graph, size: int, context: Context) -> None:
        """Drops the ``size`` consecutive layers with the smallest angular distance."""
        assert context.evaluate is not None
        spans = [
            part[i : i + size]
            for part in find_layers(graph, self.unit)
            for i in range(len(part) - size + 1)
            if not any(layer.pinned for layer in part[i : i + size])
        ]
        if not spans:
            raise InvalidOption(
                f"{self.label}: there are no {size} consecutive layers that can all be dropped"
            )
        context.progress(0, 1, f"measuring {len(spans)} layers")
        pairs = [(span[0].entry, span[-1].exit) for span in spans]
        distances = angular_distances(graph, pairs, context.calibration, context.evaluate)
        best = int(np.argmin(distances))
        entry, exit = pairs[best]
        for layer in spans[best]:
            way = f"%{layer.entry.name} to %{layer.exit.name}"
            context.remark(f"from {way}", layer=layer.where, method="dropped")
            context.rewrote()
        context.remark(
            f"angular distance {distances[best]:.4f}; elsewhere up to {max(distances):.4f}"
        )
        graph.replace(exit, entry)
        if exit.producer is not None:
            erase_dead([exit.producer])


def angular_distances(
    graph: Graph, pairs: Sequence[Pair], feeds: Feeds, evaluate: Evaluate
) -> list[float]:
    """The angular distance, 0 to 1, between the values of each pair over all rows of ``feeds`` but padding;
    1 if no cosine is finite."""
    values = list(dict.fromkeys(v for pair in pairs for v in pair))
    tapped = extract(graph, None, values)
    masks = {v: padding_mask(graph, v) for v in values}
    sums, rows = np.zeros(len(pairs)), np.zeros(len(pairs))
    for feed in feeds:
        outputs = evaluate(tapped, feed)
        for i, pair in enumerate(pairs):
            u, v = (_rows(outputs[x.name], feed, masks[x]) for x in pair)
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                norms = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
                cosines = (u * v).sum(axis=1) / norms
            known = np.isfinite(cosines)
            sums[i] += cosines[known].sum()
            rows[i] += known.sum()
    mean = np.where(rows > 0, sums / np.maximum(rows, 1), -1)
    return [float(d) for d in np.arccos(np.clip(mean, -1, 1)) / np.pi]


def _rows(array: np.ndarray, feed: Mapping[str, np.ndarray], mask: str | None) -> np.ndarray:
    """f64[n, k]: the positions of a sequence, or whole samples of images."""
    if array.ndim > 3:
        return np.asarray(array, np.float64).reshape(len(array), -1)
    return real_rows(array, None if mask is None else feed[mask]).astype(np.float64)
