"""How often rows of a table are looked up on calibration inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.analysis.layers import Reader
from tersor.ir import Graph, Value, extract
from tersor.pipeline import Evaluate, Feeds
from tersor.statistics.observers import Counts
from tersor.statistics.padding import padding_mask


def frequencies(
    graph: Graph, table: Value, lookups: Sequence[Reader], feeds: Feeds, evaluate: Evaluate
) -> np.ndarray:
    """f64[rows], how often each row was looked up on ``feeds``, padding left out; lookups in subgraphs
    are not seen."""
    counts = Counts(table.tensor.shape[0])
    masks = {
        lookup.ids: padding_mask(graph, lookup.node.output)
        for lookup in lookups
        if lookup.node.graph is graph
    }
    if not masks:
        return counts.result
    tapped = extract(graph, None, list(masks))
    for feed in feeds:
        outputs = evaluate(tapped, feed)
        for ids, mask in masks.items():
            counts.update(outputs[ids.name], None if mask is None else feed[mask])
    return counts.result
