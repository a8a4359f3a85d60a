"""Building blocks for the samples of rows."""

from __future__ import annotations

import numpy as np


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normally distributed float32 numbers."""
    return rng.standard_normal(shape).astype(np.float32)
