"""Dense: a plain array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tersor.ir.encodings.encoding import Encoding, packed_bytes, place_of, register
from tersor.ir.types import DType, TensorType


@register
@dataclass(frozen=True, eq=False)
class Dense(Encoding):
    """A plain array. May be a memory map: nothing is read until it is used."""

    array: np.ndarray
    form: ClassVar[str] = "dense"

    @property
    def type(self) -> TensorType:
        return TensorType(self.storage, self.array.shape)

    def decode(self) -> np.ndarray:
        return self.array

    @property
    def is_dense(self) -> bool:
        return True

    @property
    def storage(self) -> DType:
        return DType.of(self.array)

    @property
    def bits(self) -> int:
        return self.storage.bits

    def stored_bytes(self, elements: int) -> int:
        return packed_bytes(elements, self.bits)

    @property
    def place(self) -> tuple[object, ...]:
        return place_of(self.array)

    @property
    def memory_order(self) -> tuple[int, ...]:
        axes = range(self.array.ndim)
        if self.array.flags.c_contiguous:  # Strides of axes of size one are arbitrary.
            return tuple(axes)
        return tuple(sorted(axes, key=lambda axis: -self.array.strides[axis]))

    def permute(self, perm: Sequence[int]) -> Dense:
        return Dense(self.array.transpose(perm))

    def reshape(self, shape: Sequence[int]) -> Dense:
        return Dense(self.array.reshape(shape))

    def concat_key(self, axis: int) -> tuple[object, ...]:
        return self.form, self.storage

    def joined(self, others: Sequence[Encoding], axis: int) -> Dense:
        return Dense(np.concatenate([self.array, *(o.decode() for o in others)], axis))

    @property
    def element(self) -> str:
        return self.storage.value

    def describe(self) -> str:
        return self.form

    @classmethod
    def examples(cls, inner: Encoding) -> Iterator[Encoding]:
        yield Dense(inner.decode())
