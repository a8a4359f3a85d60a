"""Synthetic inputs for measuring a graph: valid types, shapes and ranges, arbitrary numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tersor.analysis.match import dims
from tersor.analysis.roles import known_text, wanted_integers
from tersor.analysis.vocabulary import Lookup, walk_ids
from tersor.errors import InvalidOption, suggest
from tersor.ir import DType, Graph, Node, TensorType, Value
from tersor.ir.dims import evaluate, symbols

# Default sizes to measure at: (batch, every other open dim).
SIZES = ((1, 32), (1, 128), (8, 128))
Sizes = Mapping[str, int]


def dim_names(graph: Graph) -> list[str]:
    """The open dims of the inputs, in order."""
    names: dict[str, None] = {}
    for value in graph.inputs:
        for dim in dims(value) or ():
            names.update(dict.fromkeys(sorted(symbols(dim))))
    return list(names)


def default_sizes(graph: Graph) -> list[dict[str, int]]:
    """SIZES by name: dims that lead an input are batch dims, all others lengths."""
    names = dim_names(graph)
    batches = batch_names(graph)
    chosen = [{n: batch if n in batches else length for n in names} for batch, length in SIZES]
    return [s for i, s in enumerate(chosen) if s not in chosen[:i]]


def check_sizes(graph: Graph, sizes: Sequence[Sizes]) -> list[dict[str, int]]:
    """``sizes``, validated. Only a cache's past may be empty (a prefill).

    Raises:
        InvalidOption: an unknown dim, a missing dim, or a size out of range.
    """
    names = dim_names(graph)
    may_be_empty = _cache_dims(graph)
    for given in sizes:
        for name, size in given.items():
            if name not in names:
                known = ", ".join(names) or "none"
                raise InvalidOption(
                    f"no open dim {name!r}{suggest(name, names)}; the inputs have {known}"
                )
            if size < (0 if name in may_be_empty else 1):
                raise InvalidOption(f"dim {name!r} cannot be {size}")
        for name in names:
            if name not in given:
                raise InvalidOption(f"sizes {dict(given)} do not set dim {name!r}")
    return [dict(s) for s in sizes]


def _cache_dims(graph: Graph) -> set[str]:
    """Open dims of float inputs that grow by concatenation: the past of a key-value cache."""
    return {
        name
        for value in graph.inputs
        if isinstance(value.type, TensorType) and value.type.dtype.is_float
        for axis, dim in enumerate(dims(value) or ())
        if any(_joins(use.user, use.operand, axis) for use in value.uses)
        for name in symbols(dim)
    }


def _joins(user: Node | Graph, place: int, axis: int) -> bool:
    """Whether ``user`` concatenates operand ``place`` with something along ``axis``."""
    if isinstance(user, Graph):
        return False
    if user.op == "Concat":
        rank = user.output.tensor.rank or 0
        return user.attrs["axis"] in (axis, axis - rank)
    return user.op == "Attention" and place in (4, 5) and axis == 2


def make_feed(
    graph: Graph, sizes: Sizes, seed: int = 0, real: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Inputs by name at the given sizes. Floats are normally distributed; integers are what their users
    accept: ids within a table, a shape, zeros for positions, ones where nothing is known (masks, lengths).

    Args:
        real: a batch of real inputs, repeated or cropped to the sizes, to use in place of synthetic ones.

    Raises:
        InvalidOption: an input of unknown type or rank.
    """
    rng = np.random.default_rng(seed)
    return {
        v.name: _array(v, sizes, rng)
        if real is None
        else stretched(real[v.name], _shape(v, sizes, real[v.name].shape))
        for v in graph.inputs
    }


def stretched(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """``array`` tiled or cropped along each axis to ``shape``."""
    for axis, size in enumerate(shape):
        if have := array.shape[axis]:
            array = np.take(array, np.arange(size) % have, axis)
    return array


def bound_sizes(graph: Graph, feed: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Sizes of the open dims that the shapes of the inputs bind."""
    bound: dict[str, int] = {}
    for value in graph.inputs:
        for dim, size in zip(dims(value) or (), feed[value.name].shape, strict=False):
            name = str(dim)
            if symbols(dim) == {name}:
                bound.setdefault(name, size)
    return {name: bound[name] for name in dim_names(graph) if name in bound}


def batch_names(graph: Graph) -> set[str]:
    """Batch dims: the open dims that lead an input."""
    return {n for v in graph.inputs for d in (dims(v) or ())[:1] for n in symbols(d)}


def _array(value: Value, sizes: Sizes, rng: np.random.Generator) -> np.ndarray:
    shape = _shape(value, sizes)
    dtype = value.tensor.dtype
    if dtype.is_float:
        return rng.standard_normal(shape).astype(dtype.numpy)
    rows = table_rows(value)
    if dtype in (DType.I64, DType.I32) and rows:
        return rng.integers(0, rows, shape).astype(dtype.numpy)
    if dtype is DType.STRING:
        return np.full(shape, known_text(value), object)
    if dtype in (DType.I64, DType.I32):
        return wanted_integers(value, shape, sizes).astype(dtype.numpy)
    return np.ones(shape, dtype.numpy)


def _shape(value: Value, sizes: Sizes, like: Sequence[int] = ()) -> tuple[int, ...]:
    """The shape of an input; dims that are unknown are those of a real one (``like``)."""
    unknown = InvalidOption(
        f"input {value.name!r} has the type {value.type}: no input of it can be made up"
    )
    if not isinstance(value.type, TensorType) or (value.type.dims is None and not like):
        raise unknown
    if value.type.dims is None:
        return tuple(like)
    shape = []
    for axis, dim in enumerate(value.type.dims):
        if dim is not None and symbols(dim) <= sizes.keys():
            shape.append(evaluate(dim, sizes))
        elif like:
            shape.append(like[axis])
        else:
            raise unknown
    return tuple(shape)


def table_rows(value: Value) -> int:
    """Rows of the smallest table that ``value`` indexes; 0 if it indexes none."""
    rows = [_rows(item) for item in walk_ids(value)[0]]
    return min((r for r in rows if r), default=0)


def _rows(item: Lookup) -> int:
    table = item.node.input(item.table)
    have = dims(table) if table is not None else None
    axis = item.node.attrs.get("axis", 0)
    rows = have[axis] if have and isinstance(axis, int) else None
    return rows if isinstance(rows, int) else 0
