"""How often rows of a table are looked up on calibration inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.analysis.layers import Reader
from tersor.ir import Graph, Value, extract
from tersor.pipeline import Evaluate, Feeds
from tersor.statistics.padding import padding_mask


def frequencies(
    graph: Graph, table: Value, lookups: Sequence[Reader], feeds: Feeds, evaluate: Evaluate
) -> np.ndarray:
    """f64[rows], how often each row was looked up on ``feeds``, padding left out. Lookups in subgraphs are
    not counted."""
    total = np.zeros(table.tensor.shape[0])
    masks = {
        lookup.ids: padding_mask(graph, lookup.node.output)
        for lookup in lookups
        if lookup.node.graph is graph
    }
    if not masks:
        return total
    tapped = extract(graph, None, list(masks))
    for feed in feeds:
        outputs = evaluate(tapped, feed)
        for ids, mask in masks.items():
            add_counts(total, outputs[ids.name], None if mask is None else feed[mask])
    return total


def add_counts(total: np.ndarray, ids: np.ndarray, mask: np.ndarray | None = None) -> None:
    """Adds to ``total`` how often each index occurs in ``ids``. ``mask``: zero at indices to ignore;
    a mask of another size is itself ignored."""
    ids = np.reshape(ids, -1)
    kept = None if mask is None else np.reshape(mask, -1)
    if kept is not None and len(kept) == len(ids):
        ids = ids[kept != 0]
    np.add.at(total, ids, 1)
