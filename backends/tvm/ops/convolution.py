"""Conv, ConvInteger and ConvTranspose in their direct form, over any number of axes.

Halves are summed in single precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from tvm import te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule
from tersor.backends.tvm.ops._elements import fitting, summed_in
from tersor.backends.tvm.ops._window import bordered, borders, places, reach, taps
from tersor.ir import Node
from tersor.ops.window import Window, window


def _over(node: Node) -> Window:
    """The node's window; its sizes are the weight's."""
    weight = node.inputs[1]
    kernel = weight.tensor.dims[2:] if weight is not None and weight.tensor.dims else ()
    if not all(isinstance(k, int) for k in kernel):
        raise Refused("the kernel's sizes are known at run time only")
    return window(kernel, node.attrs)


def _operands(lowering: Lowering, node: Node) -> list[Any]:
    """Operand, weight, bias (a list, empty without one), and the result's dims."""
    weight, group = node.inputs[1], node.attrs["group"]
    assert weight is not None and weight.tensor.dims is not None and isinstance(group, int)
    lanes, dims = weight.tensor.dims[1], node.output.tensor.dims
    channels = weight.tensor.dims[0] if node.op == "ConvTranspose" else lanes and lanes * group
    x = fitting(lowering, node.inputs[0], {1: channels})
    bias = []
    if node.op != "ConvInteger" and node.input(2) is not None:
        bias = [fitting(lowering, node.inputs[2], {0: dims[1] if dims else None})]
    return [x, lowering[weight], bias, lowering.shape_of(node.output)]


def _finished(sums: Any, bias: list[Any], dtype: str) -> Any:
    """The bias added to each channel, in the operand's dtype."""
    if not bias and sums.dtype == dtype:
        return sums

    def pick(n: Any, o: Any, *index: Any) -> Any:
        total = sums(n, o, *index)
        total = total + bias[0](o).astype(sums.dtype) if bias else total
        return total.astype(dtype)

    return te.compute(sums.shape, pick, name="finished")


def _conv(lowering: Lowering, node: Node) -> Sequence[Any]:
    compute = partial(_convolved, over=_over(node), group=node.attrs["group"])
    return [lowering.te(compute, *_operands(lowering, node), primfunc_name_hint="conv")]


def _convolved(
    x: Any, weight: Any, bias: list[Any], dims: list[Any], *, over: Window, group: Any
) -> Any:
    before = [b for b, _ in borders(over, x.shape[2:])]
    framed = bordered(x, before, reach(over, dims[2:]), tirx.const(0, x.dtype))
    wide = summed_in(x)
    inner, at = te.reduce_axis((0, weight.shape[1]), name="c"), taps(over)
    each = tirx.floordiv(weight.shape[0], group)

    def pick(n: Any, o: Any, *index: Any) -> Any:
        first = 0 if group == 1 else tirx.floordiv(o, each) * weight.shape[1]
        read = framed(n, first + inner, *places(over, index, at)).astype(wide)
        return te.sum(read * weight(o, inner, *at).astype(wide), axis=[inner, *at])

    return _finished(te.compute(dims, pick, name="conv"), bias, x.dtype)


def _conv_integer(lowering: Lowering, node: Node) -> Sequence[Any]:
    """A convolution of both operands minus their zero points, in 32 bits."""
    over, group = _over(node), node.attrs["group"]
    x, weight, _, dims = _operands(lowering, node)
    zeros = [lowering[v] if (v := node.input(i)) is not None else None for i in (2, 3)]

    def compute(x: Any, weight: Any, zeros: list[Any], dims: list[Any]) -> Any:
        left = iter(zeros)
        x = _without(x, next(left) if has_x else None)
        weight = _without(weight, next(left) if has_w else None)
        return _convolved(x, weight, [], dims, over=over, group=group)

    has_x, has_w = (z is not None for z in zeros)
    given = [z for z in zeros if z is not None]
    return [lowering.te(compute, x, weight, given, dims, primfunc_name_hint="conv_integer")]


def _without(x: Any, zero: Any) -> Any:
    """Minus a zero point: one for all, or one for each index of the first axis."""

    def pick(*index: Any) -> Any:
        wide = x(*index).astype("int32")
        if zero is None:
            return wide
        place = [] if not len(zero.shape) else [0 if zero.shape[0] == 1 else index[0]]
        return wide - zero(*place).astype("int32")

    return te.compute(x.shape, pick, name="whole")


def _conv_transpose(lowering: Lowering, node: Node) -> Sequence[Any]:
    over, more = _over(node), None
    if node.attrs.get("output_shape") or over.auto_pad.startswith("SAME"):
        more = node.attrs.get("output_padding") or (0,) * len(over.kernel)
    compute = partial(_transposed, over=over, group=node.attrs["group"], more=more)
    return [lowering.te(compute, *_operands(lowering, node), primfunc_name_hint="conv_transpose")]


def _transposed(
    x: Any, weight: Any, bias: list[Any], dims: list[Any], *, over: Window, group: Any, more: Any
) -> Any:
    """Each element of ``x`` times the kernel, as one product of matrices; then every position sums the
    products that fall on it.

    With a stride of 2, a kernel of 4 and no padding, position 5 = 2 * 2 + 1 gets the products of element 2
    by weight 1 and of element 1 by weight 3: of the kernel's weights a position meets each second one.
    """
    products = _products(x, weight, dims[1], group)
    first = _cropped(x, dims, over, more)
    counts = [
        -(-k // stride) if dilation == 1 else k
        for k, stride, dilation in zip(over.kernel, over.strides, over.dilations, strict=True)
    ]
    steps = [te.reduce_axis((0, n), name=f"j{i}") for i, n in enumerate(counts)]

    def pick(n: Any, o: Any, *index: Any) -> Any:
        taps, where, meets = [], [], list[Any]()
        for axis, (i, j, b) in enumerate(zip(index, steps, first, strict=True)):
            stride, dilation, size = over.strides[axis], over.dilations[axis], x.shape[2 + axis]
            full = i + b
            if dilation == 1:
                taps.append(tirx.floormod(full, stride) + j * stride)
                where.append(tirx.floordiv(full, stride) - j)
            else:
                taps.append(j.var)
                where.append(tirx.floordiv(full - j * dilation, stride))
                meets.append(tirx.floormod(full - j * dilation, stride) == 0)
            meets += [taps[-1] < over.kernel[axis], where[-1] >= 0, where[-1] < size]
        product = products(n, o, *taps, *where)
        chosen = te.if_then_else(tirx.all(*meets), product, tirx.const(0, str(products.dtype)))
        return te.sum(chosen, axis=steps)

    return _finished(te.compute(dims, pick, name="conv_transpose"), bias, x.dtype)


def _products(x: Any, weight: Any, channels: Any, group: Any) -> Any:
    """[batch, channel, tap, position]: sums over the input's channels."""
    wide, rank = summed_in(x), len(x.shape) - 2
    lanes = tirx.floordiv(x.shape[1], group)
    inner = te.reduce_axis((0, lanes), name="c")

    def pick(n: Any, o: Any, *index: Any) -> Any:
        # Without groups all channels read the same rows, which the schedule sees only in plain indices.
        first = 0 if group == 1 else tirx.floordiv(o, weight.shape[1]) * lanes
        lane = o if group == 1 else tirx.floormod(o, weight.shape[1])
        read = x(n, first + inner, *index[rank:]).astype(wide)
        factor = weight(first + inner, lane, *index[:rank]).astype(wide)
        return te.sum(read * factor, axis=[inner])

    shape = [x.shape[0], channels, *weight.shape[2:], *x.shape[2:]]
    return te.compute(shape, pick, name="products")


def _cropped(x: Any, dims: list[Any], over: Window, more: Any) -> list[Any]:
    """Positions cropped in front of each axis: as stated or, with ``more`` (the output padding), half of the
    excess over the requested size."""
    if more is None:
        return [b for b, _ in borders(over, x.shape[2:])]
    first = []
    for size, wanted, stride, span, extra in zip(
        x.shape[2:], dims[2:], over.strides, over.span, more, strict=True
    ):
        surplus = (size - 1) * stride + span + extra - wanted
        half = tirx.floordiv(surplus, 2)
        first.append(half if over.auto_pad == "SAME_UPPER" else surplus - half)
    return first


RULES: dict[str, Rule] = {
    "Conv": _conv,
    "ConvInteger": _conv_integer,
    "ConvTranspose": _conv_transpose,
}
