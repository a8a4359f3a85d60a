"""Functions that a library calls where only the numbers tell how much is chosen: numpy, on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tvm
import tvm_ffi


@tvm_ffi.register_global_func("tersor.places", override=True)
def places(flags: Any) -> Any:
    """Indices of what is not 0, i64[rank, count]."""
    return _tensor(np.array(np.nonzero(flags.numpy()), np.int64))


@tvm_ffi.register_global_func("tersor.check_broadcast", override=True)
def check_broadcast(sizes: Any, node: str) -> Any:
    """Checks that sizes broadcast: to the first of them, unless it is -1. Returns an empty shape.

    Raises:
        ValueError: they do not.
    """
    want, *others = sizes
    size = _broadcast(others, node)
    if want not in (-1, size):
        raise ValueError(f"{node}: a size is {size}, and {want} in what the model declares")
    return tvm_ffi.Shape(())


@tvm_ffi.register_global_func("tersor.check_equal", override=True)
def check_equal(sizes: Any, node: str) -> Any:
    """Checks that two sizes are equal. Returns an empty shape.

    Raises:
        ValueError: they are not.
    """
    first, second = sizes
    if first != second:
        raise ValueError(f"{node}: sizes {first} and {second} are not equal")
    return tvm_ffi.Shape(())


@tvm_ffi.register_global_func("tersor.expanded_sizes", override=True)
def expanded_sizes(sizes: Any, target: Any, node: str) -> Any:
    """The sizes that ``sizes`` and those in a tensor broadcast to; a negative one keeps what is there.

    Raises:
        ValueError: they do not broadcast.
    """
    have, asked = list(sizes), [1 if n < 0 else int(n) for n in target.numpy()]
    rank = max(len(have), len(asked))
    have, asked = ([1] * (rank - len(s)) + s for s in (have, asked))
    return tvm_ffi.Shape(tuple(_broadcast(pair, node) for pair in zip(have, asked, strict=True)))


def _broadcast(sizes: Iterable[int], node: str) -> int:
    """The size that sizes broadcast to."""
    size = 1
    for other in sizes:
        if other != size and 1 not in (other, size):
            raise ValueError(f"{node}: sizes {size} and {other} do not broadcast")
        size = other if size == 1 else size
    return size


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
