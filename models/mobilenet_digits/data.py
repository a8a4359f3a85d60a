"""scikit-learn's handwritten digits: 1,797 grey pictures of 8 by 8."""

from __future__ import annotations

from functools import cache

import numpy as np

PARTS = {"train": slice(0, 1200), "calibration": slice(1200, 1264), "test": slice(1297, 1797)}
Feed = dict[str, np.ndarray]


@cache
def digits(part: str) -> tuple[np.ndarray, np.ndarray]:
    """(f32[n, 1, 8, 8] within 0 .. 1, i64[n]) of a part."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures = (found.images / 16).astype(np.float32)[:, None]
    return pictures[PARTS[part]], found.target.astype(np.int64)[PARTS[part]]


def batches(part: str, size: int = 32) -> list[Feed]:
    """A part's pictures in their order, ``size`` at a time."""
    pictures, _ = digits(part)
    return [{"image": pictures[i : i + size]} for i in range(0, len(pictures), size)]


def calibration() -> list[Feed]:
    """64 pictures, in batches of 8."""
    return batches("calibration", 8)


def test_feeds() -> list[Feed]:
    """The 500 pictures of the test."""
    return batches("test")
