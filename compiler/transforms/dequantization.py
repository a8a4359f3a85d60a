"""Constants that a model holds in few bits and makes floats of itself, as one encoding each.

    Mul(Cast(@q), @scale)                      affine(q, scale)
    Mul(Sub(Cast(@q), @zero), @scale)          affine(q, scale, zero)
    Add(Mul(Cast(@q), @scale), @least)         affine(q, scale, -least / scale)
    DequantizeLinear(@q, @scale, @zero)        affine(q, scale, zero)
    Cast(@h: f16) to f32                       cast(f16)
    Cast(Sub(Cast(@q) to i32, @zero)) to f32   affine(q, 1, zero)
    Transpose, Reshape, Squeeze, Unsqueeze, Flatten, Identity of a constant, however that is held

Each op is looked at by itself: the first of a chain makes an encoded constant, and the next one
changes its scale or its zero point.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tersor.analysis.match import operand, producer_if
from tersor.ir import Affine, Cast, DType, Encoding, Node, TensorType, Value
from tersor.ops import TABLE


def encoded_result(node: Node) -> Encoding | None:
    """What the result of ``node`` is held as; None where it is no constant, or in no form that is as
    small as its operand."""
    if not node.outputs or not isinstance(node.output.type, TensorType):
        return None
    found = _encoded(node)
    return found if found is not None and found.type == node.output.type else None


def _encoded(node: Node) -> Encoding | None:
    if node.op == "Cast":
        return _cast(node)
    if node.op == "DequantizeLinear":
        return _dequantized(node)
    if node.op in ("Mul", "Div"):
        return _scaled(node)
    if node.op in ("Sub", "Add"):
        return _shifted(node)
    held = node.inputs[0].encoding if node.inputs and node.inputs[0] is not None else None
    if held is None or len(node.outputs) > 1:
        return None
    if node.op == "Transpose":
        perm = node.attrs.get("perm")
        axes = range(len(held.type.shape))
        return held.permute(perm if isinstance(perm, tuple) else axes[::-1])  # type: ignore[arg-type]
    dims = node.output.tensor.dims
    if TABLE.has(node.op, "view") and dims is not None and all(isinstance(d, int) for d in dims):
        return held.reshape(node.output.tensor.shape)
    return None


def is_part_of_quantized_op(node: Node) -> bool:
    """Whether a DequantizeLinear of a constant is written for a product of integers: what reads it reads
    dequantized activations as well."""
    return any(
        v is not None
        and (other := producer_if(v, "DequantizeLinear"))
        and not operand(other, 0).is_constant
        for user in node.output.users
        for v in user.inputs
    )


# -- what makes floats -----------------------------------------------------------------------------


def _cast(node: Node) -> Encoding | None:
    x, dtype = operand(node, 0), node.output.tensor.dtype
    if not dtype.is_float:
        return None
    if x.is_dense and x.tensor.dtype in (DType.F16, DType.BF16):
        return Cast(x.numpy(), dtype) if dtype.bits > x.tensor.dtype.bits else None
    found = _integers(x)
    if found is None:
        return None
    values, zero = found
    if DType.of(values).bits >= dtype.bits:
        return None
    one = np.ones((), dtype.numpy)
    zero = np.zeros((), values.dtype) if zero is None else zero
    return Affine(values, one, zero)


def _integers(x: Value) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Integers, and the one that a model subtracts from all of them in a wider type."""
    if x.is_dense:
        return (x.numpy(), None) if x.tensor.dtype.is_integer else None
    if (cast := producer_if(x, "Cast")) is not None and x.tensor.dtype.is_integer:
        return _integers(operand(cast, 0)) if _widens(operand(cast, 0), x) else None
    if (minus := producer_if(x, "Sub")) is not None and x.tensor.dtype.bits >= 32:
        have, zero = _integers(operand(minus, 0)), operand(minus, 1).encoding
        if have is None or have[1] is not None or zero is None or zero.type.numel != 1:
            return None
        level = np.array(zero.decode()).reshape(())
        fits = _fits(level, DType.of(have[0]))
        return (have[0], level.astype(have[0].dtype)) if fits else None
    return None


def _widens(inner: Value, x: Value) -> bool:
    """Whether a Cast between integers keeps every number."""
    have, made = inner.tensor.dtype, x.tensor.dtype
    signed = made.value.startswith("i")
    return have.is_integer and made.bits > have.bits and (signed or have.value.startswith("u"))


def _dequantized(node: Node) -> Encoding | None:
    x, scale, zero = operand(node, 0), operand(node, 1), node.input(2)
    if not x.is_dense or not x.tensor.dtype.is_integer or not scale.is_dense:
        return None
    if (zero is not None and not zero.is_dense) or scale.tensor.dtype.bits <= x.tensor.dtype.bits:
        return None
    codes, by = x.numpy(), scale.numpy()
    minus = zero.numpy() if zero is not None else np.zeros(by.shape, codes.dtype)
    axis, block = node.attrs["axis"], node.attrs.get("block_size", 0)
    assert isinstance(axis, int) and isinstance(block, int)
    if by.size == 1 and minus.size == 1:
        return Affine(codes, by.reshape(()), minus.reshape(()))
    if by.shape != minus.shape:
        return None
    return Affine(codes, by, minus, axis % codes.ndim, block)


# -- what scales and shifts them -------------------------------------------------------------------


def _scaled(node: Node) -> Encoding | None:
    held, factor = _affine_and_constant(node, commutes=node.op == "Mul")
    if held is None or factor is None or held.scale.dtype != factor.dtype:
        return None
    found = _aligned(held, factor)
    if found is None:
        return None
    held, factor = found
    with np.errstate(all="ignore"):
        scale = held.scale * factor if node.op == "Mul" else held.scale / factor
    return (
        replace(held, scale=np.asarray(scale, factor.dtype)) if np.isfinite(scale).all() else None
    )


def _shifted(node: Node) -> Encoding | None:
    held, term = _affine_and_constant(node, commutes=node.op == "Add")
    if held is None or term is None or held.scale.dtype != term.dtype:
        return None
    found = _aligned(held, term)
    if found is None:
        return None
    held, term = found
    with np.errstate(all="ignore"):
        level = np.asarray((term if node.op == "Sub" else -term) / held.scale)
        level = np.asarray(level + held.zero_point.astype(level.dtype))
    if not np.isfinite(level).all():
        return None
    stored = held.codes.type.dtype
    whole = held.scale.size > 0 and _fits(level, stored)
    return replace(held, zero_point=level.astype(stored.numpy if whole else held.scale.dtype))


def _affine_and_constant(node: Node, commutes: bool) -> tuple[Affine | None, np.ndarray | None]:
    a, b = operand(node, 0), operand(node, 1)
    if commutes and a.is_dense:
        a, b = b, a
    if a.encoding is None or a.encoding.mask is not None or not b.is_dense:
        return None, None
    return a.encoding.layer(Affine), b.numpy()


def _aligned(held: Affine, parameter: np.ndarray) -> tuple[Affine, np.ndarray] | None:
    """The same numbers, and what broadcasts against them in the form of their scale."""
    shape = held.type.shape
    if parameter.ndim > len(shape):
        return None
    if parameter.size == 1:
        return held, np.broadcast_to(parameter.reshape(()), held.scale.shape)
    wide = (1,) * (len(shape) - parameter.ndim) + parameter.shape
    long = [i for i, n in enumerate(wide) if n != 1]
    short = [i for i, n in enumerate(wide) if n == 1 and shape[i] != 1]
    if any(wide[i] != shape[i] for i in long):
        return None
    if len(long) == 1 and held.axis in (None, long[0]) and not held.block:
        return _on_axis(held, long[0], 0, (shape[long[0]],)), parameter.reshape(-1)
    # One for each block of an axis that is a block as a whole: a reshape will make blocks of it.
    if len(short) == 1 and held.axis is None:
        axis = short[0]
        return _on_axis(held, axis, shape[axis], wide), parameter.reshape(wide)
    if held.block and wide == held.scale.shape and short == [held.axis]:
        return held, parameter.reshape(wide)
    return None


def _on_axis(held: Affine, axis: int, block: int, shape: tuple[int, ...]) -> Affine:
    scale, zero = (
        np.broadcast_to(p, shape) if held.axis is None else p for p in (held.scale, held.zero_point)
    )
    return Affine(held.codes, scale, zero, axis, block)


def _fits(level: np.ndarray, dtype: DType) -> bool:
    """Whether zero points are whole numbers of a type."""
    signed = dtype.value.startswith("i")
    low, high = (-(1 << dtype.bits - 1) if signed else 0), (1 << dtype.bits - signed) - 1
    return bool((level == np.rint(level)).all() and (level >= low).all() and (level <= high).all())
