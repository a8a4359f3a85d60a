"""Text that every Python has: the sources of its own standard library."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import InspectLoader
from importlib.util import find_spec

import numpy as np


def source(module: str) -> str:
    """The source of a standard module. Raises LookupError where Python came without it."""
    spec = find_spec(module)
    loader = spec.loader if spec is not None else None
    text = loader.get_source(module) if isinstance(loader, InspectLoader) else None
    if text is None:
        raise LookupError(f"this Python has no source of its module {module}")
    return text


def padded(rows: Sequence[Sequence[int]], shortest: int = 1, left: bool = False) -> np.ndarray:
    """i64[len(rows), longest row, or ``shortest``]; zeros behind each row, or before it (``left``)."""
    longest = max(shortest, *(len(row) for row in rows)) if rows else shortest
    ids = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, place] = row
    return ids
