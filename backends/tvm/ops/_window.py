"""Sliding windows in TE, for convolution and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from tersor.ops.window import Window

Borders = list[tuple[Any, Any]]


def borders(over: Window, sizes: Sequence[Any]) -> Borders:
    """Padding (before, after) of each axis; sizes may be symbolic."""
    if not over.auto_pad.startswith("SAME"):
        stated = [(0, 0)] * len(over.kernel) if over.auto_pad == "VALID" else over.pads
        return [(_long(before), _long(after)) for before, after in stated]
    pads: Borders = []
    for size, stride, span in zip(sizes, over.strides, over.span, strict=True):
        count = tirx.floordiv(size + (stride - 1), stride)
        total = tirx.max((count - 1) * stride + span - size, 0)
        small = tirx.floordiv(total, 2)
        pair = (small, total - small)
        pads.append(pair if over.auto_pad == "SAME_UPPER" else pair[::-1])
    return pads


def _long(number: int) -> Any:
    return tirx.IntImm("int64", number)


def reach(over: Window, counts: Sequence[Any]) -> list[Any]:
    """Positions that ``counts`` windows along each axis cover, padding included."""
    return [
        (count - 1) * stride + span
        for count, stride, span in zip(counts, over.strides, over.span, strict=True)
    ]


def bordered(x: Any, before: Sequence[Any], sizes: Sequence[Any], fill: Any) -> Any:
    """``x`` padded to ``sizes`` with ``fill``, ``before`` positions in front; ``x`` itself where nothing is
    added."""
    have = x.shape[2:]
    if all(_is(b, 0) and _is(s - h, 0) for b, s, h in zip(before, sizes, have, strict=True)):
        return x

    def pick(n: Any, c: Any, *index: Any) -> Any:
        places = [i - b for i, b in zip(index, before, strict=True)]
        inside = [tirx.all(p >= 0, p < h) for p, h in zip(places, have, strict=True)]
        return te.if_then_else(tirx.all(*inside), x(n, c, *places), fill)

    return te.compute([*x.shape[:2], *sizes], pick, name="bordered")


def _is(expression: Any, number: int) -> bool:
    simple = tirx.IntImm("int64", 0) + expression
    return isinstance(simple, tirx.IntImm) and simple.value == number


def taps(over: Window) -> list[Any]:
    """Reduction axes over the window's elements."""
    return [te.reduce_axis((0, _long(k)), name=f"k{i}") for i, k in enumerate(over.kernel)]


def places(over: Window, index: Sequence[Any], at: Sequence[Any]) -> list[Any]:
    """Positions that element ``at`` of the windows at ``index`` reads."""
    return [
        i * stride + k * dilation
        for i, k, stride, dilation in zip(index, at, over.strides, over.dilations, strict=True)
    ]
