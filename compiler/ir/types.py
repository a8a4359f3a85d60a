"""Element types and tensor types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import ml_dtypes
import numpy as np

from tersor.ir.dims import Dim, evaluate, parse_dim, product


class DType(Enum):
    """Element type; the value is its name in the text form."""

    F32 = "f32"
    F64 = "f64"
    F16 = "f16"
    BF16 = "bf16"
    F8E4M3FN = "f8e4m3fn"
    F8E4M3FNUZ = "f8e4m3fnuz"
    F8E5M2 = "f8e5m2"
    F8E5M2FNUZ = "f8e5m2fnuz"
    F8E8M0 = "f8e8m0"
    F4E2M1 = "f4e2m1"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    I4 = "i4"
    I2 = "i2"
    U64 = "u64"
    U32 = "u32"
    U16 = "u16"
    U8 = "u8"
    U4 = "u4"
    U2 = "u2"
    BOOL = "bool"
    STRING = "string"
    C64 = "c64"
    C128 = "c128"

    @property
    def numpy(self) -> np.dtype:
        """The numpy dtype of an unpacked array: one item an element, also for 2- and 4-bit types."""
        return _NUMPY[self]

    @property
    def bits(self) -> int:
        """Bits per element when packed (strings: 64, for the pointer)."""
        return _BITS.get(self, self.numpy.itemsize * 8)

    @property
    def is_float(self) -> bool:
        return self.value[0] in "f" or self is DType.BF16

    @property
    def is_integer(self) -> bool:
        return self.value[0] in "iu"

    @staticmethod
    def of(array_or_dtype: np.ndarray | np.dtype | type) -> DType:
        """The element type of a numpy array or dtype.

        Raises:
            TypeError: no element type corresponds.
        """
        dtype = (
            array_or_dtype.dtype
            if isinstance(array_or_dtype, np.ndarray)
            else np.dtype(array_or_dtype)
        )
        if dtype.kind in "OUST":
            return DType.STRING
        try:
            return _FROM_NUMPY[dtype.newbyteorder("=") if dtype.kind != "V" else dtype]
        except KeyError:
            raise TypeError(f"no element type for numpy's {dtype}") from None


_NUMPY: dict[DType, np.dtype] = {
    DType.F32: np.dtype(np.float32),
    DType.F64: np.dtype(np.float64),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.F8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.F8E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    DType.F8E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DType.F8E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
    DType.F8E8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
    DType.F4E2M1: np.dtype(ml_dtypes.float4_e2m1fn),
    DType.I64: np.dtype(np.int64),
    DType.I32: np.dtype(np.int32),
    DType.I16: np.dtype(np.int16),
    DType.I8: np.dtype(np.int8),
    DType.I4: np.dtype(ml_dtypes.int4),
    DType.I2: np.dtype(ml_dtypes.int2),
    DType.U64: np.dtype(np.uint64),
    DType.U32: np.dtype(np.uint32),
    DType.U16: np.dtype(np.uint16),
    DType.U8: np.dtype(np.uint8),
    DType.U4: np.dtype(ml_dtypes.uint4),
    DType.U2: np.dtype(ml_dtypes.uint2),
    DType.BOOL: np.dtype(np.bool_),
    DType.STRING: np.dtype(object),
    DType.C64: np.dtype(np.complex64),
    DType.C128: np.dtype(np.complex128),
}
_FROM_NUMPY = {dtype: name for name, dtype in _NUMPY.items()}
_BITS = {DType.I4: 4, DType.U4: 4, DType.F4E2M1: 4, DType.I2: 2, DType.U2: 2}


@dataclass(frozen=True)
class TensorType:
    """Element type and dims of a tensor; ``dims`` is None if even the rank is unknown."""

    dtype: DType
    dims: tuple[Dim, ...] | None

    def __str__(self) -> str:
        if self.dims is None:
            return f"{self.dtype.value}[*]"
        return f"{self.dtype.value}[{', '.join('?' if d is None else str(d) for d in self.dims)}]"

    @property
    def rank(self) -> int | None:
        return None if self.dims is None else len(self.dims)

    @property
    def is_static(self) -> bool:
        return self.dims is not None and all(isinstance(d, int) for d in self.dims)

    @property
    def numel(self) -> Dim:
        """Number of elements; None if unknown."""
        return None if self.dims is None else product(self.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """Dims as integers.

        Raises:
            ValueError: a dim is symbolic or unknown.
        """
        if not self.is_static:
            raise ValueError(f"{self} is not static")
        assert self.dims is not None
        return tuple(int(d) for d in self.dims)  # type: ignore[arg-type]

    def at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Dims as integers, for these sizes of the symbols."""
        if self.dims is None or None in self.dims:
            raise ValueError(f"{self} has unknown dims")
        return tuple(evaluate(d, sizes) for d in self.dims if d is not None)

    def with_dims(self, dims: tuple[Dim, ...] | None) -> TensorType:
        return TensorType(self.dtype, dims)

    def accepts(self, other: TensorType) -> bool:
        """Whether a value of type ``other`` may be used where this type is declared: same dtype, and no two
        dims that are different integers. Different symbols may be equal at run time."""
        if self.dtype is not other.dtype:
            return False
        if self.dims is None or other.dims is None:
            return True
        return len(self.dims) == len(other.dims) and all(
            a == b or not (isinstance(a, int) and isinstance(b, int))
            for a, b in zip(self.dims, other.dims, strict=True)
        )


@dataclass(frozen=True)
class SequenceType:
    """A sequence of tensors (``element``) or of sequences."""

    element: ValueType

    def __str__(self) -> str:
        return f"seq<{self.element}>"


@dataclass(frozen=True)
class OptionalType:
    """An optional tensor or sequence."""

    element: ValueType

    def __str__(self) -> str:
        return f"optional<{self.element}>"


@dataclass(frozen=True)
class MapType:
    """A map from ``key`` (integers or strings) to ``element``, as in classical ML models."""

    key: DType
    element: ValueType

    def __str__(self) -> str:
        return f"map<{self.key.value}, {self.element}>"


@dataclass(frozen=True)
class UnknownType:
    """The type of an opaque op's result."""

    def __str__(self) -> str:
        return "unknown"


ValueType = TensorType | SequenceType | OptionalType | MapType | UnknownType


def parse_type(text: str) -> ValueType:
    """Reads what ``str(type)`` writes.

    Raises:
        ValueError: not a type.
    """
    text = text.strip()
    if text == "unknown":
        return UnknownType()
    for prefix, wrapper in (("seq<", SequenceType), ("optional<", OptionalType)):
        if text.startswith(prefix) and text.endswith(">"):
            return wrapper(parse_type(text[len(prefix) : -1]))
    if text.startswith("map<") and text.endswith(">"):
        key, _, element = text[4:-1].partition(", ")
        return MapType(_element_type(key, text), parse_type(element))
    name, bracket, rest = text.partition("[")
    dtype = _element_type(name, text)
    if not bracket or not rest.endswith("]"):
        raise ValueError(f"not a type: {text!r}")
    if rest == "*]":
        return TensorType(dtype, None)
    return TensorType(dtype, tuple(parse_dim(d) for d in _split_dims(rest[:-1])))


def _element_type(name: str, text: str) -> DType:
    try:
        return DType(name)
    except ValueError:
        raise ValueError(f"unknown element type {name!r} in {text!r}") from None


def _split_dims(text: str) -> list[str]:
    """Splits at commas outside brackets: ``a, max(b, c)`` has two dims."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [p for p in parts if p.strip()]
