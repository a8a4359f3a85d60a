"""Moving data about: Transpose, Concat, Split, Slice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from tvm import relax, te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule
from tersor.backends.tvm.ops._elements import element, fitting, from_end, numbers, operand, within
from tersor.backends.tvm.ops._sizes import compute_sizes, steps_between
from tersor.ir import Dim, Node


def total(parts: Sequence[Dim]) -> Dim:
    """The sum of sizes; None where one is unknown."""
    known = [d for d in parts if d is not None]
    return sum(known[1:], known[0]) if len(known) == len(parts) else None


def axis_of(node: Node, rank: int, name: str = "axis") -> int:
    """The attribute ``name`` as a non-negative axis."""
    axis = node.attrs[name]
    assert isinstance(axis, int)
    return axis % rank


def _transpose(lowering: Lowering, node: Node) -> Sequence[Any]:
    perm = node.attrs.get("perm")
    axes = [p for p in perm if isinstance(p, int)] if isinstance(perm, tuple) else None
    return [lowering.emit(relax.op.permute_dims(lowering[node.inputs[0]], axes))]


# -- Concat, Split ---------------------------------------------------------------------------------


def _concat(lowering: Lowering, node: Node) -> Sequence[Any]:
    dims = lowering.shape_of(node.output)
    axis = axis_of(node, len(dims))
    others = {i: d for i, d in enumerate(node.output.tensor.dims or ()) if i != axis}
    parts = [fitting(lowering, v, others) for v in node.inputs]
    return [lowering.te(_joined, parts, dims, axis, primfunc_name_hint="concat")]


def _joined(parts: list[Any], dims: list[Any], axis: int) -> Any:
    starts = [tirx.IntImm("int64", 0)]
    for part in parts[:-1]:
        starts.append(starts[-1] + part.shape[axis])

    def pick(*index: Any) -> Any:
        def read(n: int) -> Any:
            return parts[n](*index[:axis], index[axis] - starts[n], *index[axis + 1 :])

        chosen = read(-1)
        for n in reversed(range(len(parts) - 1)):
            chosen = te.if_then_else(index[axis] < starts[n + 1], read(n), chosen)
        return chosen

    return te.compute(dims, pick, name="concat")


def _split(lowering: Lowering, node: Node) -> Sequence[Any]:
    shapes = [lowering.shape_of(v) for v in node.outputs]
    axis = axis_of(node, len(shapes[0]))
    parts = [(v.tensor.dims or ())[axis] for v in node.outputs]
    x = fitting(lowering, node.inputs[0], {axis: total(parts)})
    made, start = [], tirx.IntImm("int64", 0)
    for shape in shapes:
        made.append(lowering.te(_stretch, x, shape, axis, start, primfunc_name_hint="split"))
        start = start + shape[axis]
    return made


def _stretch(x: Any, dims: list[Any], axis: int, start: Any) -> Any:
    return te.compute(
        dims, lambda *i: x(*i[:axis], i[axis] + start, *i[axis + 1 :]), name="stretch"
    )


# -- Slice -----------------------------------------------------------------------------------------


def _slice(lowering: Lowering, node: Node) -> Sequence[Any]:
    data, starts, ends = node.inputs[:3]
    assert data is not None and starts is not None and ends is not None
    x = lowering[data]
    count = starts.tensor.dims[0] if starts.tensor.dims else None
    if not isinstance(count, int):
        raise Refused("how many axes are cut is known at run time only")
    axes, steps = (
        [tirx.IntImm("int64", n) for n in default] if value is None else operand(lowering, value)
        for value, default in ((node.input(3), range(count)), (node.input(4), [1] * count))
    )
    first = operand(lowering, starts)
    spans = [first, operand(lowering, ends), axes, steps]
    compute_sizes(lowering, node, partial(_cut_sizes, count=count), lowering.shape_of(data), *spans)
    compute, dims = (
        partial(_sliced, count=count, loose=_loose(node)),
        lowering.shape_of(node.output),
    )
    return [lowering.te(compute, x, first, axes, steps, dims, primfunc_name_hint="slice")]


def _cut_sizes(
    have: list[Any], starts: Any, ends: Any, axes: Any, steps: Any, *, count: int
) -> list[Any]:
    """What is left of each axis: x[7][5::-2] has 3, from 5 to before -1."""
    sizes = list(have)
    for n in range(count):
        start, end, step = element(starts, n), element(ends, n), element(steps, n)
        for axis, size in enumerate(have):
            here = from_end(element(axes, n), len(have)) == axis
            back = tirx.Select(step > 0, tirx.IntImm("int64", 0), tirx.IntImm("int64", 1))
            first = within(from_end(start, size), 0, size - back)
            last = within(from_end(end, size), -back, size - back)
            sizes[axis] = tirx.Select(here, steps_between(first, last, step), sizes[axis])
    return sizes


def _loose(node: Node) -> list[bool]:
    """For each axis, whether the operand may turn out shorter than the result's dims have it."""
    x = node.inputs[0]
    assert x is not None
    pairs = zip(x.tensor.dims or (), node.output.tensor.dims or (), strict=True)
    return [a != b and not (isinstance(a, int) and isinstance(b, int)) for a, b in pairs]


def _sliced(
    x: Any, starts: Any, axes: Any, steps: Any, dims: list[Any], *, count: int, loose: list[bool]
) -> Any:
    rank = len(dims)
    firsts, strides = ([tirx.IntImm("int64", n)] * rank for n in (0, 1))
    for n in range(count):
        for axis, size in enumerate(x.shape):
            here = from_end(element(axes, n), rank) == axis
            step = element(steps, n)
            # Going backwards a start behind the end is the last element, forwards it takes nothing.
            first = within(from_end(element(starts, n), size), 0, size - 1)
            firsts[axis] = tirx.Select(here, first, firsts[axis])
            strides[axis] = tirx.Select(here, step, strides[axis])

    if not all(isinstance(given, list) for given in (starts, axes, steps)):
        held = numbers([*firsts, *strides], "cuts")
        firsts, strides = held[:rank], held[rank:]

    def pick(*index: Any) -> Any:
        places = [f + i * s for i, f, s in zip(index, firsts, strides, strict=True)]
        bounded = zip(places, x.shape, loose, strict=True)
        return x(*(within(p, 0, size - 1) if may else p for p, size, may in bounded))

    return te.compute(dims, pick, name="slice")


RULES: dict[str, Rule] = {
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
}
