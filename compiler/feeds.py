"""Inputs for measuring a graph where its user gave none: the right types and ranges, any numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tersor.analysis.match import dims
from tersor.analysis.vocabulary import walk_ids
from tersor.errors import InvalidOption, suggest
from tersor.ir import Dim, DType, Graph, Node, TensorType, Value
from tersor.ir.dims import evaluate, symbols

# Sizes of (batch, every other open dim) that language models are measured at.
SIZES = ((1, 32), (1, 128), (8, 128))
Sizes = Mapping[str, int]


def dim_names(graph: Graph) -> list[str]:
    """The open dims of the inputs, in order."""
    found: dict[str, None] = {}
    for value in graph.inputs:
        for dim in dims(value) or ():
            found.update(dict.fromkeys(sorted(symbols(dim))))
    return list(found)


def default_sizes(graph: Graph) -> list[dict[str, int]]:
    """SIZES for the graph's open dims: the first dim of the first input that has it open is the batch."""
    names = dim_names(graph)
    batches = {n for v in graph.inputs for d in (dims(v) or ())[:1] for n in symbols(d)}
    chosen = [{n: batch if n in batches else length for n in names} for batch, length in SIZES]
    return [s for i, s in enumerate(chosen) if s not in chosen[:i]]


def check_sizes(graph: Graph, sizes: Sequence[Sizes]) -> list[dict[str, int]]:
    """``sizes`` as they are. A cache's past may be empty, which is what a prefill has; nothing else may.

    Raises:
        InvalidOption: a dim that the inputs do not have, one left out, or a size that it cannot have.
    """
    names = dim_names(graph)
    may_be_empty = _cache_dims(graph)
    for given in sizes:
        for name, size in given.items():
            if name not in names:
                there = ", ".join(names) or "none"
                raise InvalidOption(
                    f"no open dim {name!r}{suggest(name, names)}; the inputs have {there}"
                )
            if size < (0 if name in may_be_empty else 1):
                raise InvalidOption(f"dim {name!r} cannot be {size}")
        for name in names:
            if name not in given:
                raise InvalidOption(f"sizes {dict(given)} leave out dim {name!r}")
    return [dict(s) for s in sizes]


def _cache_dims(graph: Graph) -> set[str]:
    """Open dims of float inputs along which other rows are joined to them: the past of a cache."""
    return {
        name
        for value in graph.inputs
        if isinstance(value.type, TensorType) and value.type.dtype.is_float
        for axis, dim in enumerate(dims(value) or ())
        if any(_joins(use.user, use.operand, axis) for use in value.uses)
        for name in symbols(dim)
    }


def _joins(user: Node | Graph, place: int, axis: int) -> bool:
    """Whether ``user`` puts other rows beside those of operand ``place``, along ``axis``."""
    if isinstance(user, Graph):
        return False
    if user.op == "Concat":
        rank = user.output.tensor.rank or 0
        return user.attrs["axis"] in (axis, axis - rank)
    return user.op == "Attention" and place in (4, 5) and axis == 2


def make_feed(graph: Graph, sizes: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs by name at the given sizes. Floats are normal; integers that index a table lie in it,
    others (masks, lengths) are ones.

    Raises:
        InvalidOption: an input whose type or rank is unknown, so that none can be made up.
    """
    rng = np.random.default_rng(seed)
    return {v.name: _array(v, sizes, rng) for v in graph.inputs}


def _array(value: Value, sizes: Sizes, rng: np.random.Generator) -> np.ndarray:
    if not isinstance(value.type, TensorType) or value.type.dims is None:
        raise InvalidOption(
            f"input {value.name!r} is {value.type}: give example inputs to measure with"
        )
    shape = tuple(d if isinstance(d, int) else _size(d, sizes, value) for d in value.type.dims)
    dtype = value.type.dtype
    if dtype.is_float:
        return rng.standard_normal(shape).astype(dtype.numpy)
    rows = table_rows(value)
    if dtype in (DType.I64, DType.I32) and rows:
        return rng.integers(0, rows, shape).astype(dtype.numpy)
    if dtype is DType.STRING:
        raise InvalidOption(
            f"input {value.name!r} holds strings: give example inputs to measure with"
        )
    return np.ones(shape, dtype.numpy)


def _size(dim: Dim, sizes: Sizes, value: Value) -> int:
    if dim is None:
        raise InvalidOption(
            f"input {value.name!r} has an unknown dim: give example inputs to measure with"
        )
    return evaluate(dim, sizes)


def table_rows(value: Value) -> int:
    """The fewest rows of the tables that ``value`` picks rows from; 0 if it picks none."""
    rows = [_first_dim(item.node.input(item.table)) for item in walk_ids(value)[0]]
    return min((r for r in rows if r), default=0)


def _first_dim(table: Value | None) -> int:
    have = dims(table) if table is not None else None
    return have[0] if have and isinstance(have[0], int) else 0
