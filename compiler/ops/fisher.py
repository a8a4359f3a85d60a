"""How much outputs depend on each weight: the diagonal Fisher information, by torch's gradients.

The sum of the squared gradients of :mod:`tersor.ops.gradients`, one draw per batch of inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tersor.ir import Graph, Value
from tersor.ops.gradients import gradients


def fisher(
    graph: Graph,
    weights: Sequence[Value],
    feeds: Iterable[Mapping[str, np.ndarray]],
    seed: int = 0,
) -> dict[Value, np.ndarray]:
    """The Fisher information of each weight, f64 of its shape, summed over ``feeds``.

    Args:
        weights: float constants of ``graph``.

    Raises:
        Unsupported: an op of the graph has no torch evaluation, or torch is not installed.
    """
    sums = {w: np.zeros(w.tensor.shape) for w in weights}
    for gradient in gradients(graph, weights, feeds, seed):
        for weight, numbers in gradient.items():
            sums[weight] += np.square(numbers)
    return sums
