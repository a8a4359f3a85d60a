"""Packed: elements of fewer than eight bits, without gaps.

    3 bits, element 0 in the lowest bits:   [1, -2, 3]  =  001, 110, 011   ->   0b11_110_001, 0b0000000_0

Eight elements of b bits fill b bytes.  For four bits this is ONNX's layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tersor.ir.encodings.dense import Dense
from tersor.ir.encodings.encoding import Encoding, packed_bytes, place_of, register
from tersor.ir.types import DType, TensorType


@register
@dataclass(frozen=True, eq=False)
class Packed(Encoding):
    """Elements of ``dtype``, one byte each in numpy, packed to ``width`` bits.

    ``data`` is u8[ceil(n * width / 8)].  ``order`` is the memory order of the axes, so that a transpose is
    a view of the same bytes.

    Raises:
        ValueError: ``data`` has the wrong size for so many elements.
    """

    data: np.ndarray
    dtype: DType
    width: int
    shape: tuple[int, ...]
    order: tuple[int, ...]
    form: ClassVar[str] = "packed"

    def __post_init__(self) -> None:
        expected = packed_bytes(math.prod(self.shape), self.width)
        if self.data.dtype != np.uint8 or self.data.shape != (expected,):
            raise ValueError(
                f"{self.element}{list(self.shape)} is u8[{expected}] packed, "
                f"not {self.data.dtype}{list(self.data.shape)}"
            )
        unused = expected * 8 - math.prod(self.shape) * self.width
        if unused and self.data[-1] >> (8 - unused):
            raise ValueError(f"unused bits after the last element of packed {self.element} are set")

    @staticmethod
    def of(array: np.ndarray, bits: int = 0) -> Packed:
        """``array`` with ``bits`` bits per element, by default its type's.

        Raises:
            ValueError: the elements are not bytes in numpy, not 1 to 7 bits, or numbers that do not fit.
        """
        dtype = DType.of(array)
        bits = bits or natural_bits(dtype)
        if dtype.numpy.itemsize != 1 or not 1 <= bits < 8 or dtype is DType.STRING:
            raise ValueError(f"{dtype.value} cannot be packed to {bits} bits")
        order = Dense(array).memory_order
        data = pack(array.transpose(order), bits)
        packed = Packed(data, dtype, bits, array.shape, order)
        if bits < natural_bits(dtype) and not np.array_equal(packed.decode(), array):
            raise ValueError(f"the numbers do not fit in {packed.element}")
        return packed

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, self.shape)

    def decode(self) -> np.ndarray:
        stored = tuple(self.shape[axis] for axis in self.order)
        flat = unpack(self.data, self.dtype, self.width, math.prod(self.shape))
        return flat.reshape(stored).transpose(np.argsort(self.order))

    @property
    def storage(self) -> DType:
        return self.dtype

    @property
    def bits(self) -> int:
        return self.width

    def stored_bytes(self, elements: int) -> int:
        return packed_bytes(elements, self.width)

    @property
    def place(self) -> tuple[object, ...]:
        return place_of(self.data)

    @property
    def memory_order(self) -> tuple[int, ...]:
        return self.order

    def take(self, positions: np.ndarray, axis: int) -> Packed:
        return Packed.of(np.take(self.decode(), positions, axis), self.width)

    def permute(self, perm: Sequence[int]) -> Packed:
        new = [int(p) for p in perm]
        shape = tuple(self.shape[p] for p in new)
        order = tuple(new.index(axis) for axis in self.order)
        return Packed(self.data, self.dtype, self.width, shape, order)

    def reshape(self, shape: Sequence[int]) -> Packed:
        in_order = self.order == tuple(range(len(self.order)))
        if not in_order or -1 in shape:
            return Packed.of(self.decode().reshape(shape), self.width)
        return Packed(self.data, self.dtype, self.width, tuple(shape), tuple(range(len(shape))))

    def zeroed(self, mask: np.ndarray) -> Packed:
        return Packed.of(np.where(mask, self.decode(), np.zeros((), self.dtype.numpy)), self.width)

    def with_values(self, values: Encoding) -> Encoding:
        if not values.is_dense or values.storage is not self.dtype:
            return values
        try:
            return Packed.of(values.decode(), self.width)
        except ValueError:
            return values

    def concat_key(self, axis: int) -> tuple[object, ...]:
        return self.form, self.dtype, self.width

    def joined(self, others: Sequence[Encoding], axis: int) -> Packed:
        arrays = [self.decode(), *(o.decode() for o in others)]
        return Packed.of(np.concatenate(arrays, axis), self.width)

    def parts(self) -> dict[str, Any]:
        """The unpacked elements, so that the digest does not depend on memory order and the text is
        readable."""
        own = {} if self.width == natural_bits(self.dtype) else {"bits": self.width}
        return {"values": self.decode(), **own}

    @classmethod
    def of_parts(cls, *first: Any, **parts: Any) -> Packed:
        return cls.of(*first, **parts)

    @property
    def element(self) -> str:
        letter = self.dtype.value[0] if self.dtype.is_integer else f"{self.dtype.value}:"
        return f"{letter}{self.width}"

    def describe(self) -> str:
        return f"{self.form}({self.element})"

    @classmethod
    def examples(cls, inner: Encoding) -> Iterator[Encoding]:
        array = inner.decode()
        if natural_bits(inner.type.dtype) < 8:
            yield Packed.of(array)
        if inner.type.dtype is DType.I8:
            yield Packed.of((array % 8 - 4).astype(np.int8), 3)
        if inner.type.dtype is DType.U8:
            yield Packed.of(array % 32, 5)


def compact(array: np.ndarray, bits: int = 0) -> Encoding:
    """``array`` packed if its elements are smaller than a byte, else dense."""
    bits = bits or DType.of(array).bits
    return Dense(array) if bits == array.dtype.itemsize * 8 else Packed.of(array, bits)


def natural_bits(dtype: DType) -> int:
    """The bits that an element of ``dtype`` needs: one for a boolean."""
    return 1 if dtype is DType.BOOL else dtype.bits


def pack(array: np.ndarray, bits: int) -> np.ndarray:
    """The ``bits`` lowest bits of each element, in C order, u8[ceil(n * bits / 8)]."""
    codes = _bytes(array).reshape(-1)
    groups = np.zeros((-(-codes.size // 8), 8), np.uint8)
    groups.reshape(-1)[: codes.size] = codes & ((1 << bits) - 1)
    words = np.zeros(len(groups), "<u8")
    for lane in range(8):
        words |= groups[:, lane].astype("<u8") << np.uint64(lane * bits)
    packed = words.view(np.uint8).reshape(-1, 8)[:, :bits]
    return np.ascontiguousarray(packed).reshape(-1)[: packed_bytes(codes.size, bits)]


def unpack(data: np.ndarray, dtype: DType, bits: int, count: int) -> np.ndarray:
    """The inverse of :func:`pack` for ``count`` elements."""
    groups = np.zeros((-(-count // 8), 8), np.uint8)
    padded = np.zeros(len(groups) * bits, np.uint8)
    padded[: data.size] = data
    groups[:, :bits] = padded.reshape(-1, bits)
    words = groups.view("<u8").reshape(-1)
    codes = np.empty((len(words), 8), np.uint8)
    for lane in range(8):
        codes[:, lane] = (words >> np.uint64(lane * bits)) & np.uint64((1 << bits) - 1)
    flat = codes.reshape(-1)[:count]
    if dtype.value.startswith("i"):
        sign = np.uint8(1 << (bits - 1))
        return ((flat ^ sign) - sign).view(np.int8).astype(dtype.numpy, copy=False)
    return flat.astype(dtype.numpy) if dtype.is_integer else flat.view(dtype.numpy)


def _bytes(array: np.ndarray) -> np.ndarray:
    """One byte per element, normalized: ml_dtypes' 2- and 4-bit integers may have any upper bits."""
    dtype = DType.of(array)
    if dtype.is_integer:
        kind = np.int8 if dtype.value.startswith("i") else np.uint8
        array = array.astype(kind, copy=False)
    return np.ascontiguousarray(array).view(np.uint8)
