"""Convolutions and pooling, of operands [batch, channels, positions…]; a missing batch axis is added."""

from __future__ import annotations

from typing import Any

from tersor.errors import Unsupported
from tersor.frontends.torch.converters.shape import dims_of, rank_of
from tersor.frontends.torch.lowering import Lowering
from tersor.frontends.torch.registry import converter
from tersor.ir import Value


def _per_axis(value: Any, count: int) -> list[int]:
    """One number for each axis, from one for all or a list."""
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * count if len(numbers) == 1 else numbers


def _batched(ctx: Lowering, x: Value, spatial: int) -> tuple[Value, bool]:
    """``x`` with a batch axis, and whether it had one."""
    if rank_of(x) == spatial + 2:
        return x, True
    return ctx.emit("Unsqueeze", x, ctx.ints([0])), False


def _unbatched(ctx: Lowering, y: Value, batched: bool) -> Value:
    """``y`` without the added batch axis, if ``x`` had none."""
    return y if batched else ctx.emit("Squeeze", y, ctx.ints([0]))


@converter("aten.conv1d", "aten.conv2d", "aten.conv3d")
def conv(
    ctx: Lowering,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    spatial = rank_of(weight) - 2
    x, batched = _batched(ctx, x, spatial)
    kernel = [int(d) for d in dims_of(weight)[2:] if isinstance(d, int)]
    dilations = _per_axis(dilation, spatial)
    y = ctx.emit(
        "Conv", x, weight, bias,
        kernel_shape=tuple(kernel), strides=tuple(_per_axis(stride, spatial)), group=groups,
        dilations=tuple(dilations), pads=_pads(padding, kernel, dilations),
    )  # fmt: skip
    return _unbatched(ctx, y, batched)


def _pads(padding: Any, kernel: list[int], dilations: list[int]) -> tuple[int, ...]:
    """Padding at the beginning of each axis, then at the end; for ``same``, the end gets the odd one."""
    if padding == "valid":
        return (0,) * (2 * len(kernel))
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        return (*(t // 2 for t in totals), *(t - t // 2 for t in totals))
    return tuple(_per_axis(padding, len(kernel)) * 2)


@converter("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def conv_transpose(
    ctx: Lowering,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    spatial = rank_of(weight) - 2
    x, batched = _batched(ctx, x, spatial)
    y = ctx.emit(
        "ConvTranspose", x, weight, bias,
        kernel_shape=tuple(int(d) for d in dims_of(weight)[2:] if isinstance(d, int)),
        strides=tuple(_per_axis(stride, spatial)), pads=tuple(_per_axis(padding, spatial) * 2),
        output_padding=tuple(_per_axis(output_padding, spatial)), group=groups,
        dilations=tuple(_per_axis(dilation, spatial)),
    )  # fmt: skip
    return _unbatched(ctx, y, batched)


@converter("aten.convolution", "aten._convolution")
def convolution(
    ctx: Lowering,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *_: Any,
) -> Value:
    if transposed:
        return conv_transpose(
            ctx, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return conv(ctx, x, weight, bias, stride, padding, dilation, groups)


# -- pooling ---------------------------------------------------------------------------------------


def _spatial(ctx: Lowering) -> int:
    """The number of pooled axes, which is in the op's name (``max_pool2d``)."""
    return next(n for n in (1, 2, 3) if f"pool{n}d" in str(ctx.node.target))


@converter("aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d", "aten.max_pool2d_with_indices",
           "aten.max_pool1d_with_indices")  # fmt: skip
def max_pool(
    ctx: Lowering,
    x: Value,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil: bool = False,
) -> Any:
    spatial = _spatial(ctx)
    x, batched = _batched(ctx, x, spatial)
    y = ctx.emit(
        "MaxPool", x, kernel_shape=tuple(_per_axis(kernel, spatial)),
        strides=tuple(_per_axis(stride or kernel, spatial)), pads=tuple(_per_axis(padding, spatial) * 2),
        dilations=tuple(_per_axis(dilation, spatial)), ceil_mode=int(ceil),
    )  # fmt: skip
    y = _unbatched(ctx, y, batched)
    # torch's indices count within a channel, ONNX's over the whole tensor: they are not converted.
    return (y, None) if "with_indices" in str(ctx.node.target) else y


@converter("aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d")
def avg_pool(
    ctx: Lowering,
    x: Value,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> Value:
    if divisor is not None:
        raise Unsupported("divisor_override is not supported")
    spatial = _spatial(ctx)
    x, batched = _batched(ctx, x, spatial)
    y = ctx.emit(
        "AveragePool", x, kernel_shape=tuple(_per_axis(kernel, spatial)),
        strides=tuple(_per_axis(stride or kernel, spatial)), pads=tuple(_per_axis(padding, spatial) * 2),
        ceil_mode=int(ceil), count_include_pad=int(count_padding),
    )  # fmt: skip
    return _unbatched(ctx, y, batched)


@converter("aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d",
           "aten._adaptive_avg_pool2d")  # fmt: skip
def adaptive_avg_pool(ctx: Lowering, x: Value, output: Any) -> Value:
    """The mean for one output position; pooling for several that divide the operand's size."""
    spatial = _spatial(ctx)
    sizes = _per_axis(output, spatial)
    if all(s == 1 for s in sizes):
        return ctx.emit("ReduceMean", x, ctx.ints(range(-spatial, 0)), keepdims=1)
    have = dims_of(x)[-spatial:]
    if not all(isinstance(h, int) and h % s == 0 for h, s in zip(have, sizes, strict=True)):
        raise Unsupported(
            f"output sizes {sizes} do not divide the input sizes [{', '.join(map(str, have))}]"
        )
    kernel = tuple(int(h) // s for h, s in zip(have, sizes, strict=True) if isinstance(h, int))
    x, batched = _batched(ctx, x, spatial)
    return _unbatched(ctx, ctx.emit("AveragePool", x, kernel_shape=kernel, strides=kernel), batched)


@converter("aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d", "aten.adaptive_max_pool3d")
def adaptive_max_pool(ctx: Lowering, x: Value, output: Any) -> tuple[Any, ...]:
    spatial = _spatial(ctx)
    if any(s != 1 for s in _per_axis(output, spatial)):
        raise Unsupported("output sizes other than 1 are not supported")
    return ctx.emit("ReduceMax", x, ctx.ints(range(-spatial, 0)), keepdims=1), None
