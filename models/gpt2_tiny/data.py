"""Real inputs: Python's language reference, as bytes."""

from __future__ import annotations

from functools import cache

import numpy as np

from tersor.models import corpus
from tersor.models.gpt2_tiny import shape

Feed = dict[str, np.ndarray]
WINDOW = 128
TEST, CALIBRATION = 32, 8  # Windows; those of the test are the text's last.


@cache
def text() -> np.ndarray:
    """The reference, i64[bytes]."""
    return np.frombuffer(corpus.documentation().encode("ascii", "replace"), np.uint8).astype(
        np.int64
    )


def training_text() -> np.ndarray:
    """All of it but what is held out."""
    return text()[: -TEST * WINDOW]


def windows() -> np.ndarray:
    """Held out, i64[TEST, WINDOW]."""
    return text()[-TEST * WINDOW :].reshape(TEST, WINDOW)


def prefill(ids: np.ndarray) -> Feed:
    """All of ``ids``, i64[batch, sequence], at once, with an empty past."""
    return step(ids, empty_past(len(ids)))


def step(ids: np.ndarray, past: Feed) -> Feed:
    """``ids`` after a past without padding."""
    (length,) = {v.shape[2] for v in past.values()}
    mask = np.ones((len(ids), length + ids.shape[1]), np.int64)
    return {"input_ids": ids, "attention_mask": mask, **past}


def empty_past(batch: int) -> Feed:
    """Keys and values of no positions."""
    nothing = np.zeros((batch, shape.HEADS, 0, shape.HEAD_DIM), np.float32)
    return dict.fromkeys(shape.PAST, nothing)


def past_of(outputs: dict[str, np.ndarray]) -> Feed:
    """The next step's past, from the outputs of this one."""
    return {past: outputs[present] for past, present in zip(shape.PAST, shape.PRESENT, strict=True)}


def calibration() -> list[Feed]:
    """Windows from all over the training text."""
    starts = np.linspace(0, len(training_text()) - WINDOW, CALIBRATION).astype(int)
    return [prefill(training_text()[None, s : s + WINDOW]) for s in starts]


def test_feeds() -> list[Feed]:
    """The held-out windows, 8 at a time."""
    return [prefill(windows()[i : i + 8]) for i in range(0, TEST, 8)]
