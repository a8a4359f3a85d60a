"""Masked: a pruned constant over any other form.

w where the mask is set, zero elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from tersor.ir.encodings.dense import Dense
from tersor.ir.encodings.encoding import E, Encoding, Form, Layer, as_encoding, register
from tersor.ir.encodings.packed import Packed
from tersor.ir.types import DType, TensorType


@register
@dataclass(frozen=True, eq=False, init=False)
class Masked(Layer):
    """``values`` where a mask is set, zero elsewhere.

    ``values`` are zero there themselves, so that code that ignores masks can use them directly
    (``unmasked``); the mask says which zeros have to stay. Values under the mask may be zero too.

    Raises:
        ValueError: the mask has the wrong shape or dtype, or values outside the mask are not zero.
    """

    values: Encoding
    packed_mask: Packed
    form: ClassVar[str] = "masked"

    def __init__(self, values: Encoding, packed_mask: np.ndarray | Packed) -> None:
        mask = packed_mask if isinstance(packed_mask, Packed) else Dense(packed_mask)
        if mask.type != TensorType(DType.BOOL, values.type.dims):
            raise ValueError(f"a mask of {mask.type} over values of {values.type}")
        if not isinstance(mask, Packed):
            mask = Packed.of(mask.array)
        self.__dict__.update(values=values, packed_mask=mask)
        if not (self.values.is_zero() | self.mask).all():
            raise ValueError("values outside the mask are not zero")

    @staticmethod
    def of(mask: np.ndarray, values: Encoding) -> Masked:
        """``values`` where ``mask`` (bool, of their shape) and their own mask, if any, are set; zero
        elsewhere."""
        if mask.shape != values.type.shape:
            raise ValueError(f"a mask of {mask.shape} over values of {values.type.shape}")
        if values.mask is not None:
            mask = mask & values.mask
        return Masked(values.unmasked.zeroed(mask), mask)

    def decode(self) -> np.ndarray:
        return self.values.decode()

    @property
    def mask(self) -> np.ndarray:
        return self.packed_mask.decode()

    @property
    def unmasked(self) -> Encoding:
        return self.values.unmasked

    @cached_property
    def kept(self) -> int:
        """The number of elements that were not pruned."""
        return int(self.mask.sum())

    def layer(self, form: Form[E]) -> E | None:
        own = super().layer(form)
        return self.values.layer(form) if own is None else own

    def is_zero(self) -> np.ndarray:
        return self.values.is_zero()

    def stored_bytes(self, elements: int) -> int:
        """The mask, the values it keeps, and their scales and the like."""
        return self.packed_mask.nbytes + self.values.stored_bytes(min(elements, self.kept))

    def take(self, positions: np.ndarray, axis: int) -> Masked:
        return Masked.of(np.take(self.mask, positions, axis), self.unmasked.take(positions, axis))

    def permute(self, perm: Sequence[int]) -> Masked:
        return Masked(self.values.permute(perm), self.packed_mask.permute(perm))

    def reshape(self, shape: Sequence[int]) -> Masked | None:
        if (values := self.values.reshape(shape)) is None:
            return None
        return Masked(values, self.packed_mask.reshape(values.type.shape))

    def scaled(self, factor: np.ndarray, axis: int | None) -> Masked:
        return Masked.of(self.mask, self.unmasked.scaled(factor, axis))

    def zeroed(self, mask: np.ndarray) -> Masked:
        return Masked.of(mask, self)

    def with_values(self, values: Encoding) -> Masked:
        return Masked.of(self.mask, self.unmasked.with_values(values))

    def parts(self) -> dict[str, Any]:
        return {"values": self.values, "mask": self.mask}

    @classmethod
    def of_parts(cls, values: Any, mask: Any) -> Masked:
        return cls(as_encoding(values), mask)

    def describe(self) -> str:
        return f"{self.form}({self.values.describe()}, kept={self.kept})"

    @classmethod
    def examples(cls, inner: Encoding) -> Iterator[Encoding]:
        shape = inner.type.shape
        yield Masked.of((np.arange(inner.decode().size) % 3 != 1).reshape(shape), inner)
        yield Masked.of(np.zeros(shape, bool), inner)
