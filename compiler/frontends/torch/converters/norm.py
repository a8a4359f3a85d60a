"""Normalization layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.errors import Unsupported
from tersor.frontends.torch.converters.reduce import reduced
from tersor.frontends.torch.converters.shape import dims_of, rank_of
from tersor.frontends.torch.lowering import Lowering
from tersor.frontends.torch.registry import converter
from tersor.ir import Value


def _weights(ctx: Lowering, given: Value | None, shape: Any, fill: float, like: Value) -> Value:
    """A layer's weights if it has any, else a constant filled with the neutral number ``fill``."""
    if given is not None:
        return given
    return ctx.constant(np.full(tuple(shape), fill, like.tensor.dtype.numpy))


@converter("aten.layer_norm.default")
def layer_norm(
    ctx: Lowering,
    x: Value,
    shape: list[int],
    weight: Value | None = None,
    bias: Value | None = None,
    epsilon: float = 1e-5,
    cudnn: bool = True,
) -> Value:
    scale = _weights(ctx, weight, shape, 1.0, x)
    return ctx.emit("LayerNormalization", x, scale, bias, axis=-len(shape), epsilon=float(epsilon))


@converter("aten.rms_norm.default")
def rms_norm(
    ctx: Lowering,
    x: Value,
    shape: list[int],
    weight: Value | None = None,
    epsilon: float | None = None,
) -> Value:
    if epsilon is None:
        epsilon = float(np.finfo(x.tensor.dtype.numpy).eps)
    scale = _weights(ctx, weight, shape, 1.0, x)
    return ctx.emit("RMSNormalization", x, scale, axis=-len(shape), epsilon=float(epsilon))


@converter("aten.batch_norm.default")
def batch_norm(
    ctx: Lowering,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    momentum: float,
    epsilon: float,
    cudnn: bool = True,
) -> Value:
    if mean is None or variance is None:
        return _by_batch_statistics(ctx, x, weight, bias, epsilon)
    if training:
        raise Unsupported(
            "updates running statistics, as in training: export the module in evaluation mode"
        )
    channels = dims_of(x)[1:2]
    scale, shift = _weights(ctx, weight, channels, 1.0, x), _weights(ctx, bias, channels, 0.0, x)
    return ctx.emit("BatchNormalization", x, scale, shift, mean, variance, epsilon=float(epsilon))


def _by_batch_statistics(
    ctx: Lowering, x: Value, weight: Value | None, bias: Value | None, epsilon: float
) -> Value:
    """(x - mean) / sqrt(var + epsilon) * weight + bias, over all axes except 1, the channels."""
    rank = rank_of(x)
    axes = [axis for axis in range(rank) if axis != 1]
    centred = ctx.emit("Sub", x, reduced(ctx, "ReduceMean", x, axes, True))
    variance = reduced(ctx, "ReduceMean", ctx.emit("Mul", centred, centred), axes, True)
    deviation = ctx.emit("Sqrt", ctx.emit("Add", variance, ctx.value(epsilon, x.tensor.dtype)))
    y = ctx.emit("Div", centred, deviation)
    channels = ctx.ints([1, -1, *[1] * (rank - 2)])
    for op, operand in (("Mul", weight), ("Add", bias)):
        if operand is not None:
            y = ctx.emit(op, y, ctx.emit("Reshape", operand, channels))
    return y


@converter("aten._native_batch_norm_legit_no_training.default")
def batch_norm_inference(
    ctx: Lowering,
    x: Value,
    weight: Any,
    bias: Any,
    mean: Value,
    variance: Value,
    momentum: float,
    epsilon: float,
) -> tuple[Any, ...]:
    return batch_norm(ctx, x, weight, bias, mean, variance, False, momentum, epsilon), None, None


@converter("aten.group_norm.default")
def group_norm(
    ctx: Lowering,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    epsilon: float = 1e-5,
    cudnn: bool = True,
) -> Value:
    channels = dims_of(x)[1:2]
    scale, shift = _weights(ctx, weight, channels, 1.0, x), _weights(ctx, bias, channels, 0.0, x)
    return ctx.emit(
        "GroupNormalization", x, scale, shift, num_groups=groups, epsilon=float(epsilon)
    )


@converter("aten.instance_norm.default")
def instance_norm(
    ctx: Lowering,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    by_instance: bool,
    momentum: float,
    epsilon: float,
    cudnn: bool = True,
) -> Value:
    if not by_instance:
        return batch_norm(ctx, x, weight, bias, mean, variance, False, momentum, epsilon)
    if rank_of(x) < 3:
        raise Unsupported("instance normalization needs a spatial axis")
    channels = dims_of(x)[1:2]
    scale, shift = _weights(ctx, weight, channels, 1.0, x), _weights(ctx, bias, channels, 0.0, x)
    return ctx.emit("InstanceNormalization", x, scale, shift, epsilon=float(epsilon))
