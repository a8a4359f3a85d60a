"""How a constant's numbers are held.

``decode()`` always gives the dense numbers back, so a graph keeps its reference meaning whatever
its constants are encoded in, and any compression of a constant can be checked numerically.

    Affine, per column of w[2, 3]:   q = round(w / scale) + zero_point,   w ~ (q - zero_point) * scale
    Masked, over one of the others:  w where the mask is set, zero elsewhere
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

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

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the encoded form takes, scales and the like included."""

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

    def holding(self, values: Dense | Affine) -> Encoding:
        """``values``, of this shape, in place of the numbers: what a mask left out stays zero."""
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

    @property
    def nbytes(self) -> int:
        return _packed_bytes(self.array.size, self.storage)

    @cached_property
    def digest(self) -> str:
        return _digest(self.describe(), self.array)

    def describe(self) -> str:
        return "dense"


@dataclass(frozen=True, eq=False)
class Affine(Encoding):
    """Integers with a scale and a zero point (quantized): ``(q - zero_point) * scale``.

    ``values`` are integers of the tensor's shape (int8, uint8, int4 …). ``scale`` (float) and
    ``zero_point`` (of ``values``' dtype) are scalars (per tensor), vectors along ``axis`` (per
    channel), or, with ``block`` > 0, of the tensor's shape with ``axis`` divided by ``block``,
    rounded up (blockwise): the three forms of ONNX's DequantizeLinear.
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
        if self.zero_point.dtype != self.values.dtype:
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
        return not self.zero_point.astype(np.int32).any()

    def expanded(self, parameter: np.ndarray) -> np.ndarray:
        """``scale`` or ``zero_point`` in a shape that broadcasts against ``values``."""
        if self.axis is None:
            return parameter
        if self.block:
            repeated = np.repeat(parameter, self.block, axis=self.axis)
            return np.take(repeated, range(self.values.shape[self.axis]), axis=self.axis)
        return parameter.reshape([-1 if i == self.axis else 1 for i in range(self.values.ndim)])

    def decode(self) -> np.ndarray:
        centred = self.values.astype(np.int32) - self.expanded(self.zero_point).astype(np.int32)
        scale = self.expanded(self.scale)
        decoded: np.ndarray = (centred.astype(scale.dtype) * scale).astype(scale.dtype, copy=False)
        return decoded

    def take(self, kept: np.ndarray, axis: int) -> Encoding:
        if self.block and axis == self.axis:
            return super().take(kept, axis)  # Blocks would be torn apart.
        values, scale, zero = np.take(self.values, kept, axis), self.scale, self.zero_point
        if self.block or axis == self.axis:
            at = axis if self.block else 0
            scale, zero = np.take(scale, kept, at), np.take(zero, kept, at)
        return Affine(values, scale, zero, self.axis, self.block, self.bits)

    @property
    def nbytes(self) -> int:
        packed = _packed_bytes(self.values.size, self.storage)
        zeros = 0 if self.is_symmetric else _packed_bytes(self.zero_point.size, self.storage)
        return packed + self.scale.nbytes + zeros

    @cached_property
    def digest(self) -> str:
        return _digest(self.describe(), self.values, self.scale, self.zero_point)

    def describe(self) -> str:
        where = "" if self.axis is None else f", axis={self.axis}"
        block = f", block={self.block}" if self.block else ""
        bits = f", bits={self.bits}" if self.bits != self.storage.bits else ""
        return f"affine({self.storage.value}{where}{block}{bits})"


@dataclass(frozen=True, eq=False)
class Masked(Encoding):
    """A pruned constant: ``values`` where a mask is set, zero elsewhere.

    ``values`` hold zeros there themselves, so that whoever knows no masks takes them as they are
    (``unmasked``), and the mask says that these zeros are to stay. A weight that stays may be zero.

    ``packed`` is the mask, u8[ceil(n / 8)], as ``np.packbits`` packs the tensor's n elements in order.
    """

    packed: np.ndarray
    values: Dense | Affine

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
    def of(mask: np.ndarray, values: Dense | Affine) -> Masked:
        """``values`` where ``mask`` (bool, of their shape), zero elsewhere."""
        if mask.shape != values.type.shape:
            raise ValueError(f"a mask of {mask.shape} over values of {values.type.shape}")
        held: Dense | Affine
        if isinstance(values, Dense):
            held = Dense(np.where(mask, values.array, np.zeros((), values.array.dtype)))
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
    def unmasked(self) -> Dense | Affine:
        return self.values

    def holding(self, values: Dense | Affine) -> Masked:
        return Masked.of(self.mask, values)

    def take(self, kept: np.ndarray, axis: int) -> Encoding:
        values = self.values.take(kept, axis)
        assert isinstance(values, (Dense, Affine))
        return Masked.of(np.take(self.mask, kept, axis), values)

    def decode(self) -> np.ndarray:
        return self.values.decode()

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


def _is_zero(values: Dense | Affine) -> np.ndarray:
    """bool, of the tensor's shape: where ``values`` decode to zero because of what they hold there."""
    if isinstance(values, Dense):
        return np.asarray(values.array == np.zeros((), values.array.dtype))
    return np.asarray(values.values == values.expanded(values.zero_point))


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
