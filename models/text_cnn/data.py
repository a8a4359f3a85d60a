"""Passages of Python's own library as words, and the module that each is from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np

from tersor.models import corpus
from tersor.models.padding import padded

MODULES = (
    "_pydecimal", "argparse", "doctest", "inspect", "ipaddress", "mailbox", "pickletools", "tarfile",
    "turtle", "typing",
)  # fmt: skip
VOCABULARY = 2048  # 0 pads, 1 is an unknown word.
PASSAGE = 4  # lines
STRETCH = 80  # lines that go into one part together, so that neighbours are not torn apart
SHARES = {"train": (0, 1, 2, 3, 4, 5, 6), "calibration": (7,), "test": (8, 9)}
SHORTEST, LONGEST = 5, 48  # words; the widest convolution reads 5
Feed = dict[str, np.ndarray]
Passage = tuple[tuple[str, ...], int]


@cache
def passages(part: str) -> tuple[Passage, ...]:
    """(words, index of the module) of a part: of every ten stretches of 80 lines seven are trained on,
    one calibrates, two test."""
    found: list[Passage] = []
    for label, module in enumerate(MODULES):
        text = [line for line in "\n".join(corpus.sources(module)).splitlines() if line.strip()]
        for start in range(0, len(text), PASSAGE):
            if start // STRETCH % 10 in SHARES[part]:
                words = _words("\n".join(text[start : start + PASSAGE]))[:LONGEST]
                if len(words) >= SHORTEST:
                    found.append((words, label))
    return tuple(found)


def _words(text: str) -> tuple[str, ...]:
    """Letters in a row, digits and signs, in lower case."""
    return tuple(re.findall(r"[a-z]+|[^\sa-z]", text.lower()))


@cache
def _vocabulary() -> dict[str, int]:
    """The most frequent words of the training passages, by name where they are equally frequent."""
    counts = Counter(word for words, _ in passages("train") for word in words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: i for i, word in enumerate(ranked[: VOCABULARY - 2], 2)}


def encode(found: Sequence[Passage]) -> Feed:
    """``input_ids``, i64[len(found), longest], padded with zeros."""
    known = _vocabulary()
    rows = [[known.get(word, 1) for word in words] for words, _ in found]
    return {"input_ids": padded(rows, shortest=SHORTEST)}


def batches(found: Sequence[Passage], size: int = 32) -> list[Feed]:
    """``found`` in their order, ``size`` at a time."""
    return [encode(found[i : i + size]) for i in range(0, len(found), size)]


def labels(found: Sequence[Passage]) -> np.ndarray:
    """i64[len(found)]."""
    return np.array([label for _, label in found], np.int64)


def calibration() -> list[Feed]:
    """64 passages, spread over all modules, in batches of 8."""
    found = passages("calibration")
    return batches(found[:: max(1, len(found) // 64)][:64], 8)


def test_feeds() -> list[Feed]:
    """All passages of the test."""
    return batches(passages("test"))
