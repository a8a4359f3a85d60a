"""Folds in TE: reductions along axes of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from tersor.backends.tvm.ops.broadcast import nan_max, nan_min

Read = Callable[..., Any]
"""From an index to a number."""


@dataclass(frozen=True)
class Reducer:
    """TE's ``combine(number, axes) -> number``, and its identity, by type."""

    combine: Callable[..., Any]
    start: Callable[[str], Any]


def _reducer(
    name: str, function: Callable[[Any, Any], Any], start: Callable[[str], Any]
) -> Reducer:
    # TE inspects the number of parameters: no partials or builtins.
    combine = te.comm_reducer(lambda a, b: function(a, b), lambda t: start(str(t)), name=name)
    return Reducer(combine, start)


def _lowest(dtype: str) -> Any:
    return tirx.const(-np.inf, dtype) if dtype.startswith("float") else tirx.min_value(dtype)


def _highest(dtype: str) -> Any:
    return tirx.const(np.inf, dtype) if dtype.startswith("float") else tirx.max_value(dtype)


total = Reducer(te.sum, lambda dtype: tirx.const(0, dtype))
product = _reducer("product", lambda a, b: a * b, lambda dtype: tirx.const(1, dtype))
# These keep NaN, and start from infinities. TE's own below are faster, where neither matters.
largest = _reducer("largest", nan_max, _lowest)
smallest = _reducer("smallest", nan_min, _highest)
maximum = Reducer(te.max, tirx.min_value)
minimum = Reducer(te.min, tirx.max_value)


def fold(
    shape: Sequence[Any], axes: Collection[int], read: Read, reducer: Reducer, name: str
) -> te.Tensor:
    """Folds ``read`` over ``axes`` of the indices within ``shape``; those axes of the result are 1.

    Over empty axes the result is undefined: TVM's loops write the identity in their first iteration.
    """
    kept = [tirx.IntImm("int64", 1) if a in axes else d for a, d in enumerate(shape)]
    folded = {a: te.reduce_axis((0, shape[a]), name=f"k{a}") for a in sorted(axes)}

    def one(*index: Any) -> Any:
        number = read(*(folded.get(a, i) for a, i in enumerate(index)))
        return reducer.combine(number, list(folded.values())) if folded else number

    return te.compute(kept, one, name=name)


def fold_or_start(
    shape: Sequence[Any], axes: Collection[int], read: Read, reducer: Reducer, name: str
) -> te.Tensor:
    """As :func:`fold`; over empty axes the result is the reducer's start."""
    return or_start(fold(shape, axes, read, reducer, name), count(shape, axes), reducer)


def or_start(folded: te.Tensor, number: Any, reducer: Reducer) -> te.Tensor:
    """The fold, or the reducer's start where the ``number`` of folded elements is zero."""
    start = reducer.start(str(folded.dtype))
    if not isinstance(number, tirx.IntImm):
        some = number > tirx.IntImm("int64", 0)
        return te.compute(
            folded.shape, lambda *i: tirx.Select(some, folded(*i), start), name="or_start"
        )
    return folded if number.value else te.compute(folded.shape, lambda *i: start, name="start")


def folded_at(tensor: te.Tensor, index: Sequence[Any], axes: Collection[int]) -> Any:
    """The result of :func:`fold` for the elements around ``index``."""
    return tensor(*(tirx.IntImm("int64", 0) if a in axes else i for a, i in enumerate(index)))


def count(shape: Sequence[Any], axes: Collection[int]) -> Any:
    """How many elements are folded into one, as int64."""
    number: Any = tirx.IntImm("int64", 1)
    for axis in axes:
        number = number * shape[axis]
    return number
