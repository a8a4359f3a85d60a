"""Encodings one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.ir.encodings.encoding import Encoding, dense
from tersor.ir.encodings.masked import Masked


def concat(encodings: Sequence[Encoding], axis: int) -> Encoding:
    """All of them along ``axis``: in their form where all have one in common, else dense. Where one has
    a mask, the result has one, which is set for all of those that have none."""
    plain = [e.unmasked for e in encodings]
    first, *others = plain
    keys = {e.concat_key(axis) for e in plain}
    if len(keys) > 1 or None in keys:
        whole = dense(np.concatenate([e.decode() for e in plain], axis))
    else:
        whole = first.joined(others, axis) if others else first
    masks = [e.mask for e in encodings]
    if all(mask is None for mask in masks):
        return whole
    pairs = zip(masks, encodings, strict=True)
    set_ = [np.ones(e.type.shape, bool) if mask is None else mask for mask, e in pairs]
    return Masked.of(np.concatenate(set_, axis), whole)
