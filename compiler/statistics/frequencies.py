"""How often rows of a table are looked up on calibration inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.analysis.layers import Reader
from tersor.ir import Graph, Value
from tersor.pipeline import Evaluate, Feeds
from tersor.statistics.calibration import tap
from tersor.statistics.padding import padding_mask


def frequencies(
    graph: Graph, table: Value, lookups: Sequence[Reader], feeds: Feeds, evaluate: Evaluate
) -> np.ndarray:
    """f64[rows], how often each row was looked up on ``feeds``, padding left out; lookups in subgraphs
    are not seen."""
    counts = np.zeros(table.tensor.shape[0])
    masks = {
        lookup.ids: padding_mask(graph, lookup.node.output)
        for lookup in lookups
        if lookup.node.graph is graph
    }
    if not masks:
        return counts
    tapped = tap(graph, list(masks))
    for feed in feeds:
        outputs = evaluate(tapped, feed)
        for ids, mask in masks.items():
            asked = outputs[ids.name].reshape(-1)
            kept = feed[mask].reshape(-1) if mask is not None else None
            if kept is not None and len(kept) == len(asked):
                asked = asked[kept != 0]
            np.add.at(counts, asked, 1)
    return counts
