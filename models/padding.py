"""Sequences of different lengths as one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def padded(rows: Sequence[Sequence[int]], shortest: int = 1, left: bool = False) -> np.ndarray:
    """i64[len(rows), longest row, or ``shortest``]; zeros behind each row, or before it (``left``)."""
    longest = max(shortest, *(len(row) for row in rows)) if rows else shortest
    ids = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, place] = row
    return ids
