"""Functions that a library calls where only the numbers tell how much is chosen: numpy, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
import tvm_ffi


@tvm_ffi.register_global_func("tersor.places", override=True)
def places(flags: Any) -> Any:
    """Indices of what is not 0, i64[rank, count]."""
    return _tensor(np.array(np.nonzero(flags.numpy()), np.int64))


@tvm_ffi.register_global_func("tersor.unique", override=True)
def unique(x: Any, axis: Any, in_order: Any) -> Any:
    """The four results of ONNX's Unique. The numbers ``axis``, -1 for all elements, and ``in_order``, 0 for
    as they come, are tensors."""
    array, axis, in_order = x.numpy(), int(axis.numpy()), int(in_order.numpy())
    axis = None if axis < 0 else axis
    found, first, inverse, counts = np.unique(array, True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not in_order:
        order = np.argsort(first)
        found, first, counts = np.take(found, order, axis=axis or 0), first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    return [_tensor(found), *(_tensor(a.astype(np.int64)) for a in (first, inverse, counts))]


def _tensor(array: np.ndarray) -> Any:
    return tvm.runtime.tensor(np.ascontiguousarray(array))
