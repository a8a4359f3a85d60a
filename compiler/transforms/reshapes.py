"""Writing views of known dims so that they are valid at every size, zero included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.ir import Dim, Graph, Value
from tersor.ir.bounds import is_at_least
from tersor.ir.dims import product


def reshape_target(
    old: Sequence[Dim], new: Sequence[Dim], written: Sequence[Dim] = ()
) -> list[int] | None:
    """The constant target of a Reshape from ``old`` to ``new`` dims: numbers, 0 for a dim that is copied from
    the same position, and at most one -1; None where that cannot express it.

        [batch, seq, 384] -> [batch, seq, 12, 32]    [0, 0, 12, 32]
        [batch, seq, 384] -> [batch*seq, 384]        [-1, 384]
        [n, a, 4]         -> [n, 4*a]                None: at n = 0, [0, -1] is ambiguous

    ``written``: the present target. Its own -1 may stay, which fails only where it already did.
    """
    target: list[int] = []
    for i, dim in enumerate(new):
        if isinstance(dim, int) and dim > 0:
            target.append(dim)
        elif i < len(old) and dim is not None and dim == old[i] and dim != 0:
            target.append(0)
        elif isinstance(dim, int):
            return None  # 0 means copy, not an empty dim.
        else:
            target.append(-1)
    if -1 not in target:
        return target
    copied = [dim for dim, size in zip(new, target, strict=True) if size == 0]
    at = target.index(-1)
    present = len(written) == len(target) and written[at] == -1
    safe = present or all(dim is not None and is_at_least(dim, 1) for dim in copied)
    return target if safe and target.count(-1) == 1 else None


def flattened(graph: Graph, x: Value, out: Sequence[Dim]) -> Value | None:
    """``x`` as a matrix of dims ``out`` by Flatten, valid at every size; None where Flatten cannot do it."""
    have = x.tensor.dims
    if have is None or None in have or len(out) != 2:
        return None
    for axis in range(len(have) + 1):
        if (product(have[:axis]), product(have[axis:])) == tuple(out):
            return graph.emit("Flatten", [x], {"axis": axis})
    return None


def reshaped(graph: Graph, x: Value, target: Sequence[int]) -> Value:
    """``x`` reshaped to the constant ``target``."""
    return graph.emit("Reshape", [x, graph.constant(np.array(target, np.int64), "shape")])
