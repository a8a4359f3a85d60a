"""Layers that hardly turn their input are left out (Gromov et al. 2024, arXiv 2403.17887).

    d(u, v) = arccos(mean cos(u_i, v_i)) / pi,       u_i, v_i: rows that enter and that leave a layer

0: all rows go on in the direction they came in; 1/2: at right angles. A layer from u to v is dropped by
letting the readers of v read u. Of ``count`` layers in a row it is the distance from the first one's
entry to the last one's exit that counts.

Whole blocks (attention and feed-forward) as well as single sublayers are found by what repeats in the
graph (:mod:`tersor.analysis.residual`).
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

    count: how many layers go.
    amount: or which share of all layers goes, rounded to the nearest number.
    unit: what a layer is: ``block``, or ``sublayer``, an attention or a feed-forward by itself.
    consecutive: they go from one place, all at once; else one by one from anywhere, each after the
        others have been taken out and the distances have been measured again.
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
            context.remark(f"no {self.unit} repeats itself: nothing to drop")
        elif all(layer.pinned for layer in layers):
            context.remark("all layers have to stay: nothing to drop")
        elif not count:
            context.remark(f"none of {len(layers)} layers is to go: give count or amount")
        else:
            norms = split_skip_norms(graph)
            for size in [count] if self.consecutive else [1] * count:
                self._drop(graph, size, context)
            fuse_skip_norms(graph, norms)
            kept = len(layers) - count
            context.remark(f"{kept} of {len(layers)} layers are left")

    def _how_many(self, layers: Sequence[Layer]) -> int:
        """
        Raises:
            InvalidOption: no layer would be left, or fewer may go; it is said twice.
        """
        if self.count and self.amount:
            raise InvalidOption(f"{self.label}: give count or amount, not both")
        total, pinned = len(layers), [layer for layer in layers if layer.pinned]
        count = self.count or round(self.amount * total)
        if not total or len(pinned) == total:
            return 0
        if count >= total:
            raise InvalidOption(
                f"{self.label}: of {total} layers, {count} cannot go: one has to stay"
            )
        if count > total - len(pinned):
            raise InvalidOption(
                f"{self.label}: of {total} layers, {count} cannot go: {len(pinned)} have to stay, "
                f"{pinned[0].where} since {pinned[0].pinned}"
            )
        return count

    def _drop(self, graph: Graph, size: int, context: Context) -> None:
        """Drops the ``size`` layers in a row that turn their input least."""
        assert context.evaluate is not None
        spans = [
            part[i : i + size]
            for part in find_layers(graph, self.unit)
            for i in range(len(part) - size + 1)
            if not any(layer.pinned for layer in part[i : i + size])
        ]
        if not spans:
            raise InvalidOption(
                f"{self.label}: nowhere do {size} layers follow each other that may all go"
            )
        context.progress(0, 1, f"measuring {len(spans)} layers")
        pairs = [(span[0].entry, span[-1].exit) for span in spans]
        found = angular_distances(graph, pairs, context.calibration, context.evaluate)
        best = int(np.argmin(found))
        entry, exit = pairs[best]
        for layer in spans[best]:
            way = f"%{layer.entry.name} to %{layer.exit.name}"
            context.remark(f"from {way}", layer=layer.where, method="dropped")
            context.rewrote()
        context.remark(f"angular distance {found[best]:.4f}; elsewhere up to {max(found):.4f}")
        graph.replace(exit, entry)
        if exit.producer is not None:
            erase_dead([exit.producer])


def angular_distances(
    graph: Graph, pairs: Sequence[Pair], feeds: Feeds, evaluate: Evaluate
) -> list[float]:
    """How far the second of each pair of values is turned from the first, 0 to 1, over all rows of
    ``feeds`` that are no padding; 1 where no cosine is a number."""
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
    """f64[n, k]: the positions of a sequence; the samples of a map of pixels, each as a whole."""
    if array.ndim > 3:
        return np.asarray(array, np.float64).reshape(len(array), -1)
    return real_rows(array, None if mask is None else feed[mask]).astype(np.float64)
