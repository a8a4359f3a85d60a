"""Concatenation of encodings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.ir.encodings.encoding import Encoding, dense
from tersor.ir.encodings.masked import Masked


def concat(encodings: Sequence[Encoding], axis: int) -> Encoding:
    """Concatenates along ``axis``: in a common form if they have one, else dense. If any has a mask, so has
    the result, set everywhere for those without one."""
    unmasked = [e.unmasked for e in encodings]
    first, *others = unmasked
    keys = {e.concat_key(axis) for e in unmasked}
    if len(keys) > 1 or None in keys:
        result = dense(np.concatenate([e.decode() for e in unmasked], axis))
    else:
        result = first.joined(others, axis) if others else first
    masks = [e.mask for e in encodings]
    if all(mask is None for mask in masks):
        return result
    pairs = zip(masks, encodings, strict=True)
    filled = [np.ones(e.type.shape, bool) if mask is None else mask for mask, e in pairs]
    return Masked.of(np.concatenate(filled, axis), result)
