"""Words that people rated (``vaderSentiment``'s lexicon), letter by letter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from tersor.models.padding import padded

SYMBOLS = 27  # 0 pads; 1 to 26 are the letters.
SHARES = {"train": (0, 1, 2, 3, 4, 5, 6, 7), "calibration": (8,), "test": (9,)}
Feed = dict[str, np.ndarray]


@cache
def words(part: str) -> tuple[tuple[str, int], ...]:
    """(word, 1 if people find it positive, else 0) of a part: of every ten words in the order of the
    alphabet eight are trained on, one calibrates, one tests. Only words that were rated clearly (mean
    beyond +-1 of -4 .. 4)."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    lexicon: dict[str, float] = SentimentIntensityAnalyzer().lexicon
    plain = (w for w in sorted(lexicon) if w.isascii() and w.isalpha() and w.islower())
    rated = [(w, int(lexicon[w] > 0)) for w in plain if abs(lexicon[w]) >= 1]
    return tuple(pair for i, pair in enumerate(rated) if i % 10 in SHARES[part])


def encode(texts: Sequence[str]) -> Feed:
    """``input_ids``, i64[len(texts), longest], padded with zeros on the left: the last state that the
    GRU reaches is that after the last letter."""
    rows = [[ord(letter) - ord("a") + 1 for letter in text] for text in texts]
    return {"input_ids": padded(rows, left=True)}


def batches(part: str, size: int = 64) -> list[Feed]:
    """A part's words in their order, ``size`` at a time."""
    texts = [text for text, _ in words(part)]
    return [encode(texts[i : i + size]) for i in range(0, len(texts), size)]


def labels(part: str) -> np.ndarray:
    """i64[words of the part]."""
    return np.array([label for _, label in words(part)], np.int64)


def calibration() -> list[Feed]:
    """The first 64 words of their part, in batches of 8."""
    return batches("calibration", 8)[:8]


def test_feeds() -> list[Feed]:
    """All words of the test."""
    return batches("test")
