"""Resize: interpolation, one axis at a time.

Coordinates in the operand and the neighbours' weights are computed once per axis, outside the loops over
the elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule
from tersor.backends.tvm.ops._elements import element, operand, summed_in, within
from tersor.backends.tvm.schedule import STAYS
from tersor.ir import Node, Value


@dataclass(frozen=True)
class _Axis:
    """An axis that is resized.

    Attributes:
        axis: of the operand.
        entry: its index among the scales or sizes.
        shrinks: the scale, at most 1, by which antialiasing widens the filter.
    """

    axis: int
    entry: int
    shrinks: float = 1.0


def _resize(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, dims = lowering[node.inputs[0]], lowering.shape_of(node.output)
    stated = node.attrs.get("axes")
    axes = list(range(len(dims)))
    if isinstance(stated, tuple):
        axes = [a % len(dims) for a in stated if isinstance(a, int)]
    kept = _kept(node, axes)
    chosen = [_Axis(a, i, _shrinks(node, a, i)) for i, a in enumerate(axes) if a not in kept]
    for part in chosen:
        _check_corners(node, part)
    roi, scales, sizes = (node.input(i) for i in (1, 2, 3))
    if node.attrs["coordinate_transformation_mode"] != "tf_crop_and_resize":
        roi = None
    compute = partial(_resized, chosen=chosen, axes=axes, attrs=node.attrs)
    given = [lowering[v] if _is_given(v) else None for v in (roi, scales)]
    wanted = operand(lowering, sizes) if sizes is not None and not _is_given(scales) else None
    return [lowering.te(compute, x, dims, *given, wanted, primfunc_name_hint="resize")]


def _is_given(value: Value | None) -> bool:
    """Whether an operand is given: an empty tensor counts as omitted."""
    return value is not None and value.tensor.dims != (0,)


def _numbers(value: Value | None) -> list[float] | None:
    return [float(s) for s in value.numpy()] if value is not None and value.is_constant else None


def _kept(node: Node, axes: list[int]) -> set[int]:
    """Axes that are known to stay unchanged."""
    if node.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        return set()
    x = node.inputs[0]
    assert x is not None
    have, out = x.tensor.dims or (), node.output.tensor.dims or ()
    kept = {a for a in axes if have[a] is not None and have[a] == out[a]}
    if _is_given(node.input(2)):
        scales = _numbers(node.input(2)) or [0.0] * len(axes)
        return {a for a in kept if scales[axes.index(a)] == 1}
    return kept if node.attrs["keep_aspect_ratio_policy"] == "stretch" else set()


def _check_corners(node: Node, part: _Axis) -> None:
    """Refuses scales that give a fractional size: runtimes disagree on the last corner then.

    Raises:
        Refused: such a scale.
    """
    if node.attrs["coordinate_transformation_mode"] != "align_corners":
        return
    x, scales = node.inputs[0], _numbers(node.input(2))
    size = x.tensor.dims[part.axis] if x is not None and x.tensor.dims else None
    if scales and isinstance(size, int) and not (size * scales[part.entry]).is_integer():
        raise Refused("align_corners with a scale that gives no whole size")


def _shrinks(node: Node, axis: int, entry: int) -> float:
    """The antialiasing filter's scale, at most 1.

    Raises:
        Refused: the scale is not known.
    """
    if not node.attrs["antialias"] or node.attrs["mode"] == "nearest":
        return 1.0
    if _is_given(node.input(2)):
        scales = _numbers(node.input(2))
        if scales is not None:
            return min(scales[entry], 1.0)
    elif node.attrs["keep_aspect_ratio_policy"] == "stretch":
        x = node.inputs[0]
        have = x.tensor.dims[axis] if x is not None and x.tensor.dims else None
        out = node.output.tensor.dims[axis] if node.output.tensor.dims else None
        if isinstance(have, int) and isinstance(out, int):
            return min(out / have, 1.0)
    raise Refused("antialias with a scale that is known at run time only")


def _resized(
    x: Any, dims: list[Any], roi: Any, scales: Any, sizes: Any, *,
    chosen: list[_Axis], axes: list[int], attrs: Any,
) -> Any:  # fmt: skip
    have, dtype, mode = x.shape, str(x.dtype), str(attrs["coordinate_transformation_mode"])
    for part in chosen:
        size, wanted = have[part.axis], dims[part.axis]
        scale = _scale(part, have, dims, axes, scales, sizes, attrs)
        transform = _COORDINATES.get(mode)
        if roi is not None:
            transform = partial(_cropped, roi[part.entry], roi[part.entry + len(axes)])
        elif mode == "align_corners" and scales is not None:
            transform = _cornered_by_scale
        assert transform is not None
        at = _coordinates(transform, size, wanted, scale)
        taken = _nearest if attrs["mode"] == "nearest" else _blended
        x = taken(x, part, at, wanted, attrs)
        if roi is not None:
            x = _extrapolated(x, part.axis, at, size, attrs["extrapolation_value"])
    return te.compute(dims, lambda *i: x(*i).astype(dtype), name="resize")


def _scale(
    part: _Axis, have: Any, dims: list[Any], axes: list[int], scales: Any, sizes: Any, attrs: Any
) -> Any:
    """The scale of an axis, in single precision."""
    if scales is not None:
        return scales[part.entry].astype("float32")
    policy = attrs["keep_aspect_ratio_policy"]
    if policy == "stretch":
        return dims[part.axis].astype("float32") / have[part.axis].astype("float32")
    ratios = [
        element(sizes, i).astype("float32") / have[a].astype("float32") for i, a in enumerate(axes)
    ]
    chosen = ratios[0]
    for ratio in ratios[1:]:
        chosen = (tirx.min if policy == "not_larger" else tirx.max)(chosen, ratio)
    return chosen


_STAYS = {STAYS: True}  # The next axis reads several elements of each: do not inline.

# -- coordinates in the operand --------------------------------------------------------------------

_Coordinate = Callable[[Any, Any, Any, Any], Any]
"""From a result's position, the operand's size, the result's size and the scale."""

_HALF, _ONE = tirx.const(0.5, "float32"), tirx.const(1, "float32")
_ZERO = tirx.const(0, "float32")


def _half_pixel(at: Any, size: Any, wanted: Any, scale: Any) -> Any:
    return (at + _HALF) / scale - _HALF


def _symmetric(at: Any, size: Any, wanted: Any, scale: Any) -> Any:
    shift = size / tirx.const(2, "float32") * (_ONE - wanted / (scale * size))
    return shift + _half_pixel(at, size, wanted, scale)


def _cornered(at: Any, size: Any, wanted: Any, scale: Any) -> Any:
    spread = at * (size - _ONE) / tirx.max(wanted - _ONE, _ONE)
    return tirx.Select(wanted > _ONE, spread, _ZERO)


def _cornered_by_scale(at: Any, size: Any, wanted: Any, scale: Any) -> Any:
    """In ONNX the scale, not the last element, determines the last corner."""
    return _cornered(at, size, size * scale, scale)


_COORDINATES: dict[str, _Coordinate] = {
    "asymmetric": lambda at, size, wanted, scale: at / scale,
    "align_corners": _cornered,
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": lambda at, size, wanted, scale: tirx.Select(
        wanted > _ONE, _half_pixel(at, size, wanted, scale), _ZERO
    ),
    "half_pixel_symmetric": _symmetric,
}


def _coordinates(transform: _Coordinate, size: Any, wanted: Any, scale: Any) -> Any:
    have, out = (n.astype("float32") for n in (size, wanted))
    return te.compute(
        (wanted,),
        lambda i: transform(i.astype("float32"), have, out, scale),
        name="coordinates",
        attrs=_STAYS,
    )


def _cropped(start: Any, end: Any, at: Any, size: Any, wanted: Any, scale: Any) -> Any:
    """Coordinates within the region of interest, given as a fraction of the whole."""
    start, end, last = start.astype("float32"), end.astype("float32"), size - _ONE
    many = start * last + at * (end - start) * last / tirx.max(wanted - _ONE, _ONE)
    return tirx.Select(wanted > _ONE, many, _HALF * (start + end) * last)


def _extrapolated(x: Any, axis: int, at: Any, size: Any, value: float) -> Any:
    """``value`` for coordinates outside the operand."""
    last = (size - 1).astype("float32")

    def pick(*index: Any) -> Any:
        place = at(index[axis])
        outside = tirx.any(place < _ZERO, place > last)
        return tirx.Select(outside, tirx.const(value, str(x.dtype)), x(*index))

    return te.compute(x.shape, pick, name="extrapolated", attrs=_STAYS)


# -- interpolation ---------------------------------------------------------------------------------

_NEAREST: dict[str, Callable[[Any], Any]] = {
    "floor": tirx.floor,
    "ceil": tirx.ceil,
    "round_prefer_ceil": lambda at: tirx.floor(at + _HALF),
    "round_prefer_floor": lambda at: tirx.ceil(at - _HALF),
}


def _nearest(x: Any, part: _Axis, at: Any, wanted: Any, attrs: Any) -> Any:
    axis, chosen = part.axis, _NEAREST[str(attrs["nearest_mode"])]
    last = x.shape[axis] - 1
    place = te.compute(
        (wanted,),
        lambda i: within(chosen(at(i)).astype("int64"), 0, last),
        name="places",
        attrs=_STAYS,
    )
    return te.compute(
        [*x.shape[:axis], wanted, *x.shape[axis + 1 :]],
        lambda *i: x(*i[:axis], place(i[axis]), *i[axis + 1 :]),
        name="nearest",
        attrs=_STAYS,
    )


def _blended(x: Any, part: _Axis, at: Any, wanted: Any, attrs: Any) -> Any:
    """Neighbours weighted by a kernel of their distance; outside the operand the nearest element counts or,
    with exclude_outside, none."""
    axis, size, wide = part.axis, x.shape[part.axis], summed_in(x)
    wide = wide if wide.startswith("float") else "float32"
    kernel, radius = _linear, 1
    if attrs["mode"] == "cubic":
        kernel, radius = partial(_cubic, tirx.const(attrs["cubic_coeff_a"], "float32")), 2
    begin = math.floor(-radius / part.shrinks) + 1
    offsets = range(begin, 2 - begin)
    exclude = bool(attrs["exclude_outside"])

    def weight(i: Any, offset: int) -> Any:
        first = tirx.floor(at(i))
        far = tirx.abs(tirx.const(offset, "float32") - (at(i) - first))
        value = kernel(far * tirx.const(part.shrinks, "float32"))
        place = first.astype("int64") + offset
        return tirx.Select(tirx.all(place >= 0, place < size), value, _ZERO) if exclude else value

    def share(i: Any, tap: Any) -> Any:
        weights = [weight(i, offset) for offset in offsets]
        total = weights[0]
        for more in weights[1:]:
            total = total + more
        chosen = weights[-1]
        for n in reversed(range(len(weights) - 1)):
            chosen = tirx.Select(tap == n, weights[n], chosen)
        return chosen / total if exclude or part.shrinks < 1 else chosen

    shares = te.compute(
        (wanted, tirx.IntImm("int64", len(offsets))), share, name="shares", attrs=_STAYS
    )
    first = te.compute(
        (wanted,), lambda i: tirx.floor(at(i)).astype("int64"), name="first", attrs=_STAYS
    )

    def pick(*index: Any) -> Any:
        total = tirx.const(0, wide)
        for n, offset in enumerate(offsets):
            place = within(first(index[axis]) + offset, 0, size - 1)
            item = x(*index[:axis], place, *index[axis + 1 :]).astype(wide)
            total = total + item * shares(index[axis], tirx.IntImm("int64", n)).astype(wide)
        return total

    return te.compute(
        [*x.shape[:axis], wanted, *x.shape[axis + 1 :]], pick, name="blended", attrs=_STAYS
    )


def _linear(far: Any) -> Any:
    return tirx.max(_ONE - far, _ZERO)


def _cubic(a: Any, far: Any) -> Any:
    """Keys's cubic convolution kernel."""
    two, three, five = (tirx.const(n, "float32") for n in (2, 3, 5))
    near = ((a + two) * far - (a + three)) * far * far + _ONE
    farther = (((far - five) * far + five + three) * far - two * two) * a
    return tirx.Select(far <= _ONE, near, tirx.Select(far < two, farther, _ZERO))


RULES: dict[str, Rule] = {"Resize": _resize}
