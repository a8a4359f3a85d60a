"""torch's element types as the IR's, and tensors as numpy arrays without copying."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tersor.errors import Unsupported
from tersor.ir import DType

FROM_TORCH: dict[Any, DType] = {
    torch.float32: DType.F32, torch.float64: DType.F64, torch.float16: DType.F16,
    torch.bfloat16: DType.BF16, torch.float8_e4m3fn: DType.F8E4M3FN,
    torch.float8_e4m3fnuz: DType.F8E4M3FNUZ, torch.float8_e5m2: DType.F8E5M2,
    torch.float8_e5m2fnuz: DType.F8E5M2FNUZ, torch.int64: DType.I64, torch.int32: DType.I32,
    torch.int16: DType.I16, torch.int8: DType.I8, torch.uint64: DType.U64, torch.uint32: DType.U32,
    torch.uint16: DType.U16, torch.uint8: DType.U8, torch.bool: DType.BOOL,
    torch.complex64: DType.C64, torch.complex128: DType.C128,
}  # fmt: skip
TO_TORCH: dict[DType, Any] = {dtype: torch_dtype for torch_dtype, dtype in FROM_TORCH.items()}

# Types that numpy lacks are converted as integers of the same width.
_CARRIERS: dict[int, Any] = {1: torch.uint8, 2: torch.int16}


def dtype_of(dtype: Any) -> DType:
    """The IR's element type for a torch dtype.

    Raises:
        Unsupported: there is none (for example, for quantized tensors).
    """
    if dtype not in FROM_TORCH:
        raise Unsupported(f"tensors of {dtype} are not supported")
    return FROM_TORCH[dtype]


def array_of(tensor: Any, name: str) -> np.ndarray:
    """The values of a tensor; CPU memory is shared, not copied.

    Raises:
        Unsupported: a sparse, quantized or meta tensor.
    """
    dtype = dtype_of(tensor.dtype)
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise Unsupported(
            f"{name} is a {tensor.layout} tensor on {tensor.device}: make it a dense tensor with values"
        )
    tensor = tensor.detach().cpu()
    if dtype.numpy.kind == "V":
        carrier = tensor.contiguous().view(_CARRIERS[tensor.element_size()])
        return np.asarray(carrier.numpy()).view(dtype.numpy)
    return np.asarray(tensor.resolve_neg().numpy())
