"""Dequantization that a model spells out in ops, as one encoded constant.

    Mul(Cast(@q), @scale)                      affine(q, scale)
    Mul(Sub(Cast(@q), @zero), @scale)          affine(q, scale, zero)
    Add(Mul(Cast(@q), @scale), @least)         affine(q, scale, -least / scale)
    DequantizeLinear(@q, @scale, @zero)        affine(q, scale, zero)
    Cast(@h: f16) to f32                       cast(f16)
    Cast(Sub(Cast(@q) to i32, @zero)) to f32   affine(q, 1, zero)
    Transpose, Reshape, Squeeze, Unsqueeze, Flatten, Identity of a constant in any encoding

Ops are folded one at a time: the first of a chain gives an encoded constant, the next ones change its
scale or zero point.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tersor.analysis.match import operand, producer_if
from tersor.ir import Affine, Cast, DType, Encoding, Node, TensorType, Value
from tersor.ops import TABLE


def encoded_result(node: Node) -> Encoding | None:
    """The result of ``node`` as a constant no larger than its operand; None where it is not constant, or
    has no such encoding."""
    if not node.outputs or not isinstance(node.output.type, TensorType):
        return None
    encoding = _folded(node)
    return encoding if encoding is not None and encoding.type == node.output.type else None


def _folded(node: Node) -> Encoding | None:
    if node.op == "Cast":
        return _cast(node)
    if node.op == "DequantizeLinear":
        return _dequantized(node)
    if node.op in ("Mul", "Div"):
        return _scaled(node)
    if node.op in ("Sub", "Add"):
        return _shifted(node)
    encoding = node.inputs[0].encoding if node.inputs and node.inputs[0] is not None else None
    if encoding is None or len(node.outputs) > 1:
        return None
    if node.op == "Transpose":
        perm = node.attrs.get("perm")
        axes = range(len(encoding.type.shape))
        return encoding.permute(perm if isinstance(perm, tuple) else axes[::-1])  # type: ignore[arg-type]
    dims = node.output.tensor.dims
    if TABLE.has(node.op, "view") and dims is not None and all(isinstance(d, int) for d in dims):
        return encoding.reshape(node.output.tensor.shape)
    return None


# -- integers or 16 bits to floats -----------------------------------------------------------------


def _cast(node: Node) -> Encoding | None:
    x, dtype = operand(node, 0), node.output.tensor.dtype
    if not dtype.is_float:
        return None
    if x.is_dense and x.tensor.dtype in (DType.F16, DType.BF16):
        return Cast(x.numpy(), dtype) if dtype.bits > x.tensor.dtype.bits else None
    integers = _integers(x)
    if integers is None:
        return None
    values, zero = integers
    if DType.of(values).bits >= dtype.bits:
        return None
    one = np.ones((), dtype.numpy)
    zero = np.zeros((), values.dtype) if zero is None else zero
    return Affine(values, one, zero)


def _integers(x: Value) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Integers, and the zero point that the model subtracts from them in a wider type."""
    if x.is_dense:
        return (x.numpy(), None) if x.tensor.dtype.is_integer else None
    if (cast := producer_if(x, "Cast")) is not None and x.tensor.dtype.is_integer:
        return _integers(operand(cast, 0)) if _widens(operand(cast, 0), x) else None
    if (minus := producer_if(x, "Sub")) is not None and x.tensor.dtype.bits >= 32:
        inner, zero = _integers(operand(minus, 0)), operand(minus, 1).encoding
        if inner is None or inner[1] is not None or zero is None or zero.type.numel != 1:
            return None
        values, zero_point = inner[0], np.array(zero.decode()).reshape(())
        fits = _fits(zero_point, DType.of(values))
        return (values, zero_point.astype(values.dtype)) if fits else None
    return None


def _widens(inner: Value, x: Value) -> bool:
    """Whether a Cast between integers preserves every value."""
    old, new = inner.tensor.dtype, x.tensor.dtype
    signed = new.value.startswith("i")
    return old.is_integer and new.bits > old.bits and (signed or old.value.startswith("u"))


def _dequantized(node: Node) -> Encoding | None:
    x, scale, zero = operand(node, 0), operand(node, 1), node.input(2)
    if not x.is_dense or not x.tensor.dtype.is_integer or not scale.is_dense:
        return None
    if (zero is not None and not zero.is_dense) or scale.tensor.dtype.bits <= x.tensor.dtype.bits:
        return None
    codes, scales = x.numpy(), scale.numpy()
    zeros = zero.numpy() if zero is not None else np.zeros(scales.shape, codes.dtype)
    axis, block = node.attrs["axis"], node.attrs.get("block_size", 0)
    assert isinstance(axis, int) and isinstance(block, int)
    if scales.size == 1 and zeros.size == 1:
        return Affine(codes, scales.reshape(()), zeros.reshape(()))
    if scales.shape != zeros.shape:
        return None
    return Affine(codes, scales, zeros, axis % codes.ndim, block)


# -- scaling and shifting them ---------------------------------------------------------------------


def _scaled(node: Node) -> Encoding | None:
    aligned = _affine_and_parameter(node, commutes=node.op == "Mul")
    if aligned is None:
        return None
    affine, factor = aligned
    with np.errstate(all="ignore"):
        scale = affine.scale * factor if node.op == "Mul" else affine.scale / factor
    if not np.isfinite(scale).all():
        return None
    return replace(affine, scale=np.asarray(scale, factor.dtype))


def _shifted(node: Node) -> Encoding | None:
    aligned = _affine_and_parameter(node, commutes=node.op == "Add")
    if aligned is None:
        return None
    affine, term = aligned
    with np.errstate(all="ignore"):
        zero = np.asarray((term if node.op == "Sub" else -term) / affine.scale)
        zero = np.asarray(zero + affine.zero_point.astype(zero.dtype))
    if not np.isfinite(zero).all():
        return None
    stored = affine.codes.type.dtype
    whole = affine.scale.size > 0 and _fits(zero, stored)
    return replace(affine, zero_point=zero.astype(stored.numpy if whole else affine.scale.dtype))


def _affine_and_parameter(node: Node, commutes: bool) -> tuple[Affine, np.ndarray] | None:
    """The quantized operand and the other one, which is a constant of the scale's type and shape."""
    a, b = operand(node, 0), operand(node, 1)
    if commutes and a.is_dense:
        a, b = b, a
    if a.encoding is None or a.encoding.mask is not None or not b.is_dense:
        return None
    affine, parameter = a.encoding.layer(Affine), b.numpy()
    if affine is None or affine.scale.dtype != parameter.dtype:
        return None
    return _aligned(affine, parameter)


def _aligned(affine: Affine, parameter: np.ndarray) -> tuple[Affine, np.ndarray] | None:
    """The same numbers with as many scales as ``parameter`` needs, and ``parameter`` in the scales' shape;
    None where they do not match."""
    shape = affine.type.shape
    if parameter.ndim > len(shape):
        return None
    if parameter.size == 1:
        return affine, np.broadcast_to(parameter.reshape(()), affine.scale.shape)
    wide = (1,) * (len(shape) - parameter.ndim) + parameter.shape
    long = [i for i, n in enumerate(wide) if n != 1]
    short = [i for i, n in enumerate(wide) if n == 1 and shape[i] != 1]
    if any(wide[i] != shape[i] for i in long):
        return None
    if len(long) == 1 and affine.axis in (None, long[0]) and not affine.block:
        return _on_axis(affine, long[0], 0, (shape[long[0]],)), parameter.reshape(-1)
    # Blocks that span a whole axis, which a later Reshape merges with others.
    if len(short) == 1 and affine.axis is None:
        axis = short[0]
        return _on_axis(affine, axis, shape[axis], wide), parameter.reshape(wide)
    if affine.block and wide == affine.scale.shape and short == [affine.axis]:
        return affine, parameter.reshape(wide)
    return None


def _on_axis(affine: Affine, axis: int, block: int, shape: tuple[int, ...]) -> Affine:
    """Per-tensor parameters broadcast to one per position or block of ``axis``."""
    scale, zero = (
        np.broadcast_to(p, shape) if affine.axis is None else p
        for p in (affine.scale, affine.zero_point)
    )
    return Affine(affine.codes, scale, zero, axis, block)


def _fits(zero: np.ndarray, dtype: DType) -> bool:
    """Whether zero points are whole numbers in the range of ``dtype``."""
    signed = dtype.value.startswith("i")
    low, high = (-(1 << dtype.bits - 1) if signed else 0), (1 << dtype.bits - signed) - 1
    return bool((zero == np.rint(zero)).all() and (zero >= low).all() and (zero <= high).all())
