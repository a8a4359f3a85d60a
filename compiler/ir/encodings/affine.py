"""Affine: integers with a scale and a zero point (quantized).

per column of w[2, 3]:   q = round(w / scale) + zero_point,   w ~ (q - zero_point) * scale
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tersor.ir.encodings.concat import concat
from tersor.ir.encodings.encoding import Encoding, Layer, along, packed_bytes, register
from tersor.ir.encodings.packed import Packed, compact, natural_bits
from tersor.ir.types import DType, TensorType


@register
@dataclass(frozen=True, eq=False, init=False)
class Affine(Layer):
    """``(codes - zero_point) * scale``.

    ``codes`` are integers of the tensor's shape: an array (int8, uint8, int4 …), packed if its elements
    are smaller than a byte, or an encoding. ``bits`` is the width of an array's elements, if smaller than
    its dtype's (3-bit weights in int8).

    ``scale`` (float) and ``zero_point`` are scalars (per tensor), vectors along ``axis`` (per channel),
    or, with ``block`` > 0, of the tensor's shape with ``axis`` divided by ``block``, rounded up
    (blockwise): the three forms of ONNX's DequantizeLinear. The zero point has the codes' dtype, or
    ``scale``'s if it is fractional or outside the codes' range.

    Raises:
        ValueError: scale or zero point have the wrong shape or dtype, or codes do not fit in ``bits``.
    """

    codes: Encoding
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None
    block: int = 0
    form: ClassVar[str] = "affine"

    def __init__(
        self,
        codes: np.ndarray | Encoding,
        scale: np.ndarray,
        zero_point: np.ndarray,
        axis: int | None = None,
        block: int = 0,
        bits: int = 0,
    ) -> None:
        if not isinstance(codes, Encoding) or codes.is_dense:
            codes = compact(codes.decode() if isinstance(codes, Encoding) else codes, bits)
        scale, zero_point = map(np.asarray, (scale, zero_point))  # Numpy scalars are not arrays.
        self.__dict__.update(
            codes=codes, scale=scale, zero_point=zero_point, axis=axis, block=block
        )
        expected = self._parameter_shape()
        if scale.shape != expected or zero_point.shape != expected:
            raise ValueError(
                f"Affine of {codes.type.shape}, axis {axis}, block {block} needs scale and "
                f"zero point of shape {expected}, got {scale.shape} and {zero_point.shape}"
            )
        stored = codes.type.dtype.numpy
        if zero_point.dtype not in (stored, scale.dtype):
            raise ValueError(f"zero point is {zero_point.dtype}, values are {stored}")

    def _parameter_shape(self) -> tuple[int, ...]:
        shape = self.codes.type.shape
        if self.axis is None:
            return ()
        if not 0 <= self.axis < len(shape):
            raise ValueError(f"axis {self.axis} is outside of shape {shape}")
        if not self.block:
            return (shape[self.axis],)
        return tuple(-(-n // self.block) if i == self.axis else n for i, n in enumerate(shape))

    @property
    def values(self) -> np.ndarray:
        """The codes as an array; packed codes are unpacked at each call."""
        return self.codes.decode()

    @property
    def type(self) -> TensorType:
        return TensorType(DType.of(self.scale), self.codes.type.dims)

    @property
    def is_symmetric(self) -> bool:
        return not self.zero_point.astype(np.float64).any()

    @property
    def is_standard(self) -> bool:
        """Whether DequantizeLinear and integer kernels accept it: its zero points have the codes' dtype."""
        return DType.of(self.zero_point) is self.codes.type.dtype or self.is_symmetric

    def expanded(self, parameter: np.ndarray) -> np.ndarray:
        """``scale`` or ``zero_point`` in a shape that broadcasts against ``values``."""
        if self.axis is None:
            return parameter
        shape = self.codes.type.shape
        if self.block:
            return np.take(parameter, np.arange(shape[self.axis]) // self.block, axis=self.axis)
        return parameter.reshape(along(shape, self.axis))

    def decode(self) -> np.ndarray:
        zero, scale = self.expanded(self.zero_point), self.expanded(self.scale)
        if self.is_standard:
            zero = zero.astype(np.int32)
            centred = (self.values.astype(np.int32, copy=False) - zero).astype(scale.dtype)
        else:
            centred = self.values.astype(scale.dtype) - zero
        decoded: np.ndarray = (centred * scale).astype(scale.dtype, copy=False)
        return decoded

    def is_zero(self) -> np.ndarray:
        return np.asarray(self.values == self.expanded(self.zero_point))

    def stored_bytes(self, elements: int) -> int:
        zeros = 0 if self.is_symmetric else _bytes(self.zero_point)
        return self.codes.stored_bytes(elements) + _bytes(self.scale) + zeros

    # -- the same form with other numbers ----------------------------------------------------------

    def take(self, positions: np.ndarray, axis: int) -> Encoding:
        """Along the block axis, uses the largest block size that puts no two old blocks in one new block;
        dense if the result would not be smaller than the numbers themselves."""
        codes, scale, zero = self.codes.take(positions, axis), self.scale, self.zero_point
        if not self.block or axis != self.axis:
            if self.block or axis == self.axis:
                at = axis if self.block else 0
                scale, zero = np.take(scale, positions, at), np.take(zero, positions, at)
            return Affine(codes, scale, zero, self.axis, self.block)
        old = np.arange(self.codes.type.shape[axis])[positions] // self.block
        for block in range(self.block, 0, -1):
            first = old[::block]
            if self.block % block == 0 and (np.repeat(first, block)[: len(old)] == old).all():
                scale, zero = np.take(scale, first, axis), np.take(zero, first, axis)
                cut = Affine(codes, scale, zero, axis, block)
                if cut.nbytes < packed_bytes(math.prod(cut.type.shape), cut.type.dtype.bits):
                    return cut
                break
        return super().take(positions, axis)

    def permute(self, perm: Sequence[int]) -> Affine:
        order = [int(p) for p in perm]
        axis = None if self.axis is None else order.index(self.axis)
        scale, zero = self.scale, self.zero_point
        if self.block:
            scale, zero = scale.transpose(order), zero.transpose(order)
        return Affine(self.codes.permute(order), scale, zero, axis, self.block)

    def reshape(self, shape: Sequence[int]) -> Affine | None:
        """None if the axis of the scales is split or merged; a block axis may merge with the axis before
        it."""
        codes, axis = self.codes.reshape(shape), self.axis
        if codes is None:
            return None
        scale, zero = self.scale, self.zero_point
        if axis is not None:
            have, new = self.codes.type.shape, codes.type.shape
            if axis and self.block and self.block == have[axis] and new == _merged(have, axis):
                # The whole axis was one block.
                parameters = _merged(scale.shape, axis)
                scale, zero = scale.reshape(parameters), zero.reshape(parameters)
                return Affine(codes, scale, zero, axis - 1, self.block)
            before = math.prod(have[:axis])
            fits = [
                i for i, n in enumerate(new) if n == have[axis] and math.prod(new[:i]) == before
            ]
            if self.block or not fits:
                return None
            axis = fits[0]
        return Affine(codes, scale, zero, axis, self.block)

    def on_axis(self, axis: int) -> Affine:
        """The same numbers with parameters along ``axis``; per-tensor parameters are broadcast."""
        if self.axis == axis and not self.block:
            return self
        if self.axis is not None:
            raise ValueError(f"{self.describe()} cannot have parameters along axis {axis}")
        shape = (self.codes.type.shape[axis],)
        scale, zero = (np.broadcast_to(p, shape) for p in (self.scale, self.zero_point))
        return Affine(self.codes, scale, zero, axis)

    def scaled(self, factor: np.ndarray, axis: int | None) -> Encoding:
        if axis is not None and not (self.axis in (None, axis) and not self.block):
            return super().scaled(factor, axis)
        same = self if axis is None else self.on_axis(axis)
        return same.over(same.codes, scale=(same.scale * factor).astype(self.scale.dtype))

    def zeroed(self, mask: np.ndarray) -> Encoding:
        zero = self.expanded(self.zero_point)
        if not self.is_standard:  # No code means zero.
            return super().zeroed(mask)
        codes = np.where(mask, self.values, zero.astype(self.values.dtype))
        return self.over(compact(codes, self.bits))

    def concat_key(self, axis: int) -> tuple[object, ...] | None:
        codes, ends_whole = self.codes.concat_key(axis), True
        if self.block and self.axis == axis:
            ends_whole = self.codes.type.shape[axis] % self.block == 0
        if codes is None or not ends_whole or not (self.block or self.axis in (None, axis)):
            return None
        along_axis = self.axis if self.block else axis
        return self.form, along_axis, self.block, self.scale.dtype, self.zero_point.dtype, *codes

    def joined(self, others: Sequence[Encoding], axis: int) -> Affine:
        parts = [affine for affine in (self, *others) if isinstance(affine, Affine)]
        if not self.block:
            parts = [affine.on_axis(axis) for affine in parts]
        at = axis if self.block else 0
        scale = np.concatenate([p.scale for p in parts], at)
        zero = np.concatenate([p.zero_point for p in parts], at)
        codes = concat([p.codes for p in parts], axis)
        return Affine(codes, scale, zero, parts[0].axis, self.block)

    # -- text --------------------------------------------------------------------------------------

    def parts(self) -> dict[str, Any]:
        parts = super().parts()
        if isinstance(self.codes, Packed):
            parts["codes"] = self.values
            if self.bits != natural_bits(self.codes.dtype):
                parts["bits"] = self.bits
        return parts

    def describe(self) -> str:
        where = "" if self.axis is None else f", axis={self.axis}"
        block = f", block={self.block}" if self.block else ""
        return f"{self.form}({self.codes.element}{where}{block})"

    @classmethod
    def examples(cls, inner: Encoding) -> Iterator[Encoding]:
        stored, shape = inner.type.dtype, inner.type.shape
        if not stored.is_integer or stored.bits > 16:
            return

        def parameters(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
            steps = np.arange(math.prod(shape)).reshape(shape)
            return (0.5 + steps / 8).astype(np.float32), (steps % 2).astype(stored.numpy)

        scale, zero = parameters(())
        yield Affine(inner, scale, zero)
        yield Affine(inner, scale, np.array(0.5, np.float32))
        for axis, n in enumerate(shape):
            yield Affine(inner, *parameters((n,)), axis)
            for block in (2, n or 1):
                blocks = tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
                yield Affine(inner, *parameters(blocks), axis, block)


def _merged(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    """``shape`` with an axis merged into the one before it."""
    return (*shape[: axis - 1], shape[axis - 1] * shape[axis], *shape[axis + 1 :])


def _bytes(array: np.ndarray) -> int:
    return packed_bytes(array.size, DType.of(array).bits)
