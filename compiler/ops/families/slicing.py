"""Slice: ranges of axes, with steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.errors import Unsupported
from tersor.ir import Dim, Node, Sym, ValueType
from tersor.ir.bounds import UNBOUNDED, is_at_least, larger, lower_bound, smaller
from tersor.ir.dims import KnownDim, ceil_div
from tersor.ops.contents import contents_of
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import checked_axes, ints, known, no_work, refuse, tensor
from tersor.ops.families._ties import constant, dims, plain
from tersor.ops.opdef import Cut, Follow, Member, OpDef, Sample, Tie

Stretch = tuple[Any, Any, Any]  # start, end, step; each an int, a Sym or None


def positions(size: int, start: int, end: int, step: int) -> range:
    """What a slice takes, by ONNX's rules: negative positions count from the end, then start is
    clamped to [0, size], or to [0, size-1] going backwards, and end to [0, size] or [-1, size-1]."""
    start, end = (p + size if p < 0 else p for p in (start, end))
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


def _cuts(node: Node, rank: int) -> dict[int, Stretch] | None:
    """axis -> (start, end, step); None if the axes are unknown."""
    columns = [known(node.input(i)) for i in (1, 2, 4)]
    axes = ints(node.input(3))
    if node.input(3) is None:
        length = next((len(c) for c in columns if c is not None), None)
        axes = None if length is None else list(range(length))
    if axes is None:
        return None
    starts, ends, steps = (c if c is not None else [None] * len(axes) for c in columns)
    if node.input(4) is None:
        steps = [1] * len(axes)
    if not len(starts) == len(ends) == len(steps) == len(axes) or 0 in steps:
        refuse(
            node, f"starts {starts}, ends {ends}, axes {axes}, steps {steps} do not fit together"
        )
    cuts = zip(starts, ends, steps, strict=True)
    return dict(zip(checked_axes(node, axes, rank), cuts, strict=True))


def _position(position: Any, size: KnownDim) -> Dim:
    """A start or end counted from the front, not clamped; None if its sign is unknown."""
    if isinstance(position, int):
        if isinstance(size, Sym) and abs(position) >= UNBOUNDED:
            return size if position > 0 else 0
        return size + position if position < 0 else position
    if isinstance(position, Sym):
        if is_at_least(position, 0):
            return position
        if is_at_least(0, position):
            return size + position
    return None


def _sliced(size: Dim, cut: Stretch) -> Dim:
    """The length of an axis after ``cut``; None if it cannot be derived.

    A symbolic position in an axis of a fixed size (the first ``seq`` of 512 position embeddings) is
    taken to lie within it.
    """
    start, end, step = cut
    if size is None or not isinstance(step, int):
        return None
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(positions(size, start, end, step))
    if step < 0:
        from_last = isinstance(start, int) and (start == -1 or start >= UNBOUNDED)
        return (
            size
            if from_last and step == -1 and isinstance(end, int) and end <= -UNBOUNDED
            else None
        )
    low, high = _position(start, size), _position(end, size)
    if low is None or high is None:
        return None
    within = isinstance(size, int) and isinstance(high, Sym) and (lower_bound(high) or 0) <= size
    high = high if within else smaller(high, size)
    if high == size and isinstance(start, int) and start < 0:
        return ceil_div(smaller(-start, size), step)
    return ceil_div(larger(high - larger(low, 0), 0), step)


def _slice_infer(node: Node) -> list[ValueType]:
    x = tensor(node)
    if x.dims is None:
        return [x]
    cuts = _cuts(node, len(x.dims))
    if cuts is None:
        return [x.with_dims((None,) * len(x.dims))]
    out = [_sliced(d, cuts[i]) if i in cuts else d for i, d in enumerate(x.dims)]
    return [x.with_dims(tuple(out))]


def _taken(contents: np.ndarray, cuts: dict[int, Stretch]) -> np.ndarray | None:
    """``contents`` sliced by ``cuts``; None if one has unknown numbers."""
    for axis, cut in cuts.items():
        if not all(isinstance(bound, int) for bound in cut):
            return None
        contents = np.take(
            contents, np.array(positions(contents.shape[axis], *cut), np.int64), axis=axis
        )
    return contents


def _slice_contents(node: Node) -> list[np.ndarray | None]:
    contents = contents_of(node.inputs[0])
    cuts = _cuts(node, contents.ndim) if contents is not None else None
    return [None if contents is None or cuts is None else _taken(contents, cuts)]


def _slice(x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    import torch

    for n in range(len(starts)):
        axis = n if axes is None else int(axes[n])
        step = 1 if steps is None else int(steps[n])
        taken = positions(x.shape[axis], int(starts[n]), int(ends[n]), step)
        x = x.index_select(axis, torch.tensor(taken, dtype=torch.int64))
    return x


def _slice_ties(node: Node) -> list[Tie]:
    """Axes that are not sliced; a range with a known start is tied to its positions in the operand."""
    have, out = dims(node.inputs[0]), dims(node.output)
    cuts = _cuts(node, len(have))
    if cuts is None:
        return []
    ties = _kept_axes(node, set(cuts))
    for axis, (start, _, step) in cuts.items():
        size, length = have[axis], out[axis]
        offset = _position(start, size) if size is not None else None
        if isinstance(offset, int) and step == 1 and length is not None:
            offset = max(min(offset, size) if isinstance(size, int) else offset, 0)
            taken = Member("in", 0, axis, offset=offset)
            ties.append(Tie(length, (taken, plain("out", 0, axis))))
    return ties


def _slice_follow(node: Node, cut: Cut) -> Follow:
    """Starts and ends move by the positions removed before them."""
    have = dims(node.inputs[0])
    gone = {axis: places for (side, _, axis), places in cut.items() if side == "in" and places}
    cuts = _cuts(node, len(have)) or {}
    starts, ends = constant(node, 1).copy(), constant(node, 2).copy()
    for n, axis in enumerate(cuts):
        if axis not in gone:
            continue
        size, (start, end, step) = have[axis], cuts[axis]
        if not isinstance(size, int) or step != 1:
            raise Unsupported(
                f"{node.label}: the slice of axis {axis} starts or ends at an unknown position"
            )
        taken = positions(size, start, end, step)
        starts[n] = taken.start - sum(p < taken.start for p in gone[axis])
        ends[n] = taken.stop - sum(p < taken.stop for p in gone[axis])
    return Follow(operands={1: starts, 2: ends})


def _kept_axes(node: Node, changed: set[int]) -> list[Tie]:
    """Ties of the axes of operand 0 that are not ``changed`` and are the same in the result."""
    have = dims(node.inputs[0])
    return [
        Tie(d, (plain("in", 0, i), plain("out", 0, i)))
        for i, d in enumerate(have)
        if i not in changed
    ]


# -- samples and row -------------------------------------------------------------------------------


def _i(*items: int) -> np.ndarray:
    return np.array(items, np.int64)


def _slice_samples(rng: np.random.Generator) -> list[Sample]:
    x, last = floats(rng, 5, 6), 2**63 - 1
    cases: list[tuple[tuple[int, ...], ...]] = [
        ((1, -3), (4, last), (0, 1)),
        ((4,), (-last,), (0,), (-2,)),
        ((0, 1), (9, 3)),
        ((-1,), (-last - 1,), (-1,), (-1,)),
        ((-100,), (-last,), (0,), (-1,)),  # clamped to the first, going backwards
        ((3,), (1,), (1,), (-1,)),
        ((2,), (2,), (0,)),
        ((0,), (last,), (1,), (4,)),
        ((-2, 0), (last, -1), (-1, -2)),
    ]
    samples = [
        Sample([x, *(_i(*c) for c in case)], constant=frozenset({1, 2, 3, 4})) for case in cases
    ]
    short = [_i(1), _i(3)]
    return [*samples, Sample([np.arange(5), *short], constant=frozenset({1, 2})),
            Sample([floats(rng, 4, 2) > 0, *short], constant=frozenset({1, 2}))]  # fmt: skip


ROWS = [
    OpDef("Slice", traits=frozenset({"movement", "rank"}),
          since=11, infer=_slice_infer, contents=_slice_contents, torch=_slice,
          cost=no_work, ties=_slice_ties, follow=_slice_follow, samples=_slice_samples),
]  # fmt: skip
