"""Cast: floats stored in a shorter type.

h = f16(w),   w ~ f32(h)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tersor.ir.encodings.concat import concat
from tersor.ir.encodings.encoding import Encoding, Layer, as_encoding, dense, register
from tersor.ir.types import DType, TensorType


@register
@dataclass(frozen=True, eq=False, init=False)
class Cast(Layer):
    """Floats in a shorter type (float16, bfloat16), which readers see as ``dtype``.

    Raises:
        ValueError: one of the types is not a float, or they are the same.
    """

    values: Encoding
    dtype: DType
    form: ClassVar[str] = "cast"

    def __init__(self, values: np.ndarray | Encoding, dtype: DType) -> None:
        self.__dict__.update(values=as_encoding(values), dtype=dtype)
        short = self.values.type.dtype
        if not (short.is_float and dtype.is_float and short is not dtype):
            raise ValueError(f"Cast stores floats in a shorter type, not {dtype} as {short}")

    @property
    def array(self) -> np.ndarray:
        """The short floats."""
        return self.values.decode()

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, self.values.type.dims)

    def decode(self) -> np.ndarray:
        return self.array.astype(self.dtype.numpy)

    @property
    def mask(self) -> np.ndarray | None:
        return self.values.mask

    @property
    def unmasked(self) -> Cast:
        return self.over(self.values.unmasked)

    def with_values(self, values: Encoding) -> Encoding:
        """Rounds to the short type unless that overflows."""
        if not values.is_dense or values.storage is not self.dtype:
            return values
        array = values.decode()
        with np.errstate(over="ignore"):
            short = array.astype(self.values.type.dtype.numpy)
        fits = np.isfinite(short.astype(self.dtype.numpy)) | ~np.isfinite(array)
        return self.over(self.values.with_values(dense(short))) if fits.all() else values

    def take(self, positions: np.ndarray, axis: int) -> Cast:
        return self.over(self.values.take(positions, axis))

    def permute(self, perm: Sequence[int]) -> Cast:
        return self.over(self.values.permute(perm))

    def reshape(self, shape: Sequence[int]) -> Cast | None:
        values = self.values.reshape(shape)
        return None if values is None else self.over(values)

    def zeroed(self, mask: np.ndarray) -> Cast:
        return self.over(self.values.zeroed(mask))

    def concat_key(self, axis: int) -> tuple[object, ...] | None:
        inner = self.values.concat_key(axis)
        return None if inner is None else (self.form, self.dtype, *inner)

    def joined(self, others: Sequence[Encoding], axis: int) -> Cast:
        parts = [cast.values for cast in (self, *others) if isinstance(cast, Cast)]
        return self.over(concat(parts, axis))

    @classmethod
    def examples(cls, inner: Encoding) -> Iterator[Encoding]:
        if inner.type.dtype in (DType.F16, DType.BF16):
            yield Cast(inner, DType.F32)
