"""Contents of small integer tensors as dims, for shape arithmetic."""

from __future__ import annotations

import numpy as np

from tersor.ir import DType, Value
from tersor.ir.dims import dim_array

CONTENTS_ELEMENTS = 64  # Contents of larger integer tensors are not tracked.


def contents_of(value: Value | None) -> np.ndarray | None:
    """The elements of a small integer or boolean tensor as dims (an object array of the tensor's shape), or
    None: those of a constant, or as inferred by the producer's row."""
    if value is None:
        return None
    if value.contents is None and value.encoding is not None:
        type = value.encoding.type
        small = np.prod(type.shape, dtype=np.int64) <= CONTENTS_ELEMENTS
        if small and (type.dtype.is_integer or type.dtype is DType.BOOL):
            numbers = value.encoding.decode()
            value.contents = dim_array([int(v) for v in numbers.flat], numbers.shape)
    return value.contents
