"""Torch's element types, without importing torch before it is needed."""

from __future__ import annotations

from typing import Any

from tersor.errors import Unsupported
from tersor.ir import DType

_NAMES = {
    DType.F32: "float32", DType.F64: "float64", DType.F16: "float16", DType.BF16: "bfloat16",
    DType.I64: "int64", DType.I32: "int32", DType.I16: "int16", DType.I8: "int8",
    DType.U64: "uint64", DType.U32: "uint32", DType.U16: "uint16", DType.U8: "uint8",
    DType.BOOL: "bool", DType.C64: "complex64", DType.C128: "complex128",
}  # fmt: skip


def torch_dtype(dtype: DType) -> Any:
    """Torch's element type.

    Raises:
        Unsupported: torch has no equivalent.
    """
    import torch

    if dtype not in _NAMES:
        raise Unsupported(f"{dtype.value} has no torch evaluation")
    return getattr(torch, _NAMES[dtype])
