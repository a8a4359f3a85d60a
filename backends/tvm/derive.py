"""Parameters that are computed when a model is loaded, of arrays that the file holds.

    a weight that is held as int8, read by a kernel of floats:   affine, pack_float
    a head that is tied to the embedding table:                  transpose, pack_float   (or pack_int8)
    an LSTM's weight in the order of its kernel, held as int8:   scaled

The file stays as small as the graph, and the code runs on what it would run on if all were written out.
Steps are data, a name and numbers each: a library tells them in its JSON.  Formats of weights add those by
which they pack.
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
    """``steps`` in their order, each (name, arguments …); the first is given the arrays at ``sources``,
    places among a library's parameters, and each of the others what the one before it made."""

    steps: tuple[Step, ...]
    sources: tuple[int, ...]


def compute(steps: Sequence[Step], sources: Sequence[np.ndarray]) -> np.ndarray:
    """What ``steps`` make of ``sources``.

    Raises:
        KeyError, ValueError, TypeError, IndexError: steps that there are not, or that do not fit.
    """
    held = list(sources)
    for name, *arguments in steps:
        held = [np.asarray(_STEPS[name](held, *arguments))]
    (made,) = held
    return made


def steps_of(encoding: Encoding) -> tuple[tuple[Step, ...], tuple[np.ndarray, ...]]:
    """How to make the numbers of a constant of what it holds; no steps where that is the numbers."""
    base, turn = _in_memory_order(encoding)
    if isinstance(base, Cast):
        steps: tuple[Step, ...] = (("cast", base.dtype.value),)
        sources: tuple[np.ndarray, ...] = (base.array,)
    elif isinstance(base, Affine):
        steps = (("affine", NO_AXIS if base.axis is None else base.axis, base.block),)
        # No zero points are one, for all scales.
        zero = base.zero_point.reshape(-1)[:1] if base.is_symmetric else base.zero_point
        sources = (base.values, base.scale, zero)
    else:
        steps, sources = (), (base.decode(),)
    return (*steps, *turn), sources


def is_derived(encoding: Encoding) -> bool:
    """Whether a library stores a constant as its encoding does."""
    return isinstance(encoding, (Affine, Cast))


def values_of(encoding: Affine) -> tuple[tuple[Step, ...], tuple[np.ndarray, ...]]:
    """As :func:`steps_of`, for the integers alone."""
    base, turn = _in_memory_order(encoding)
    assert isinstance(base, Affine)
    return turn, (base.values,)


def _in_memory_order(encoding: Encoding) -> tuple[Encoding, tuple[Step, ...]]:
    """A constant with its axes in the order in which they lie in memory, and the step from there: what
    is tied to it is the same array then."""
    order = encoding.memory_order
    axes = range(len(order))
    if order == tuple(axes):
        return encoding, ()
    return encoding.permute(order), (("transpose", *(order.index(axis) for axis in axes)),)


def _affine(held: list[np.ndarray], axis: int, block: int) -> np.ndarray:
    values, scale, zero = held
    zero = zero.astype(np.int32) if zero.dtype == values.dtype else zero
    zero = (
        zero.reshape(scale.shape) if zero.size == scale.size else np.broadcast_to(zero, scale.shape)
    )
    # Wide ones: they would be packed first, if they had less than a byte each.
    return Affine(
        values.astype(np.int32), scale, zero, None if axis == NO_AXIS else axis, block
    ).decode()


def _scaled(held: list[np.ndarray], dtype: str) -> np.ndarray:
    """Integers times scales that broadcast against them."""
    values, scale = held
    return np.asarray(values.astype(scale.dtype) * scale, dtype)


def _cast(held: list[np.ndarray], dtype: str) -> np.ndarray:
    (array,) = held
    return array.astype(DType(dtype).numpy)


def _transpose(held: list[np.ndarray], *perm: int) -> np.ndarray:
    (array,) = held
    return array.transpose(perm)


_STEPS: dict[str, Callable[..., np.ndarray]] = {
    "affine": _affine,
    "scaled": _scaled,
    "cast": _cast,
    "transpose": _transpose,
}


def register(name: str, function: Callable[..., np.ndarray]) -> None:
    """Adds a step, of formats and kernels: ``function`` takes the list of what the step before gave, or of
    the sources, and the step's arguments."""
    _STEPS[name] = function
