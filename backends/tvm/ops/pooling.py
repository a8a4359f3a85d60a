"""Pooling of [batch, channels, positions…]: in sliding windows, or over all positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tvm import te, tirx

from tersor.backends.tvm.lowering import Lowering, Rule
from tersor.backends.tvm.ops._elements import summed_in
from tersor.backends.tvm.ops._window import bordered, borders, places, reach, taps
from tersor.ir import Node
from tersor.ops.window import Window, window


def _over(node: Node) -> Window:
    kernel = node.attrs["kernel_shape"]
    assert isinstance(kernel, tuple)
    return window(kernel, node.attrs)


def _lowest(x: Any) -> Any:
    dtype = str(x.dtype)
    return tirx.const(-math.inf, dtype) if "float" in dtype else tirx.min_value(dtype)


def _framed(x: Any, dims: list[Any], over: Window, fill: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """The operand padded to what the windows cover, and its borders."""
    around = borders(over, x.shape[2:])
    return bordered(x, [b for b, _ in around], reach(over, dims[2:]), fill), around


def _pool(compute: Callable[..., Any]) -> Rule:
    """A rule of ``compute(x, dims, window, attributes)``."""

    def rule(lowering: Lowering, node: Node) -> Sequence[Any]:
        x, dims = lowering[node.inputs[0]], lowering.shape_of(node.output)
        made = partial(compute, over=_over(node), attrs=node.attrs)
        return [lowering.te(made, x, dims, primfunc_name_hint=node.op.lower())]

    return rule


def _max(x: Any, dims: list[Any], *, over: Window, attrs: Any) -> Any:
    framed, _ = _framed(x, dims, over, _lowest(x))
    at = taps(over)
    return te.compute(
        dims, lambda n, c, *i: te.max(framed(n, c, *places(over, i, at)), axis=at), name="max_pool"
    )


def _average(x: Any, dims: list[Any], *, over: Window, attrs: Any) -> Any:
    framed, around = _framed(x, dims, over, tirx.const(0, x.dtype))
    wide, at = summed_in(x), taps(over)
    sums = te.compute(
        dims,
        lambda n, c, *i: te.sum(framed(n, c, *places(over, i, at)).astype(wide), axis=at),
        name="pool_sum",
    )
    padded = bool(attrs["count_include_pad"])

    def pick(n: Any, c: Any, *index: Any) -> Any:
        count = tirx.IntImm("int64", 1)
        for axis, (before, after) in enumerate(around):
            low = 0 if padded else before
            high = x.shape[2 + axis] + before + (after if padded else 0)
            count = count * _counted(over, axis, index[axis], low, high)
        return (sums(n, c, *index) / count.astype(wide)).astype(x.dtype)

    return te.compute(dims, pick, name="average_pool")


def _counted(over: Window, axis: int, index: Any, low: Any, high: Any) -> Any:
    """How many elements of a window are in ``low`` … ``high`` - 1."""
    kernel, dilation = over.kernel[axis], over.dilations[axis]
    begin = index * over.strides[axis]

    def reached(bound: Any) -> Any:
        steps = tirx.floordiv(bound - begin + (dilation - 1), dilation)
        return tirx.max(tirx.min(steps, kernel), 0)

    return reached(high) - reached(low)


def _lp(x: Any, dims: list[Any], *, over: Window, attrs: Any) -> Any:
    framed, _ = _framed(x, dims, over, tirx.const(0, x.dtype))
    wide, at, p = summed_in(x), taps(over), attrs["p"]
    sums = te.compute(
        dims,
        lambda n, c, *i: te.sum(
            _power(framed(n, c, *places(over, i, at)).astype(wide), p), axis=at
        ),
        name="pool_sum",
    )
    return te.compute(dims, lambda *i: _root(sums(*i), p, wide).astype(x.dtype), name="lp_pool")


def _power(item: Any, p: int) -> Any:
    """|item| to the power of p."""
    factor = power = tirx.abs(item)
    for _ in range(p - 1):
        power = power * factor
    return power


def _root(total: Any, p: int, dtype: str) -> Any:
    if p == 1:
        return total
    return tirx.sqrt(total) if p == 2 else tirx.power(total, tirx.const(1 / p, dtype))


# -- MaxPool with indices --------------------------------------------------------------------------


def _max_pool(lowering: Lowering, node: Node) -> Sequence[Any]:
    over, x, dims = _over(node), lowering[node.inputs[0]], lowering.shape_of(node.outputs[0])
    pooled = partial(_max, over=over, attrs=node.attrs)
    greatest = lowering.te(pooled, x, dims, primfunc_name_hint="maxpool")
    if len(node.outputs) == 1 or not node.outputs[1].uses:
        return [greatest]
    compute = partial(_places, over=over, by_columns=bool(node.attrs["storage_order"]))
    return [greatest, lowering.te(compute, x, greatest, primfunc_name_hint="maxpool_places")]


def _places(x: Any, greatest: Any, *, over: Window, by_columns: bool) -> Any:
    """Positions of the maxima: of equal elements the first in row-major order; padding never counts."""
    before = [b for b, _ in borders(over, x.shape[2:])]
    at, have = taps(over), list(x.shape[2:])
    none = tirx.max_value("int64")

    def rank(n: Any, c: Any, *index: Any) -> Any:
        where = [p - b for p, b in zip(places(over, index, at), before, strict=True)]
        inside = tirx.all(*(tirx.all(p >= 0, p < h) for p, h in zip(where, have, strict=True)))
        value = te.if_then_else(inside, x(n, c, *where), _lowest(x))
        is_maximum = tirx.all(inside, value == greatest(n, c, *index))
        return te.min(tirx.Select(is_maximum, _flat(where, have), none), axis=at)

    ranks = te.compute(greatest.shape, rank, name="rank")

    def place(n: Any, c: Any, *index: Any) -> Any:
        offset: Any = ranks(n, c, *index)
        total: Any = tirx.IntImm("int64", 1)
        for size in have:
            total = total * size
        if by_columns:
            where = []
            rest = offset
            for size in have[::-1]:
                where.append(tirx.floormod(rest, size))
                rest = tirx.floordiv(rest, size)
            offset = _flat(where, have[::-1])
        return (n * x.shape[1] + c) * total + offset

    return te.compute(greatest.shape, place, name="places")


def _flat(where: Sequence[Any], sizes: Sequence[Any]) -> Any:
    """The row-major rank of a position."""
    rank: Any = tirx.IntImm("int64", 0)
    for position, size in zip(where, sizes, strict=True):
        rank = rank * size + position
    return rank


# -- all positions at once -------------------------------------------------------------------------


def _global(finish: Callable[[Any, Any, int, str], Any], power: bool = False) -> Rule:
    """A rule: ``finish(sum, count, p, dtype)`` of all elements, or of their powers."""

    def compute(x: Any, p: int) -> Any:
        axes, dims = _all_positions(x)
        wide, count = summed_in(x), tirx.IntImm("int64", 1)
        for size in x.shape[2:]:
            count = count * size

        def add(n: Any, c: Any, *_: Any) -> Any:
            item = x(n, c, *axes).astype(wide)
            return te.sum(_power(item, p) if power else item, axis=axes)

        total = te.compute(dims, add, name="whole_sum")
        return te.compute(
            dims, lambda *i: finish(total(*i), count, p, wide).astype(x.dtype), name="whole"
        )

    def rule(lowering: Lowering, node: Node) -> Sequence[Any]:
        x, p = lowering[node.inputs[0]], node.attrs.get("p", 1)
        return [lowering.te(compute, x, p, primfunc_name_hint=node.op.lower())]

    return rule


def _all_positions(x: Any) -> tuple[list[Any], list[Any]]:
    """Reduction axes over all positions, and the result's dims."""
    axes = [te.reduce_axis((0, size), name=f"r{i}") for i, size in enumerate(x.shape[2:])]
    return axes, [*x.shape[:2], *[tirx.IntImm("int64", 1)] * len(axes)]


def _global_max(lowering: Lowering, node: Node) -> Sequence[Any]:
    def compute(x: Any) -> Any:
        axes, dims = _all_positions(x)
        return te.compute(dims, lambda n, c, *_: te.max(x(n, c, *axes), axis=axes), name="whole")

    return [lowering.te(compute, lowering[node.inputs[0]], primfunc_name_hint="globalmaxpool")]


RULES: dict[str, Rule] = {
    "MaxPool": _max_pool,
    "AveragePool": _pool(_average),
    "LpPool": _pool(_lp),
    "GlobalAveragePool": _global(lambda total, count, p, dtype: total / count.astype(dtype)),
    "GlobalMaxPool": _global_max,
    "GlobalLpPool": _global(lambda total, count, p, dtype: _root(total, p, dtype), power=True),
}
