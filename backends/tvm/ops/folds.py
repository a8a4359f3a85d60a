"""Folds in TE: what of a tensor's axes is summed, or otherwise reduced, to one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from tersor.backends.tvm.ops.broadcast import nan_max, nan_min

Read = Callable[..., Any]
"""From an index to a number."""

Combine = Callable[..., Any]
"""A reducer of TE's: ``(number, axes) -> number``."""


def fold(
    shape: Sequence[Any], axes: Collection[int], read: Read, combine: Combine, name: str
) -> te.Tensor:
    """Folds ``read`` over ``axes`` of the indices within ``shape``; those axes of the result are 1."""
    kept = [tirx.IntImm("int64", 1) if a in axes else d for a, d in enumerate(shape)]
    folded = {a: te.reduce_axis((0, shape[a]), name=f"k{a}") for a in sorted(axes)}

    def one(*index: Any) -> Any:
        number = read(*(folded.get(a, i) for a, i in enumerate(index)))
        return combine(number, list(folded.values())) if folded else number

    return te.compute(kept, one, name=name)


def folded_at(tensor: te.Tensor, index: Sequence[Any], axes: Collection[int]) -> Any:
    """What :func:`fold` made of the elements that ``index`` is one of."""
    return tensor(*(tirx.IntImm("int64", 0) if a in axes else i for a, i in enumerate(index)))


def count(shape: Sequence[Any], axes: Collection[int]) -> Any:
    """How many elements are folded to one, as int64."""
    total: Any = tirx.IntImm("int64", 1)
    for axis in axes:
        total = total * shape[axis]
    return total


def lowest(dtype: str) -> Any:
    """What no number is below."""
    return tirx.const(-np.inf, dtype) if dtype.startswith("float") else tirx.min_value(dtype)


def highest(dtype: str) -> Any:
    """What no number is above."""
    return tirx.const(np.inf, dtype) if dtype.startswith("float") else tirx.max_value(dtype)


total: Combine = te.sum
product: Combine = te.comm_reducer(lambda a, b: a * b, lambda t: tirx.const(1, t), name="product")
# Not TE's own: their extremes of nothing are finite, and they lose NaN.
largest: Combine = te.comm_reducer(
    lambda a, b: nan_max(a, b), lambda t: lowest(str(t)), name="largest"
)
smallest: Combine = te.comm_reducer(
    lambda a, b: nan_min(a, b), lambda t: highest(str(t)), name="smallest"
)
