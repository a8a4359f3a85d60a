"""Affine quantization of weights and its error.

Symmetric, per output channel (axis ``a`` of w):   scale = max|w| / q_max,   q = round(w / scale)

**Saturation.** x86 without VNNI multiplies u8 activations with s8 weights by ``vpmaddubsw``, which
adds two neighbouring products along the inner axis into 16 bits that saturate at 32,767:

    255 * 127 + 255 * 127 = 64,770        clipped: a wrong result, not a rounding error

The usual way out is 7-bit weights (255 * 64 * 2 = 32,640).  But only a *sum* of two products of the same
sign can overflow, so it suffices that in every aligned group of four weights (the kernels pair two of
them) no weight exceeds 127 and the two largest of one sign add up to at most 128: 255 * 128 = 32,640.
Pairs of large weights are rare, so most scales stay close to those of 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Literal

import numpy as np

from tersor.ir import Affine

Granularity = Literal["tensor", "token", "auto"]
"""One scale per activation, one per row of its last axis, or whichever the backend prefers."""


class ActivationForm(Enum):
    """The form of a layer's input activations."""

    FLOAT = "float"
    INT8 = "int8"  # One scale per tensor.
    INT8_ROWS = "int8 rows"  # One scale per row of the last axis.


# Before rounding, which may add 0.5 twice: 127.5 + 1 = 128.5, 255 * 128.5 <= 32,767.
PAIR_LIMIT = 127.5


def quantize_weight(weight: np.ndarray, axis: int, *, pair_axis: int | None = None) -> Affine:
    """Symmetric int8 per channel of ``axis``, by short scales (:func:`short_steps`).

    Args:
        weight: float tensor.
        axis: its output-channel axis, not negative.
        pair_axis: the inner axis along which a saturating target adds neighbouring products; None if the
            target's arithmetic is exact.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    scale = np.abs(rows).max(axis=1, initial=0.0) / 127
    if pair_axis is not None:
        inner = np.moveaxis(weight, (axis, pair_axis), (0, -1)).astype(np.float64)
        scale = np.maximum(scale, pair_sums(inner).max(axis=1, initial=0.0) / PAIR_LIMIT)
    scale = short_steps(_stored(scale, weight.dtype))
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return _symmetric(weight, scale, scale.reshape(shape), axis)


def _stored(scale: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Scales rounded to ``dtype`` (f32 or shorter), as f32; 1 where they are or become zero."""
    scale = scale.astype(dtype).astype(np.float32)
    return np.where(scale > 0, scale, np.float32(1))


def _symmetric(
    weight: np.ndarray, scale: np.ndarray, broadcast: np.ndarray, axis: int | None, block: int = 0
) -> Affine:
    """``broadcast``: ``scale`` in a shape that broadcasts against ``weight``."""
    values = np.clip(np.rint(weight / broadcast), -127, 127).astype(np.int8)
    zero = np.zeros_like(scale, dtype=np.int8)
    return Affine(values, scale.astype(weight.dtype), zero, axis, block)


def quantize_outputs(weight: np.ndarray, inputs: Sequence[int]) -> Affine:
    """Symmetric int8 with short scales (:func:`short_steps`), one per output channel; ``inputs`` are the
    axes that are summed over. If that is a single axis, each matrix of a stack has its own scales."""
    outputs = [i for i in range(weight.ndim) if i not in inputs and weight.shape[i] > 1]
    if not outputs:
        outputs = [i for i in range(weight.ndim) if i not in inputs][-1:]
    stacked = len(outputs) > 1 and len(inputs) == 1
    kept = outputs if stacked else outputs[-1:]
    summed = tuple(i for i in range(weight.ndim) if i not in kept)
    scale = np.abs(weight.astype(np.float64)).max(summed, keepdims=True, initial=0.0) / 127
    scale = short_steps(_stored(scale, weight.dtype))
    if not stacked:
        return _symmetric(weight, scale.reshape(-1), scale, kept[0])
    (axis,) = inputs
    blocks = np.broadcast_to(scale, [1 if i == axis else n for i, n in enumerate(weight.shape)])
    return _symmetric(weight, np.ascontiguousarray(blocks), scale, axis, weight.shape[axis])


def short_steps(scale: np.ndarray) -> np.ndarray:
    """Scales rounded up to float16, which halves their storage, unless that increases one of them by more
    than 1/256.

        0.0123  ->  0.012306        less than the rounding error of the weights
    """
    with np.errstate(over="ignore"):
        short = scale.astype(np.float16)
        larger = np.where(short < scale, np.nextafter(short, np.float16(np.inf)), short)
    wide: np.ndarray = larger.astype(scale.dtype)
    return wide if bool((wide <= scale * (1 + 1 / 256)).all()) else scale


def is_short(array: np.ndarray) -> bool:
    """Whether ``array`` is float32 and float16 can represent all of it exactly."""
    with np.errstate(over="ignore"):
        return array.dtype == np.float32 and bool((array.astype(np.float16) == array).all())


def pair_sums(inner: np.ndarray) -> np.ndarray:
    """Per channel (axis 0), for each aligned group of four along the last axis: the largest sum of two
    weights of the same sign."""
    k = inner.shape[-1]
    padded = np.pad(inner, [(0, 0)] * (inner.ndim - 1) + [(0, -k % 4)])
    groups = padded.reshape(inner.shape[0], -1, 4)
    largest = [
        np.sort(np.maximum(signed, 0), axis=-1)[..., -2:].sum(axis=-1)
        for signed in (groups, -groups)
    ]
    sums: np.ndarray = np.maximum(*largest)
    return sums


def quantize_rows(table: np.ndarray) -> Affine:
    """Symmetric int8 with one short scale per row (axis 0): for embedding tables."""
    return quantize_outputs(table, range(1, table.ndim))


BLOCK = 1 << 20  # Elements that are in memory as f64 at once.
Range = tuple[float | np.ndarray, float | np.ndarray]
"""The lowest and the highest value, of a tensor or of each row ([n, 1])."""


def fake_quantize_dynamic(x: np.ndarray, span: Range) -> np.ndarray:
    """``x`` (rows of a tensor) after dynamic quantization to uint8 and dequantization, with one scale per
    range in ``span``, which is extended to include zero."""
    low, high = (np.asarray(bound, np.float64) for bound in span)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN in, NaN out.
        scale = (high - low) / 255
        scale = np.where(scale == 0, 1, scale)
        zero = np.clip(np.rint(-low / scale), 0, 255)
        quantized = np.clip(np.rint(x / scale) + zero, 0, 255)
        return np.asarray((quantized - zero) * scale, np.float32)


def relative_error(expected: np.ndarray, got: np.ndarray) -> float:
    """Root mean square of the difference, relative to that of ``expected``; infinite if either contains
    NaN or infinity."""
    reference = error = 0.0
    expected, got = np.atleast_1d(expected), np.atleast_1d(got)
    # A block at a time: in f64 an embedding table and its differences are several times the model.
    step = max(1, BLOCK // max(expected[:1].size, 1))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(expected), step):
            part = expected[start : start + step]
            reference += float(np.square(part, dtype=np.float64).sum())
            difference = np.subtract(part, got[start : start + step], dtype=np.float64)
            error += float(np.square(difference, out=difference).sum())
    if not (np.isfinite(reference) and np.isfinite(error)):
        return float("inf")
    return float((error / reference) ** 0.5) if reference > 0 else float(error > 0)
