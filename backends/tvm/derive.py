"""Parameters that are derived from stored arrays when a model is loaded.

    a weight stored as int8, read by a float kernel:         affine, pack_float
    a head that is tied to the embedding table:              transpose, pack_float   (or pack_int8)
    an LSTM's weight in its kernel's order, stored as int8:  scaled

The file stays as small as the graph, and kernels get the same arrays as if these were stored.  Steps are data
in the library's JSON: a name with numbers.  Weight formats register their packing steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.ir import Affine, Cast, DType, Encoding

Step = tuple[Any, ...]
NO_AXIS = -1


@dataclass(frozen=True)
class Derivation:
    """``steps`` in order, each (name, arguments …); the first takes the parameters of a library with the
    indices ``sources``, each other one the result of the step before."""

    steps: tuple[Step, ...]
    sources: tuple[int, ...]


def compute(steps: Sequence[Step], sources: Sequence[np.ndarray]) -> np.ndarray:
    """The result of ``steps`` from ``sources``.

    Raises:
        KeyError, ValueError, TypeError, IndexError: steps that are unknown, or do not fit their arrays.
    """
    arrays = list(sources)
    for name, *arguments in steps:
        arrays = [np.asarray(_STEPS[name](arrays, *arguments))]
    (result,) = arrays
    return result


def steps_of(encoding: Encoding) -> tuple[tuple[Step, ...], tuple[np.ndarray, ...]]:
    """The steps and sources of a constant's numbers; no steps if the numbers themselves are stored."""
    base, transpose = _in_memory_order(encoding)
    if isinstance(base, Cast):
        steps: tuple[Step, ...] = (("cast", base.dtype.value),)
        sources: tuple[np.ndarray, ...] = (base.array,)
    elif isinstance(base, Affine):
        steps = (("affine", NO_AXIS if base.axis is None else base.axis, base.block),)
        # A single zero for all zero points.
        zero = base.zero_point.reshape(-1)[:1] if base.is_symmetric else base.zero_point
        sources = (base.values, base.scale, zero)
    else:
        steps, sources = (), (base.decode(),)
    return (*steps, *transpose), sources


def is_derived(encoding: Encoding) -> bool:
    """Whether a library stores a constant encoded, and decodes it when loaded."""
    return isinstance(encoding, (Affine, Cast))


def values_of(encoding: Affine) -> tuple[tuple[Step, ...], tuple[np.ndarray, ...]]:
    """As :func:`steps_of`, for the integers only."""
    base, transpose = _in_memory_order(encoding)
    assert isinstance(base, Affine)
    return transpose, (base.values,)


def _in_memory_order(encoding: Encoding) -> tuple[Encoding, tuple[Step, ...]]:
    """A constant with its axes in memory order, and the step back, so that tied constants share an array."""
    order = encoding.memory_order
    axes = range(len(order))
    if order == tuple(axes):
        return encoding, ()
    return encoding.permute(order), (("transpose", *(order.index(axis) for axis in axes)),)


def _affine(arrays: list[np.ndarray], axis: int, block: int) -> np.ndarray:
    values, scale, zero = arrays
    zero = zero.astype(np.int32) if zero.dtype == values.dtype else zero
    zero = (
        zero.reshape(scale.shape) if zero.size == scale.size else np.broadcast_to(zero, scale.shape)
    )
    # As int32: integers of less than a byte would be packed first.
    return Affine(
        values.astype(np.int32), scale, zero, None if axis == NO_AXIS else axis, block
    ).decode()


def _scaled(arrays: list[np.ndarray], dtype: str) -> np.ndarray:
    """Integers times scales, which broadcast."""
    values, scale = arrays
    return np.asarray(values.astype(scale.dtype) * scale, dtype)


def _cast(arrays: list[np.ndarray], dtype: str) -> np.ndarray:
    (array,) = arrays
    return array.astype(DType(dtype).numpy)


def _transpose(arrays: list[np.ndarray], *perm: int) -> np.ndarray:
    (array,) = arrays
    return array.transpose(perm)


_STEPS: dict[str, Callable[..., np.ndarray]] = {
    "affine": _affine,
    "scaled": _scaled,
    "cast": _cast,
    "transpose": _transpose,
}


def register(name: str, function: Callable[..., np.ndarray]) -> None:
    """Adds a step of a format or kernel: ``function`` takes the list of arrays (the sources, or the result of
    the step before) and the step's arguments."""
    _STEPS[name] = function
