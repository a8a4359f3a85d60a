"""Resize: interpolation, axis by axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tersor.errors import Unsupported, one_line
from tersor.ir import Dim, Node, Value, ValueType
from tersor.ops.families._symbolic import checked_axes, known, refuse, tensor
from tersor.ops.families._ties import constant, dims, plain
from tersor.ops.opdef import Cost, Cut, Follow, OpDef, Sample, Tie

_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}  # Elements read per result element and axis.


def _axes(node: Node, rank: int) -> list[int]:
    stated = node.attrs.get("axes")
    given = [a for a in stated if isinstance(a, int)] if isinstance(stated, tuple) else range(rank)
    return checked_axes(node, list(given), rank)


def _scales(value: Value | None) -> list[float] | None:
    """Numbers of a constant operand; None if it is left out or computed."""
    if value is None or not value.is_constant:
        return None
    return [float(s) for s in value.numpy()]


def _infer(node: Node) -> list[ValueType]:
    x = tensor(node)
    if node.attrs["mode"] not in _TAPS:
        refuse(node, f"unknown mode {one_line(node.attrs['mode'], 40)!r}")
    if x.dims is None:
        return [x]
    axes, out = _axes(node, len(x.dims)), list(x.dims)
    entries = _resized(node, [x.dims[a] for a in axes])
    if len(entries) != len(axes):
        refuse(node, f"{len(entries)} sizes or scales for {len(axes)} axes")
    for axis, size in zip(axes, entries, strict=True):
        out[axis] = size
    return [x.with_dims(tuple(out))]


def _resized(node: Node, have: Sequence[Dim]) -> list[Dim]:
    """New sizes of axes of the sizes ``have``; None if unknown."""
    sizes, scales = known(node.input(3)), _scales(node.input(2))
    if sizes:
        stretched = node.attrs["keep_aspect_ratio_policy"] == "stretch"
        return list(sizes) if stretched else [None] * len(have)
    if not scales:
        return [None] * len(have)
    return [_scaled(size, s) for size, s in zip(have, scales, strict=False)]


def _scaled(size: Dim, scale: float) -> Dim:
    if isinstance(size, int):
        return math.floor(size * scale)
    return size * int(scale) if size is not None and scale == int(scale) else None


def _cost(node: Node) -> Cost:
    """The reads of one axis per element of the result, because the number of resized axes may be unknown."""
    numel = node.output.tensor.numel
    return Cost(0, None if numel is None else numel * _TAPS[str(node.attrs["mode"])])


def _ties(node: Node) -> list[Tie]:
    """Axes that keep their size."""
    have, out = dims(node.inputs[0]), dims(node.output)
    scales, axes = _scales(node.input(2)), _axes(node, len(have))
    if node.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        return []
    return [
        Tie(size, (plain("in", 0, i), plain("out", 0, i)))
        for i, size in enumerate(have)
        if size is not None and size == out[i] and (not scales or i not in axes or scales[axes.index(i)] == 1)
    ]  # fmt: skip


def _follow(node: Node, cut: Cut) -> Follow:
    """Explicit sizes include the axes that are not resized."""
    axes = _axes(node, len(dims(node.inputs[0])))
    if node.input(3) is None or not any(cut.get(("out", 0, a)) for a in axes):
        return Follow()
    sizes = constant(node, 3).copy()
    for i, axis in enumerate(axes):
        sizes[i] -= len(cut.get(("out", 0, axis), ()))
    return Follow(operands={3: sizes})


# -- torch -----------------------------------------------------------------------------------------


def _resize(
    x: Any, roi: Any = None, scales: Any = None, sizes: Any = None, *, mode: str, axes: Any = None,
    antialias: int, coordinate_transformation_mode: str, cubic_coeff_a: float, exclude_outside: int,
    extrapolation_value: float, keep_aspect_ratio_policy: str, nearest_mode: str,
) -> Any:  # fmt: skip
    if antialias or keep_aspect_ratio_policy != "stretch":
        raise Unsupported("Resize with antialias or a kept aspect ratio has no torch evaluation")
    chosen = [a % x.dim() for a in axes] if axes else range(x.dim())
    for i, axis in enumerate(chosen):
        size = x.shape[axis]
        wanted = int(sizes[i]) if sizes is not None else math.floor(size * float(scales[i]))
        scale = wanted / size if sizes is not None else float(scales[i])
        if wanted == size and scale == 1:
            continue
        at = _coordinates(coordinate_transformation_mode, size, wanted, scale)
        if mode == "nearest":
            x = x.index_select(axis, _nearest(at, nearest_mode).long().clamp(0, size - 1))
            continue
        a = cubic_coeff_a if mode == "cubic" else None
        x = _blended(x, axis, at, a, bool(exclude_outside))
    return x


def _coordinates(mode: str, size: int, wanted: int, scale: float) -> Any:
    """The operand's coordinates of the result's positions."""
    import torch

    at = torch.arange(wanted, dtype=torch.float32)
    match mode:
        case "asymmetric":
            return at / scale
        case "align_corners":
            return at * (size - 1) / (wanted - 1) if wanted > 1 else at * 0
        case "half_pixel":
            return (at + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5 if wanted > 1 else at * 0
        case "half_pixel_symmetric":
            shift = size / 2 * (1 - wanted / (scale * size))
            return shift + (at + 0.5) / scale - 0.5
    raise Unsupported(
        f"Resize with coordinate_transformation_mode {mode!r} has no torch evaluation"
    )


def _nearest(at: Any, mode: str) -> Any:
    match mode:
        case "floor":
            return at.floor()
        case "ceil":
            return at.ceil()
        case "round_prefer_ceil":
            return (at + 0.5).floor()
    return (at - 0.5).ceil()  # round_prefer_floor


def _blended(x: Any, axis: int, at: Any, a: float | None, exclude: bool) -> Any:
    """Linear between two neighbours, or cubic (coefficient ``a``) between four; outside, the nearest
    element is used, or ignored with ``exclude``."""
    import torch

    size = x.shape[axis]
    first = at.floor()
    part = at - first
    offsets = (0, 1) if a is None else (-1, 0, 1, 2)
    weights = [1 - part, part] if a is None else [_cubic((part - o).abs(), a) for o in offsets]
    places = [first.long() + o for o in offsets]
    if exclude:
        weights = [
            w.where((p >= 0) & (p < size), w.new_zeros(()))
            for w, p in zip(weights, places, strict=True)
        ]
        total = torch.stack(weights).sum(0)
        weights = [w / total for w in weights]
    shape = [-1 if i == axis else 1 for i in range(x.dim())]
    terms = (
        x.index_select(axis, p.clamp(0, size - 1)) * w.reshape(shape)
        for w, p in zip(weights, places, strict=True)
    )
    return sum(terms)


def _cubic(far: Any, a: float) -> Any:
    """Keys' kernel at distances of 0 to 2."""
    near = ((a + 2) * far - (a + 3)) * far * far + 1
    return near.where(far <= 1, ((far - 5) * far + 8) * far * a - 4 * a)


# -- samples and rows ------------------------------------------------------------------------------


def _samples(rng: np.random.Generator) -> list[Sample]:
    x, stated = rng.standard_normal((2, 3, 4, 6)).astype(np.float32), frozenset({2, 3})

    def by_scales(*scales: float, **attrs: Any) -> Sample:
        return Sample([x, None, np.array(scales, np.float32)], attrs, stated)

    def by_sizes(*sizes: int, **attrs: Any) -> Sample:
        return Sample([x, None, None, np.array(sizes)], attrs, stated)

    return [
        by_scales(1, 1, 2, 3, mode="nearest", nearest_mode="floor",
                  coordinate_transformation_mode="asymmetric"),
        by_scales(1, 1, 0.6, 0.5, mode="nearest"),
        by_scales(1, 1, 2, 1.5, mode="linear"),
        by_sizes(2, 3, 7, 5, mode="linear", coordinate_transformation_mode="align_corners"),
        by_sizes(2, 3, 1, 9, mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
        by_sizes(7, 3, mode="nearest", axes=(2, 3), nearest_mode="ceil"),
        by_sizes(2, 3, 7, 5, mode="nearest", nearest_mode="round_prefer_ceil",
                 coordinate_transformation_mode="half_pixel"),
        by_sizes(2, 3, 7, 9, mode="cubic"),
        by_scales(1, 1, 0.5, 2, mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    ]  # fmt: skip


def _needs(node: Node) -> int:
    return 19 if node.attrs["coordinate_transformation_mode"] == "half_pixel_symmetric" else 0


ROWS = [
    OpDef("Resize", since=13, needs=_needs, infer=_infer, torch=_resize, cost=_cost, ties=_ties,
          follow=_follow, samples=_samples),
]  # fmt: skip
