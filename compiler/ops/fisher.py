"""How much outputs depend on each weight: a diagonal Fisher information, by torch's gradients.

There are no labels here, and so no loss.  For outputs y and r of independent signs,

    E_r[(d<r, y> / dw)^2]  =  sum over the elements of y of (dy_i / dw)^2

which is the diagonal of the Gauss-Newton matrix J^T J: the Fisher information of a model whose outputs
are seen through unit Gaussian noise (Martens 2014).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tersor.ir import Graph, Value
from tersor.ops.evaluate import run


def fisher(
    graph: Graph,
    weights: Sequence[Value],
    feeds: Sequence[Mapping[str, np.ndarray]],
    seed: int = 0,
) -> dict[Value, np.ndarray]:
    """f64 of each weight's shape, summed over ``feeds``: one r for each of them.

    Args:
        weights: float constants of ``graph`` itself.

    Raises:
        Unsupported: an op of the graph has no torch evaluation, or torch is not installed.
    """
    import torch

    draws = torch.Generator().manual_seed(seed)
    found = {w: np.zeros(w.tensor.shape) for w in weights}
    for feed in feeds:
        with torch.enable_grad():
            leaves = {w: torch.from_numpy(np.array(w.numpy())).requires_grad_() for w in weights}
            values: dict[Value, Any] = {v: torch.from_numpy(feed[v.name]) for v in graph.inputs}
            values.update(leaves)
            run(graph, values)
            loss = _projected([values[v] for v in graph.outputs], draws)
            if loss is None:
                continue
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for weight, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                found[weight] += np.square(gradient.double().numpy())
    return found


def _projected(outputs: Sequence[Any], draws: Any) -> Any:
    """<r, y> over all outputs that depend on a weight; None where none does."""
    import torch

    total = None
    for y in outputs:
        if isinstance(y, torch.Tensor) and y.requires_grad:
            signs = torch.randint(0, 2, y.shape, generator=draws) * 2 - 1
            part = (y * signs.to(y.dtype)).sum()
            total = part if total is None else total + part
    return total
