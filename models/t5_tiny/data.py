"""Real inputs: names of the standard library's sources with their underscores taken out.

``isauthenticated`` -> ``is_authenticated``, letter by letter.
"""

from __future__ import annotations

import random
import re
import string
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np

from tersor.models import corpus

Feed = dict[str, np.ndarray]

PAD, END = 0, 1  # The decoder begins with PAD, as T5's does.
ALPHABET = "\0\n" + string.ascii_lowercase + "_"
TEST, CALIBRATION = 512, 64
LONGEST = 20
_NAME = re.compile(r"[a-z]+(_[a-z]+)+")


@cache
def names() -> tuple[str, ...]:
    """Names of two words or more, in a seeded order; the first TEST are held out."""
    found = corpus.identifiers(sorted(sys.stdlib_module_names))
    fit = [name for name in found if 6 <= len(name) <= LONGEST and _NAME.fullmatch(name)]
    random.Random(0).shuffle(fit)
    return tuple(fit)


def held_out() -> tuple[str, ...]:
    """Names to test on."""
    return names()[:TEST]


def to_learn() -> tuple[str, ...]:
    """All other names."""
    return names()[TEST:]


def encode(some: Sequence[str]) -> Feed:
    """``input_ids`` and ``attention_mask``, i64[n, source], and ``decoder_input_ids``, i64[n, target]:
    what the decoder has written before each letter."""
    sources, targets = _ids([n.replace("_", "") for n in some]), labels(some)
    begun = np.concatenate([np.full((len(some), 1), PAD), targets[:, :-1]], axis=1)
    mask = (sources != PAD).astype(np.int64)
    return {"input_ids": sources, "attention_mask": mask, "decoder_input_ids": begun}


def labels(some: Sequence[str]) -> np.ndarray:
    """What the decoder should write, END after each name and PAD behind it, i64[n, target]."""
    return _ids(some)


def _ids(texts: Sequence[str]) -> np.ndarray:
    ids = np.full((len(texts), max(map(len, texts)) + 1), PAD, np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text) + 1] = [*map(ALPHABET.index, text), END]
    return ids


def calibration() -> list[Feed]:
    """Names that were learned, in batches of 8."""
    return [encode(to_learn()[i : i + 8]) for i in range(0, CALIBRATION, 8)]


def test_names() -> list[tuple[str, ...]]:
    """The held-out names in batches of 64."""
    return [held_out()[i : i + 64] for i in range(0, TEST, 64)]


def test_feeds() -> list[Feed]:
    """The batches of :func:`test_names`."""
    return [encode(batch) for batch in test_names()]
