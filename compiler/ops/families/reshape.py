"""Views in another shape: Reshape, Flatten, Squeeze, Unsqueeze. Symbolic dims are derived exactly from the
operands' contents; a dim that is split or merged is tied to its parts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tersor.ir import Dim, Node, TensorType, ValueType
from tersor.ir.dims import divide, product
from tersor.ops.contents import contents_of
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import (
    axis_of,
    checked_axes,
    ints,
    is_negative,
    no_work,
    quotient,
    refuse,
    tensor,
    vector_or_unknown,
)
from tersor.ops.families._ties import dims, plain, stated_shape
from tersor.ops.opdef import Cut, Follow, Member, OpDef, Sample, Tie, with_traits

# -- Reshape ---------------------------------------------------------------------------------------


def _reshape_infer(node: Node) -> list[ValueType]:
    x, target = tensor(node), vector_or_unknown(node.inputs[1])
    if target is None:
        return [x.with_dims(None)]
    out = reshaped(node, x.dims, target)
    have_size, out_size = x.numel, product(out)
    if isinstance(have_size, int) and isinstance(out_size, int) and have_size != out_size:
        refuse(node, f"{x} cannot be reshaped to {target}")
    return [x.with_dims(out)]


def reshaped(node: Node, have: tuple[Dim, ...] | None, target: list[Any]) -> tuple[Dim, ...]:
    """Dims that Reshape gives: 0 copies the dim at its place, -1 takes what is left. One element that
    is not known is what is left, too.

        [batch, seq, 384], [0, 0, 12, 32]     -> [batch, seq, 12, 32]
        [batch, seq, 384], [batch*seq, -1]    -> [batch*seq, 384]

    Raises:
        InvalidGraph: a 0 without a dim at its place, or two -1.
    """
    zero = not node.attrs["allowzero"]
    copied = {i for i, size in enumerate(target) if zero and size == 0}
    if target.count(-1) > 1 or any(is_negative(size) and size != -1 for size in target):
        refuse(node, f"{target} is not a valid shape")
    if have is None:
        return tuple(None if i in copied or size == -1 else size for i, size in enumerate(target))
    if any(i >= len(have) for i in copied):
        refuse(node, f"{target} keeps dims that {node.inputs[0]!r} does not have")
    out = [have[i] if i in copied else None if s == -1 else s for i, s in enumerate(target)]
    left = [i for i, size in enumerate(target) if size is None or size == -1]
    if len(left) == 1:
        # Copied dims cancel, known or not.
        rest = [d for i, d in enumerate(out) if i not in copied and i != left[0]]
        out[left[0]] = quotient([d for i, d in enumerate(have) if i not in copied], rest)
    return tuple(out)


def _reshape_contents(node: Node) -> list[np.ndarray | None]:
    contents, target = contents_of(node.inputs[0]), ints(node.inputs[1])
    if contents is None or target is None:
        return [None]
    shape = [d for d in reshaped(node, contents.shape, target) if isinstance(d, int)]
    return [contents.reshape(shape) if len(shape) == len(target) else None]


def _reshape(x: Any, shape: Any, *, allowzero: int) -> Any:
    target = [int(s) for s in shape.reshape(-1)]
    copied = {i for i, s in enumerate(target) if s == 0 and not allowzero}
    sizes = [x.shape[i] if i in copied else s for i, s in enumerate(target)]
    if -1 in sizes:
        at = sizes.index(-1)
        rest = math.prod(s for i, s in enumerate(sizes) if i not in copied and i != at)
        total = math.prod(d for i, d in enumerate(x.shape) if i not in copied)
        sizes[at] = total // rest if rest else 0
    return x.reshape(sizes)


# -- ties of a reshape -----------------------------------------------------------------------------

Axes = list[tuple[int, Dim]]


def reshape_ties(node: Node) -> list[Tie]:
    """Walks both shapes in step: where runs of dims with equal products meet, a run of one dim that
    becomes several (or the other way) ties each of the several to its share of the one.

        [b, s, h*d] -> [b, s, h, d]    h: blocks of d;  d: lanes, one in each of h blocks

    Dims of 1 are passed over. An unknown dim stops the walk; a second one comes from the back.
    """
    have, out = dims(node.inputs[0]), dims(node.output)
    left = [(i, d) for i, d in enumerate(have) if d != 1]
    right = [(i, d) for i, d in enumerate(out) if d != 1]
    runs = _walk(left, right, _kept(node))
    used_in, used_out = sum(len(a) for a, _ in runs), sum(len(b) for _, b in runs)
    runs += [(a[::-1], b[::-1]) for a, b in _walk(left[used_in:][::-1], right[used_out:][::-1], {})]
    return [tie for a, b in runs for tie in _run_ties(a, b)]


def _kept(node: Node) -> dict[int, int]:
    """Operand axis -> result axis for unknown dims that are surely the same: those that a Reshape
    copies by 0, while everything before them is copied too."""
    target = vector_or_unknown(node.input(1))
    same: dict[int, int] = {}
    if node.op == "Reshape" and target is not None and not node.attrs["allowzero"]:
        for i, size in enumerate(target):
            if size != 0:
                break
            same[i] = i
    return same


def _walk(left: Axes, right: Axes, kept: dict[int, int]) -> list[tuple[Axes, Axes]]:
    """Pairs of runs with equal products, from the front, as far as that can be decided."""
    runs: list[tuple[Axes, Axes]] = []
    i = j = 0
    while i < len(left) and j < len(right):
        if kept.get(left[i][0]) == right[j][0]:
            run: tuple[Axes, Axes] | None = ([left[i]], [right[j]])
        else:
            run = _next_run(left[i:], right[j:])
        if run is None:
            break
        runs.append(run)
        i, j = i + len(run[0]), j + len(run[1])
    return runs


def _next_run(left: Axes, right: Axes) -> tuple[Axes, Axes] | None:
    """The shortest prefixes of both with equal products; None if there are none."""
    i = j = 1
    a, b = left[0][1], right[0][1]
    while a != b or a is None:
        if a is None or b is None:
            return None
        grow_left = _divides(a, b) if not _divides(b, a) else False
        if not (grow_left or j < len(right)) or (grow_left and i == len(left)):
            return None
        if grow_left:
            a, i = product([a, left[i][1]]), i + 1
        else:
            b, j = product([b, right[j][1]]), j + 1
    return left[:i], right[:j]


def _divides(a: Dim, b: Dim) -> bool:
    """Whether ``a`` is the smaller of two products, and has to grow to become equal."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    return a is not None and b is not None and divide(b, a) is not None


def _run_ties(left: Axes, right: Axes) -> list[Tie]:
    if len(left) == 1:
        return _part_ties(right, "out", plain("in", 0, left[0][0]))
    if len(right) == 1:
        return _part_ties(left, "in", plain("out", 0, right[0][0]))
    return []


def _part_ties(parts: Axes, side: str, whole: Member) -> list[Tie]:
    """A tie of each part with its positions in the whole, if its stride is a number."""
    ties = []
    for position, (axis, size) in enumerate(parts):
        outer = product(d for _, d in parts[:position])
        inner = product(d for _, d in parts[position + 1 :])
        if isinstance(outer, int) and isinstance(inner, int):
            share = Member(whole.side, 0, whole.axis, outer=outer, inner=inner)
            ties.append(Tie(size, (share, plain(side, 0, axis))))
    return ties


# -- Flatten ---------------------------------------------------------------------------------------


def _flatten_infer(node: Node) -> list[ValueType]:
    x, axis = tensor(node), node.attrs["axis"]
    assert isinstance(axis, int)
    if x.dims is None:
        return [x.with_dims((None, None))]
    at = len(x.dims) if axis == len(x.dims) else axis_of(node, max(len(x.dims), 1))
    return [x.with_dims((product(x.dims[:at]), product(x.dims[at:])))]


def _flatten(x: Any, *, axis: int) -> Any:
    at = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))


# -- Unsqueeze, Squeeze ----------------------------------------------------------------------------


def _unsqueezed(node: Node, rank: int) -> list[int] | None:
    """New axes of the result, ascending; None if unknown."""
    axes = ints(node.inputs[1])
    return None if axes is None else sorted(checked_axes(node, axes, rank + len(axes)))


def _unsqueeze_infer(node: Node) -> list[ValueType]:
    x, given = tensor(node), vector_or_unknown(node.inputs[1])
    if x.dims is None or given is None:
        return [x.with_dims(None)]
    new = _unsqueezed(node, len(x.dims))
    if new is None:
        return [x.with_dims((None,) * (len(x.dims) + len(given)))]
    out: list[Dim] = list(x.dims)
    for axis in new:
        out.insert(axis, 1)
    return [x.with_dims(tuple(out))]


def _unsqueeze_contents(node: Node) -> list[np.ndarray | None]:
    contents = contents_of(node.inputs[0])
    new = _unsqueezed(node, contents.ndim) if contents is not None else None
    return [None if contents is None or new is None else np.expand_dims(contents, tuple(new))]


def _unsqueeze(x: Any, axes: Any) -> Any:
    given = [int(a) for a in axes.reshape(-1)]
    for axis in sorted(a % (x.dim() + len(given)) for a in given):
        x = x.unsqueeze(axis)
    return x


def _unsqueeze_ties(node: Node) -> list[Tie]:
    have = dims(node.inputs[0])
    new = _unsqueezed(node, len(have))
    if new is None:
        return []
    kept = [a for a in range(len(have) + len(new)) if a not in new]
    return [Tie(have[i], (plain("in", 0, i), plain("out", 0, a))) for i, a in enumerate(kept)]


def _squeezed(node: Node, shape: tuple[Any, ...]) -> list[int] | None:
    """Removed axes of the operand; None if unknown: without ``axes``, a symbolic dim may be 1."""
    if node.input(1) is None:
        if not all(isinstance(d, int) for d in shape):
            return None
        return [i for i, d in enumerate(shape) if d == 1]
    given = ints(node.input(1))
    return None if given is None else sorted(checked_axes(node, given, len(shape)))


def _squeeze_infer(node: Node) -> list[ValueType]:
    x = tensor(node)
    if x.dims is None:
        return [x]
    gone = _squeezed(node, x.dims)
    if gone is None:
        count = vector_or_unknown(node.input(1))
        return [_of_rank(x, None if count is None else len(x.dims) - len(count))]
    for axis in gone:
        size = x.dims[axis]
        if isinstance(size, int) and size != 1:
            refuse(node, f"axis {axis} of {x} is not 1")
    return [x.with_dims(tuple(d for i, d in enumerate(x.dims) if i not in gone))]


def _of_rank(x: TensorType, rank: int | None) -> TensorType:
    return x.with_dims(None if rank is None else (None,) * rank)


def _squeeze_contents(node: Node) -> list[np.ndarray | None]:
    contents = contents_of(node.inputs[0])
    gone = _squeezed(node, contents.shape) if contents is not None else None
    return [None if contents is None or gone is None else np.squeeze(contents, tuple(gone))]


def _squeeze(x: Any, axes: Any = None) -> Any:
    if axes is None:
        gone = [i for i, d in enumerate(x.shape) if d == 1]
    else:
        gone = [int(a) % x.dim() for a in axes.reshape(-1)]
    return x.reshape([d for i, d in enumerate(x.shape) if i not in gone])


def _squeeze_ties(node: Node) -> list[Tie]:
    have = dims(node.inputs[0])
    gone = _squeezed(node, have)
    if gone is None:
        return []
    kept = [i for i in range(len(have)) if i not in gone]
    return [Tie(have[i], (plain("in", 0, i), plain("out", 0, a))) for a, i in enumerate(kept)]


def _squeeze_follow(node: Node, cut: Cut) -> Follow:
    """Makes the axes explicit: without them, an axis cut down to one position would be removed as well."""
    gone = _squeezed(node, dims(node.inputs[0]))
    if node.input(1) is not None or gone is None or not any(cut.values()):
        return Follow()
    return Follow(operands={1: np.array(gone, np.int64)})


# -- samples and rows ------------------------------------------------------------------------------


def _i(*items: int) -> np.ndarray:
    return np.array(items, np.int64)


_ONE = frozenset({1})


def _reshape_samples(rng: np.random.Generator) -> list[Sample]:
    cases: list[tuple[np.ndarray, tuple[int, ...]]] = [
        (floats(rng, 2, 3, 8), (2, 3, 2, 4)),  # split
        (floats(rng, 2, 3, 4, 2), (0, 0, 8)),  # merge
        (floats(rng, 2, 3, 8), (0, -1)),
        (floats(rng, 2, 6), (-1,)),
        (floats(rng, 4, 6), (3, 8)),  # neither
        (floats(rng, 1, 4, 1, 6), (4, 1, 2, 3)),
        (floats(rng, 1), ()),
        (floats(rng), (1, -1)),
        (np.array([[True, False], [False, False]]), (1, 4)),
        (np.arange(6), (-1, 2)),
    ]
    found = [Sample([x, _i(*shape)], constant=_ONE) for x, shape in cases]
    return [*found, Sample([floats(rng, 2, 0, 3), _i(3, 0, 5)], {"allowzero": 1}, _ONE)]


def _flatten_samples(rng: np.random.Generator) -> list[Sample]:
    x = floats(rng, 2, 3, 4)
    found = [Sample([x], {"axis": axis}) for axis in (-3, -1, 0, 1, 3)]
    return [*found, Sample([floats(rng, 0, 3)]), Sample([np.arange(6).reshape(1, 2, 3)])]


def _squeeze_samples(rng: np.random.Generator) -> list[Sample]:
    x = floats(rng, 1, 3, 1, 2)
    samples = [Sample([x, _i(*axes)], constant=_ONE) for axes in ((0,), (-2,), (2, 0))]
    return [
        *samples,
        Sample([x]),
        Sample([floats(rng, 2, 3)]),
        Sample([np.array([[[True]]]), _i(1)], {}, _ONE),
    ]


def _unsqueeze_samples(rng: np.random.Generator) -> list[Sample]:
    x = floats(rng, 3, 4)
    samples = [Sample([x, _i(*axes)], constant=_ONE) for axes in ((0, -1), (1,), (3, 1), (-4, 2))]
    return [
        *samples,
        Sample([floats(rng), _i(0)], {}, _ONE),
        Sample([np.arange(0), _i(-1)], {}, _ONE),
    ]


ROWS = with_traits("view movement", [
    OpDef("Reshape", since=5, infer=_reshape_infer, contents=_reshape_contents, torch=_reshape,
          cost=no_work, ties=reshape_ties,
          follow=stated_shape, samples=_reshape_samples),
    OpDef("Flatten", since=9, infer=_flatten_infer, torch=_flatten, cost=no_work,
          ties=reshape_ties, samples=_flatten_samples),
    OpDef("Squeeze", since=13, infer=_squeeze_infer, contents=_squeeze_contents, torch=_squeeze,
          cost=no_work, ties=_squeeze_ties, follow=_squeeze_follow, samples=_squeeze_samples),
    OpDef("Unsqueeze", since=13, infer=_unsqueeze_infer, contents=_unsqueeze_contents,
          torch=_unsqueeze, cost=no_work, ties=_unsqueeze_ties, samples=_unsqueeze_samples),
])  # fmt: skip
