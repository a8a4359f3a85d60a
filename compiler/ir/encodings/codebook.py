"""Codebook: few distinct numbers, and for each element which of them (weight sharing by k-means).

    table [-0.5, 0, 0.25, 1],  codes [[3, 0], [1, 1]]                 ->   [[1, -0.5], [0, 0]]
    a table for each position of axis 0: [[0, 1], [0, 2]], the codes [[1, 0], [1, 1]]   ->   [[1, 0], [2, 2]]

Two bits an element instead of 32, and the table once: Han, Mao and Dally, Deep Compression (2016).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tersor.ir.encodings.concat import concat
from tersor.ir.encodings.encoding import Encoding, Layer, along, register
from tersor.ir.encodings.packed import Packed, compact
from tersor.ir.types import DType, TensorType

MAX_LEVELS = 256  # Codes are of a byte, or less.


@register
@dataclass(frozen=True, eq=False, init=False)
class Codebook(Layer):
    """``table[codes]``.

    ``codes`` are indices, unsigned, of the tensor's shape: an array (u8, u4, u2), which is packed to
    ``bits``, by default as many as the table needs, or an encoding of them.  ``table`` is [levels], or
    [n, levels] for a table of its own at each of the n positions of ``axis``.

    Raises:
        ValueError: the table has another shape, codes are signed, or name a level that it has not.
    """

    codes: Encoding
    table: np.ndarray
    axis: int | None = None
    form: ClassVar[str] = "codebook"

    def __init__(
        self, codes: np.ndarray | Encoding, table: np.ndarray, axis: int | None = None
    ) -> None:
        levels = table.shape[-1] if table.ndim else 0
        if not isinstance(codes, Encoding) or codes.is_dense:
            array = codes.decode() if isinstance(codes, Encoding) else codes
            needed = _bits_for(levels)
            codes = compact(array, needed if needed < DType.of(array).bits else 0)
        self.__dict__.update(codes=codes, table=table, axis=axis)
        shape = codes.type.shape
        if axis is not None and not 0 <= axis < len(shape):
            raise ValueError(f"axis {axis} is outside of shape {shape}")
        expected = (levels,) if axis is None else (shape[axis], levels)
        if table.shape != expected:
            raise ValueError(f"Codebook needs a table of shape {expected}, got {table.shape}")
        if not codes.type.dtype.value.startswith("u"):
            raise ValueError(f"codes are {codes.type.dtype.value}: indices have no sign")
        if math.prod(shape) and int(codes.decode().max()) >= levels:
            raise ValueError(f"codes go to {int(codes.decode().max())} in a table of {levels}")

    @property
    def type(self) -> TensorType:
        return TensorType(DType.of(self.table), self.codes.type.dims)

    def decode(self) -> np.ndarray:
        codes = self.codes.decode().astype(np.intp)
        if self.axis is None:
            return np.asarray(self.table[codes])
        own = np.arange(len(self.table)).reshape(along(codes.shape, self.axis))
        return np.asarray(self.table[own, codes])

    # -- the same form with other numbers ----------------------------------------------------------

    def take(self, positions: np.ndarray, axis: int) -> Codebook:
        table = self.table[positions] if axis == self.axis else self.table
        return Codebook(self.codes.take(positions, axis), table, self.axis)

    def permute(self, perm: Sequence[int]) -> Codebook:
        axis = None if self.axis is None else [int(p) for p in perm].index(self.axis)
        return Codebook(self.codes.permute(perm), self.table, axis)

    def reshape(self, shape: Sequence[int]) -> Codebook | None:
        codes = self.codes.reshape(shape) if self.axis is None else None
        return None if codes is None else self.over(codes)

    def scaled(self, factor: np.ndarray, axis: int | None) -> Encoding:
        """In the same form where each table has one factor."""
        if axis is not None and axis != self.axis:
            return super().scaled(factor, axis)
        by = factor.reshape(()) if axis is None else factor.reshape(-1, 1)
        return self.over(self.codes, table=np.asarray(self.table * by, self.table.dtype))

    def zeroed(self, mask: np.ndarray) -> Encoding:
        """Where some table has no zero, it gets one more level; dense where codes have no room for it."""
        table, zero = self.table, self.table == 0
        if not zero.any(axis=-1).all():
            table = np.concatenate([table, np.zeros((*table.shape[:-1], 1), table.dtype)], axis=-1)
            zero = table == 0
        if table.shape[-1] > MAX_LEVELS:
            return super().zeroed(mask)
        level = zero.argmax(axis=-1).reshape(along(mask.shape, self.axis))
        codes = np.where(mask, self.codes.decode().astype(np.intp), level)
        return Codebook(codes.astype(np.uint8), table, self.axis)

    def concat_key(self, axis: int) -> tuple[object, ...] | None:
        codes = self.codes.concat_key(axis)
        if codes is None or self.axis != axis:
            return None
        return self.form, axis, self.table.dtype, self.table.shape[1], *codes

    def joined(self, others: Sequence[Encoding], axis: int) -> Codebook:
        parts = [book for book in (self, *others) if isinstance(book, Codebook)]
        table = np.concatenate([book.table for book in parts])
        return Codebook(concat([book.codes for book in parts], axis), table, axis)

    # -- words -------------------------------------------------------------------------------------

    def parts(self) -> dict[str, Any]:
        parts = super().parts()
        if isinstance(self.codes, Packed) and self.bits == _bits_for(self.table.shape[-1]):
            parts["codes"] = self.codes.decode()
        return parts

    def describe(self) -> str:
        where = "" if self.axis is None else f", axis={self.axis}"
        return f"{self.form}({self.codes.element}, levels={self.table.shape[-1]}{where})"

    @classmethod
    def examples(cls, inner: Encoding) -> Iterator[Encoding]:
        if not inner.type.dtype.value.startswith("u") or inner.type.dtype.bits > 8:
            return
        levels = 1 + int(inner.decode().max(initial=4))
        values = (np.arange(levels) / 4 - 0.5).astype(np.float32)
        yield Codebook(inner, values)
        for axis, n in enumerate(inner.type.shape):
            yield Codebook(inner, np.arange(n, dtype=np.float32)[:, None] + values, axis)


def _bits_for(levels: int) -> int:
    return max(levels - 1, 1).bit_length()
