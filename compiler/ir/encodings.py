"""How a constant's numbers are held.

``decode()`` always gives the dense numbers back, so a graph keeps its reference meaning whatever
its constants are encoded in, and any compression of a constant can be checked numerically.

    Affine, per column of w[2, 3]:   q = round(w / scale) + zero_point,   w ~ (q - zero_point) * scale
    Cast, of w in half precision:    h = f16(w),   w ~ f32(h)
    Masked, over one of the others:  w where the mask is set, zero elsewhere
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.lib.array_utils import byte_bounds

from tersor.ir.types import DType, TensorType


class Encoding(ABC):
    """A constant's numbers in some form. Immutable; shared between graph copies."""

    @property
    @abstractmethod
    def type(self) -> TensorType:
        """Type of the decoded tensor."""

    @abstractmethod
    def decode(self) -> np.ndarray:
        """The dense numbers, of dtype and shape ``type``."""

    def take(self, kept: np.ndarray, axis: int) -> Encoding:
        """The positions ``kept`` of an axis, in the same form where it allows that, else dense."""
        return Dense(np.take(self.decode(), kept, axis))

    @abstractmethod
    def transpose(self, perm: Sequence[int]) -> Encoding:
        """The axes in the order ``perm``, in the same form; what is large is not copied."""

    def reshape(self, shape: Sequence[int]) -> Encoding | None:
        """The same numbers, in order, in another shape and the same form; None where that has none."""
        return None

    def scaled(self, factor: np.ndarray, axis: int | None) -> Encoding:
        """The numbers times ``factor``: one, or one for each position on ``axis``. In the same form
        where it allows that, else dense; the type stays."""
        by = factor.reshape(_beside(self.type.shape, axis))
        return Dense((self.decode() * by).astype(self.type.dtype.numpy))

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the encoded form takes, scales and the like included."""

    @property
    @abstractmethod
    def place(self) -> tuple[object, ...]:
        """What encodings have in common that hold the same memory, whatever the order of its axes: a
        table, and its transpose for a tied head, are held once."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hex SHA-256 (first 16 digits) over the encoded form; equal contents, equal digests."""

    @abstractmethod
    def describe(self) -> str:
        """The encoding in a few words for the text form: ``dense``, ``affine(i8, axis=1)``."""

    @property
    def unmasked(self) -> Encoding:
        """The same numbers, with no mask that says which of them are to stay zero."""
        return self

    def holding(self, values: Plain) -> Encoding:
        """``values``, of this shape, in place of the numbers: what a mask left out stays zero, and
        numbers that were held in half precision are again."""
        return values


@dataclass(frozen=True, eq=False)
class Dense(Encoding):
    """An array as it is. May be a memory map: nothing is read until it is used."""

    array: np.ndarray

    @property
    def type(self) -> TensorType:
        return TensorType(DType.of(self.array), self.array.shape)

    @property
    def storage(self) -> DType:
        """Element type of ``array``."""
        return DType.of(self.array)

    def decode(self) -> np.ndarray:
        return self.array

    def transpose(self, perm: Sequence[int]) -> Dense:
        return Dense(self.array.transpose(perm))

    def reshape(self, shape: Sequence[int]) -> Dense:
        return Dense(self.array.reshape(shape))

    @property
    def place(self) -> tuple[object, ...]:
        return _place(self.array)

    @property
    def nbytes(self) -> int:
        return _packed_bytes(self.array.size, self.storage)

    @cached_property
    def digest(self) -> str:
        return _digest(self.describe(), self.array)

    def describe(self) -> str:
        return "dense"


@dataclass(frozen=True, eq=False)
class Cast(Encoding):
    """Floats held in a shorter type: ``array`` (float16, bfloat16), which is ``dtype`` to all readers."""

    array: np.ndarray
    dtype: DType

    def __post_init__(self) -> None:
        if not (self.storage.is_float and self.dtype.is_float and self.storage is not self.dtype):
            raise ValueError(
                f"Cast holds floats as shorter ones, not {self.dtype} as {self.storage}"
            )

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, self.array.shape)

    @property
    def storage(self) -> DType:
        """Element type of ``array``."""
        return DType.of(self.array)

    def decode(self) -> np.ndarray:
        return self.array.astype(self.dtype.numpy)

    def holding(self, values: Plain) -> Encoding:
        """Rounded to the short type, if that can hold all of them."""
        if not isinstance(values, Dense) or values.storage is not self.dtype:
            return values
        with np.errstate(over="ignore"):
            short = values.array.astype(self.storage.numpy)
        fits = np.isfinite(short.astype(self.dtype.numpy)) | ~np.isfinite(values.array)
        return Cast(short, self.dtype) if fits.all() else values

    def take(self, kept: np.ndarray, axis: int) -> Cast:
        return Cast(np.take(self.array, kept, axis), self.dtype)

    def transpose(self, perm: Sequence[int]) -> Cast:
        return Cast(self.array.transpose(perm), self.dtype)

    def reshape(self, shape: Sequence[int]) -> Cast:
        return Cast(self.array.reshape(shape), self.dtype)

    @property
    def place(self) -> tuple[object, ...]:
        return _place(self.array)

    @property
    def nbytes(self) -> int:
        return _packed_bytes(self.array.size, self.storage)

    @cached_property
    def digest(self) -> str:
        return _digest(self.describe(), self.array)

    def describe(self) -> str:
        return f"cast({self.storage.value})"


@dataclass(frozen=True, eq=False)
class Affine(Encoding):
    """Integers with a scale and a zero point (quantized): ``(q - zero_point) * scale``.

    ``values`` are integers of the tensor's shape (int8, uint8, int4 …). ``scale`` (float) and
    ``zero_point`` are scalars (per tensor), vectors along ``axis`` (per channel), or, with ``block`` > 0,
    of the tensor's shape with ``axis`` divided by ``block``, rounded up (blockwise): the three forms of
    ONNX's DequantizeLinear. The zero point has ``values``' dtype; or, where it lies between or beyond
    these, ``scale``'s.
    ``bits`` may be fewer than the dtype's where values were kept small on purpose (7-bit weights).
    """

    values: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None
    block: int = 0
    bits: int = 8

    def __post_init__(self) -> None:
        expected = self._parameter_shape()
        if self.scale.shape != expected or self.zero_point.shape != expected:
            raise ValueError(
                f"Affine of {self.values.shape}, axis {self.axis}, block {self.block} needs scale and "
                f"zero point of shape {expected}, got {self.scale.shape} and {self.zero_point.shape}"
            )
        if self.zero_point.dtype not in (self.values.dtype, self.scale.dtype):
            raise ValueError(
                f"zero point is {self.zero_point.dtype}, values are {self.values.dtype}"
            )

    def _parameter_shape(self) -> tuple[int, ...]:
        shape = self.values.shape
        if self.axis is None:
            return ()
        if not 0 <= self.axis < len(shape):
            raise ValueError(f"axis {self.axis} is outside of shape {shape}")
        if not self.block:
            return (shape[self.axis],)
        return tuple(-(-n // self.block) if i == self.axis else n for i, n in enumerate(shape))

    @property
    def type(self) -> TensorType:
        return TensorType(DType.of(self.scale), self.values.shape)

    @property
    def storage(self) -> DType:
        """Element type of ``values``."""
        return DType.of(self.values)

    @property
    def is_symmetric(self) -> bool:
        return not self.zero_point.astype(np.float64).any()

    @property
    def is_standard(self) -> bool:
        """Whether DequantizeLinear and integer kernels take it: its zero points are as its values."""
        return self.zero_point.dtype == self.values.dtype or self.is_symmetric

    def expanded(self, parameter: np.ndarray) -> np.ndarray:
        """``scale`` or ``zero_point`` in a shape that broadcasts against ``values``."""
        if self.axis is None:
            return parameter
        if self.block:
            repeated = np.repeat(parameter, self.block, axis=self.axis)
            return np.take(repeated, range(self.values.shape[self.axis]), axis=self.axis)
        return parameter.reshape(_beside(self.values.shape, self.axis))

    def decode(self) -> np.ndarray:
        zero, scale = self.expanded(self.zero_point), self.expanded(self.scale)
        if self.is_standard:
            zero = zero.astype(np.int32)
            centred = (self.values.astype(np.int32) - zero).astype(scale.dtype)
        else:
            centred = self.values.astype(scale.dtype) - zero
        decoded: np.ndarray = (centred * scale).astype(scale.dtype, copy=False)
        return decoded

    def take(self, kept: np.ndarray, axis: int) -> Encoding:
        if self.block and axis == self.axis:
            return super().take(kept, axis)  # Blocks would be torn apart.
        values, scale, zero = np.take(self.values, kept, axis), self.scale, self.zero_point
        if self.block or axis == self.axis:
            at = axis if self.block else 0
            scale, zero = np.take(scale, kept, at), np.take(zero, kept, at)
        return Affine(values, scale, zero, self.axis, self.block, self.bits)

    def transpose(self, perm: Sequence[int]) -> Affine:
        order = [int(p) for p in perm]
        axis = None if self.axis is None else order.index(self.axis)
        scale, zero = self.scale, self.zero_point
        if self.block:
            scale, zero = scale.transpose(order), zero.transpose(order)
        values = self.values.transpose(order)
        return Affine(values, scale, zero, axis, self.block, self.bits)

    def reshape(self, shape: Sequence[int]) -> Affine | None:
        """None where the axis of the scales does not stay whole; one of blocks and the one before it
        can be merged."""
        values, axis = self.values.reshape(shape), self.axis
        if axis is not None:
            have = self.values.shape
            if self.block == have[axis] and values.shape == _merged(have, axis):
                axis -= 1  # Each block was an axis of its own.
                parameters = _merged(self.scale.shape, axis + 1)
                scale, zero = (p.reshape(parameters) for p in (self.scale, self.zero_point))
                return Affine(values, scale, zero, axis, self.block, self.bits)
            before = math.prod(have[:axis])
            fits = [
                i
                for i, n in enumerate(values.shape)
                if n == have[axis] and math.prod(values.shape[:i]) == before
            ]
            if self.block or not fits:
                return None
            axis = fits[0]
        return Affine(values, self.scale, self.zero_point, axis, self.block, self.bits)

    def on_axis(self, axis: int) -> Affine:
        """The same numbers, with parameters along ``axis``, which those of the whole tensor may become."""
        if self.axis == axis and not self.block:
            return self
        if self.axis is not None:
            raise ValueError(f"{self.describe()} cannot have parameters along axis {axis}")
        shape = (self.values.shape[axis],)
        scale, zero = (np.broadcast_to(p, shape) for p in (self.scale, self.zero_point))
        return replace(self, scale=scale, zero_point=zero, axis=axis)

    def scaled(self, factor: np.ndarray, axis: int | None) -> Encoding:
        if axis is not None and not (self.axis in (None, axis) and not self.block):
            return super().scaled(factor, axis)
        held = self if axis is None else self.on_axis(axis)
        return replace(held, scale=(held.scale * factor).astype(self.scale.dtype))

    @property
    def place(self) -> tuple[object, ...]:
        return _place(self.values)

    @property
    def nbytes(self) -> int:
        packed = _packed_bytes(self.values.size, self.storage)
        zero = DType.of(self.zero_point)
        zeros = 0 if self.is_symmetric else _packed_bytes(self.zero_point.size, zero)
        return packed + self.scale.nbytes + zeros

    @cached_property
    def digest(self) -> str:
        return _digest(self.describe(), self.values, self.scale, self.zero_point)

    def describe(self) -> str:
        where = "" if self.axis is None else f", axis={self.axis}"
        block = f", block={self.block}" if self.block else ""
        bits = f", bits={self.bits}" if self.bits != self.storage.bits else ""
        return f"affine({self.storage.value}{where}{block}{bits})"


Plain = Dense | Cast | Affine  # What a mask can lie over.


@dataclass(frozen=True, eq=False)
class Masked(Encoding):
    """A pruned constant: ``values`` where a mask is set, zero elsewhere.

    ``values`` hold zeros there themselves, so that whoever knows no masks takes them as they are
    (``unmasked``), and the mask says that these zeros are to stay. A weight that stays may be zero.

    ``packed`` is the mask, u8[ceil(n / 8)], as ``np.packbits`` packs the tensor's n elements in order.
    """

    packed: np.ndarray
    values: Plain

    def __post_init__(self) -> None:
        shape = self.values.type.shape
        expected = -(-math.prod(shape) // 8)
        if self.packed.dtype != np.uint8 or self.packed.shape != (expected,):
            raise ValueError(
                f"Masked of {shape} needs a mask of u8[{expected}], "
                f"got {self.packed.dtype}{list(self.packed.shape)}"
            )
        if np.bitwise_count(self.packed).sum() != self.kept:
            raise ValueError("the mask has bits set behind its last element")
        if not (_is_zero(self.values) | self.mask).all():
            raise ValueError("values outside of the mask are not zero")

    @staticmethod
    def of(mask: np.ndarray, values: Plain) -> Masked:
        """``values`` where ``mask`` (bool, of their shape), zero elsewhere."""
        if mask.shape != values.type.shape:
            raise ValueError(f"a mask of {mask.shape} over values of {values.type.shape}")
        held: Plain
        if isinstance(values, (Dense, Cast)):
            array = np.where(mask, values.array, np.zeros((), values.array.dtype))
            held = replace(values, array=array)
        else:
            zero = values.expanded(values.zero_point)
            held = replace(values, values=np.where(mask, values.values, zero))
        return Masked(np.packbits(mask), held)

    @property
    def type(self) -> TensorType:
        return self.values.type

    @property
    def mask(self) -> np.ndarray:
        """bool, of the tensor's shape: what was not pruned."""
        shape = self.type.shape
        return np.unpackbits(self.packed, count=math.prod(shape)).astype(bool).reshape(shape)

    @cached_property
    def kept(self) -> int:
        """How many elements were not pruned."""
        return int(self.mask.sum())

    @property
    def unmasked(self) -> Plain:
        return self.values

    def holding(self, values: Plain) -> Masked:
        held = self.values.holding(values)
        assert isinstance(held, Plain)
        return Masked.of(self.mask, held)

    def take(self, kept: np.ndarray, axis: int) -> Encoding:
        values = self.values.take(kept, axis)
        assert isinstance(values, Plain)
        return Masked.of(np.take(self.mask, kept, axis), values)

    def transpose(self, perm: Sequence[int]) -> Masked:
        return Masked.of(self.mask.transpose(perm), self.values.transpose(perm))

    def reshape(self, shape: Sequence[int]) -> Masked | None:
        values = self.values.reshape(shape)
        return None if values is None else Masked.of(self.mask.reshape(shape), values)

    def decode(self) -> np.ndarray:
        return self.values.decode()

    @property
    def place(self) -> tuple[object, ...]:
        return self.values.place

    @property
    def nbytes(self) -> int:
        """The mask, the values that were kept, and what else these are held with (scales)."""
        size, storage = math.prod(self.type.shape), self.values.storage
        rest = self.values.nbytes - _packed_bytes(size, storage)
        return self.packed.nbytes + _packed_bytes(self.kept, storage) + rest

    @cached_property
    def digest(self) -> str:
        return _digest(f"{self.describe()} {self.values.digest}", self.packed)

    def describe(self) -> str:
        return f"masked({self.values.describe()}, kept={self.kept})"


def _is_zero(values: Plain) -> np.ndarray:
    """bool, of the tensor's shape: where ``values`` decode to zero because of what they hold there."""
    if isinstance(values, (Dense, Cast)):
        return np.asarray(values.array == np.zeros((), values.array.dtype))
    return np.asarray(values.values == values.expanded(values.zero_point))


def _beside(shape: Sequence[int], axis: int | None) -> list[int]:
    """The shape of a vector along ``axis``, or of one number, that broadcasts against ``shape``."""
    return [-1 if i == axis else 1 for i in range(len(shape))]


def _merged(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    """The axis and the one before it in one; of the first, nothing."""
    if not axis:
        return ()
    return (*shape[: axis - 1], shape[axis - 1] * shape[axis], *shape[axis + 1 :])


def _place(array: np.ndarray) -> tuple[object, ...]:
    """The stretch of memory that an array fills; of one that leaves gaps in it, the array itself."""
    low, high = byte_bounds(array)
    return (low, high) if high - low == array.nbytes else (id(array),)


def _packed_bytes(elements: int, storage: DType) -> int:
    return -(-elements * storage.bits // 8)


def _digest(kind: str, *arrays: np.ndarray) -> str:
    sha = hashlib.sha256(kind.encode())
    for array in arrays:
        sha.update(f"{DType.of(array).value}{array.shape}".encode())
        if array.dtype.hasobject:
            sha.update(repr(array.tolist()).encode())
        else:
            sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()[:16]
