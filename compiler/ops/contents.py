"""Contents of small integer tensors as dims: what shape arithmetic follows."""

from __future__ import annotations

import numpy as np

from tersor.ir import DType, Value

CONTENTS_ELEMENTS = 64  # Integer tensors up to this size have their elements tracked as dims.


def contents_of(value: Value | None) -> np.ndarray | None:
    """Elements of a small integer or boolean tensor as dims (an object array of the tensor's shape),
    or None. Constants are read here, results as their node's row inferred them."""
    if value is None:
        return None
    if value.contents is None and value.encoding is not None:
        type = value.encoding.type
        small = np.prod(type.shape, dtype=np.int64) <= CONTENTS_ELEMENTS
        if small and (type.dtype.is_integer or type.dtype is DType.BOOL):
            numbers = value.encoding.decode()
            flat = [int(v) for v in numbers.reshape(-1)]
            held = np.empty(len(flat), object)
            held[:] = flat
            value.contents = held.reshape(numbers.shape)
    return value.contents
