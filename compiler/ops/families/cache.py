"""TensorScatter: writes the newest keys or values into a cache of all positions."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tersor.ir import Node, ValueType
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import no_work, tensor
from tersor.ops.families._ties import dims, plain
from tersor.ops.opdef import OpDef, Sample, Tie


def _infer(node: Node) -> list[ValueType]:
    return [tensor(node)]


def _tensor_scatter(past: Any, update: Any, at: Any = None, *, axis: int, mode: str) -> Any:
    """Each batch entry has its own first position; ``circular`` wraps around."""
    import torch

    axis %= past.dim()
    size, count = past.shape[axis], update.shape[axis]
    starts = torch.zeros(past.shape[0], dtype=torch.int64) if at is None else at.long()
    places = starts[:, None] + torch.arange(count)
    if mode == "circular":
        places = places % size
    shape = [past.shape[0], *[1] * (past.dim() - 1)]
    shape[axis] = count
    return past.scatter(axis, places.reshape(shape).expand(update.shape), update)


def _ties(node: Node) -> list[Tie]:
    """All axes but the positions."""
    have, axis = dims(node.inputs[0]), node.attrs["axis"]
    assert isinstance(axis, int)
    if not have:
        return []
    at = [plain("in", 2, 0)] if node.input(2) is not None else []
    return [
        Tie(d, (plain("in", 0, i), plain("in", 1, i), *(at if i == 0 else ()), plain("out", 0, i)))
        for i, d in enumerate(have)
        if i != axis % len(have)
    ]


def _samples(rng: np.random.Generator) -> list[Sample]:
    f = partial(floats, rng)

    return [
        Sample([f(2, 3, 6, 4), f(2, 3, 2, 4), np.array([1, 4])]),
        Sample([f(2, 3, 6, 4), f(2, 3, 2, 4), np.array([5, 0])], {"mode": "circular"}),
        Sample([f(2, 6, 3), f(2, 2, 3)], {"axis": 1}),
    ]


ROWS = [
    OpDef("TensorScatter", since=24, infer=_infer, torch=_tensor_scatter, cost=no_work, ties=_ties,
          samples=_samples),
]  # fmt: skip
