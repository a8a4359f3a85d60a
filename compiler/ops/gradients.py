"""Gradients of a graph's outputs with respect to weights and inputs, by torch.

Without labels there is no loss.  In its place stands <r, y>, for outputs y and independent random signs r,
drawn for each batch of inputs.  The expectation of its gradient is zero, but

    E_r[(d<r, y> / dw)^2]  =  sum over the elements of y of (dy_i / dw)^2

is the diagonal of the Gauss-Newton matrix J^T J: the Fisher information of a model whose outputs are seen
through unit Gaussian noise (Martens 2014).  (Normal r have the same mean, and more variance.)

Ops that round let gradients through (``OpDef.straight_through``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tersor.ir import Graph, Value
from tersor.ops.evaluate import run, to_torch


def gradients(
    graph: Graph,
    leaves: Sequence[Value],
    feeds: Iterable[Mapping[str, np.ndarray]],
    seed: int = 0,
    padding: Sequence[str | None] = (),
) -> Iterator[dict[Value, np.ndarray]]:
    """For each feed the gradient d<r, y> / dv of each leaf, f64; zeros if no output depends on it.

    Args:
        leaves: float constants, in subgraphs too, or float inputs of ``graph``.
        padding: for each output the name of an input that is zero at the positions (all axes but the
            last) to ignore; None or missing: none.

    Raises:
        Unsupported: an op of the graph has no torch evaluation, or torch is not installed.
    """
    import torch

    draws = torch.Generator().manual_seed(seed)
    masks = [*padding, *[None] * (len(graph.outputs) - len(padding))]
    for feed in feeds:
        with torch.enable_grad():
            values: dict[Value, Any] = {v: to_torch(feed[v.name]) for v in graph.inputs}
            at = {v: (to_torch(v.numpy()) if v.is_constant else values[v]) for v in leaves}
            at = {v: tensor.clone().requires_grad_() for v, tensor in at.items()}
            values.update(at)
            run(graph, values, straight_through=True)
            kept = [feed[name] if name is not None else None for name in masks]
            loss = _projected([values[v] for v in graph.outputs], kept, draws)
            grads: Sequence[Any] = [None] * len(at)
            if loss is not None:
                grads = torch.autograd.grad(loss, list(at.values()), allow_unused=True)
        yield {
            v: np.zeros(tuple(tensor.shape)) if g is None else g.double().numpy()
            for (v, tensor), g in zip(at.items(), grads, strict=True)
        }


def _projected(outputs: Sequence[Any], kept: Sequence[np.ndarray | None], draws: Any) -> Any:
    """<r, y> over all outputs that depend on a leaf, without padding; None if none does."""
    import torch

    total = None
    for y, mask in zip(outputs, kept, strict=True):
        if isinstance(y, torch.Tensor) and y.requires_grad:
            signs = (torch.randint(0, 2, y.shape, generator=draws) * 2 - 1).to(y.dtype)
            if mask is not None and mask.size == y.shape[:-1].numel():
                signs = signs * to_torch(mask != 0).reshape(*y.shape[:-1], 1)
            part = (y * signs).sum()
            total = part if total is None else total + part
    return total
