"""Padding and regrouping: Pad, Trilu, DepthToSpace, SpaceToDepth, ReverseSequence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from tvm import te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule
from tersor.backends.tvm.ops._elements import element, fitting, from_end, numbers, operand, within
from tersor.backends.tvm.ops._sizes import compute_sizes
from tersor.ir import Node

# -- Pad -------------------------------------------------------------------------------------------


def _pad(lowering: Lowering, node: Node) -> Sequence[Any]:
    data, pads, value, axes = node.inputs[0], node.inputs[1], node.input(2), node.input(3)
    total = pads.tensor.dims[0] if pads is not None and pads.tensor.dims else None
    if not isinstance(total, int):
        raise Refused("the number of padded axes is known at run time only")
    assert data is not None and pads is not None
    have, amounts, count = lowering.shape_of(data), operand(lowering, pads), total // 2
    chosen: Any = [tirx.IntImm("int64", n) for n in range(len(have))]
    if axes is not None:
        chosen = operand(lowering, axes)
    fill = [] if value is None else [lowering[value]]
    compute_sizes(lowering, node, partial(_padded_sizes, count=count), have, amounts, chosen)
    x, dims, mode = lowering[data], lowering.shape_of(node.output), str(node.attrs["mode"])
    return [lowering.te(_padded, x, amounts, chosen, fill, dims, count, mode)]


def _padded_sizes(have: list[Any], pads: Any, axes: Any, *, count: int) -> list[Any]:
    borders = (_border(pads, axes, axis, len(have), count) for axis in range(len(have)))
    return [size + before + after for size, (before, after) in zip(have, borders, strict=True)]


def _padded(
    x: Any, pads: Any, axes: Any, fill: list[Any], dims: list[Any], count: int, mode: str
) -> Any:
    borders = _borders(pads, axes, len(dims), count)
    number = tirx.const(0, x.dtype)
    if fill:
        number = fill[0][()] if not fill[0].shape else fill[0][0]

    def pick(*index: Any) -> Any:
        places, inside = [], []
        for i, size, (before, after) in zip(index, x.shape, borders, strict=True):
            first = tirx.max(-before, 0)  # Negative pads crop, before positive ones are added.
            left = size - first - tirx.max(-after, 0)
            place = i - tirx.max(before, 0)
            inside += [place >= 0, place < left]
            places.append(first + _REACH[mode](place, left))
        if mode == "constant":
            return te.if_then_else(tirx.all(*inside), x(*places), number) if inside else x()
        return x(*places)

    return te.compute(dims, pick, name="pad")


def _borders(pads: Any, axes: Any, rank: int, count: int) -> list[tuple[Any, Any]]:
    """Padding before and after each axis; computed up front where known at run time only."""
    pairs = [_border(pads, axes, axis, rank, count) for axis in range(rank)]
    if isinstance(pads, list) and isinstance(axes, list):
        return pairs
    amounts = numbers([amount for pair in pairs for amount in pair], "borders")
    return [(amounts[2 * axis], amounts[2 * axis + 1]) for axis in range(rank)]


def _border(pads: Any, axes: Any, axis: int, rank: int, count: int) -> tuple[Any, Any]:
    before = after = tirx.IntImm("int64", 0)
    for n in range(count):
        here = from_end(element(axes, n), rank) == axis
        before = tirx.Select(here, element(pads, n), before)
        after = tirx.Select(here, element(pads, n + count), after)
    return before, after


def _reflected(place: Any, size: Any) -> Any:
    """Back and forth between the first and last elements, which are not repeated."""
    period = tirx.max(2 * (size - 1), 1)
    there = tirx.floormod(place, period)
    return tirx.min(there, period - there)


_REACH = {
    "constant": lambda place, size: place,
    "reflect": _reflected,
    "edge": lambda place, size: within(place, 0, size - 1),
    "wrap": tirx.floormod,
}


# -- Trilu -----------------------------------------------------------------------------------------


def _trilu(lowering: Lowering, node: Node) -> Sequence[Any]:
    value = node.input(1)
    diagonal = [tirx.IntImm("int64", 0)] if value is None else operand(lowering, value)
    upper = bool(node.attrs["upper"])
    return [lowering.te(_triangle, lowering[node.inputs[0]], diagonal, upper)]


def _triangle(x: Any, diagonal: Any, upper: bool) -> Any:
    first, zero = element(diagonal), tirx.const(0, x.dtype)

    def pick(*index: Any) -> Any:
        right = index[-1] - index[-2]
        return tirx.Select(right >= first if upper else right <= first, x(*index), zero)

    return te.compute(x.shape, pick, name="trilu")


# -- DepthToSpace, SpaceToDepth --------------------------------------------------------------------


def _depth_to_space(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, dims = lowering[node.inputs[0]], lowering.shape_of(node.output)
    return [lowering.te(_spread, x, dims, node.attrs["blocksize"], node.attrs["mode"])]


def _spread(x: Any, dims: list[Any], block: int, mode: str) -> Any:
    def pick(n: Any, c: Any, h: Any, w: Any) -> Any:
        lane = tirx.floormod(h, block) * block + tirx.floormod(w, block)
        deep = lane * dims[1] + c if mode == "DCR" else c * block * block + lane
        return x(n, deep, tirx.floordiv(h, block), tirx.floordiv(w, block))

    return te.compute(dims, pick, name="depth_to_space")


def _space_to_depth(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, dims = lowering[node.inputs[0]], lowering.shape_of(node.output)
    return [lowering.te(_gathered, x, dims, node.attrs["blocksize"], node.attrs.get("mode", "DCR"))]


def _gathered(x: Any, dims: list[Any], block: int, mode: str) -> Any:
    def pick(n: Any, deep: Any, h: Any, w: Any) -> Any:
        by = x.shape[1] if mode == "DCR" else block * block
        high, low = tirx.floordiv(deep, by), tirx.floormod(deep, by)
        lane, c = (high, low) if mode == "DCR" else (low, high)
        row, column = tirx.floordiv(lane, block), tirx.floormod(lane, block)
        return x(n, c, h * block + row, w * block + column)

    return te.compute(dims, pick, name="space_to_depth")


# -- ReverseSequence -------------------------------------------------------------------------------


def _reverse_sequence(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, batch, time = node.inputs[0], node.attrs["batch_axis"], node.attrs["time_axis"]
    assert x is not None and x.tensor.dims is not None and isinstance(batch, int)
    lengths = fitting(lowering, node.inputs[1], {0: x.tensor.dims[batch]})
    return [lowering.te(_reversed, lowering[x], lengths, batch, time)]


def _reversed(x: Any, lengths: Any, batch: int, time: int) -> Any:
    def pick(*index: Any) -> Any:
        last = within(lengths(index[batch]).astype("int64"), 0, x.shape[time])
        step = tirx.Select(index[time] < last, last - 1 - index[time], index[time])
        return x(*index[:time], step, *index[time + 1 :])

    return te.compute(x.shape, pick, name="reverse_sequence")


RULES: dict[str, Rule] = {
    "Pad": _pad,
    "Trilu": _trilu,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "ReverseSequence": _reverse_sequence,
}
