"""Greedy generation, byte by byte: by steps through the past, or by a prefill for every byte."""

from __future__ import annotations

import numpy as np

from tersor.models.gpt2_tiny import data, shape
from tersor.models.zoo import Run


def by_steps(run: Run, prompt: np.ndarray, count: int) -> np.ndarray:
    """``count`` bytes after ``prompt``, i64[batch, length] -> i64[batch, count]: one prefill, then one
    byte at a time, each with the keys and values of all before it."""
    made: list[np.ndarray] = []
    outputs = dict(run(data.prefill(prompt)))
    for _ in range(count):
        made.append(_likeliest(outputs[shape.LOGITS]))
        if len(made) < count:
            outputs = dict(run(data.step(made[-1], data.past_of(outputs))))
    return np.concatenate(made, axis=1)


def by_prefill(run: Run, prompt: np.ndarray, count: int) -> np.ndarray:
    """The same bytes, everything computed anew for each."""
    ids = prompt
    for _ in range(count):
        ids = np.concatenate([ids, _likeliest(run(data.prefill(ids))[shape.LOGITS])], axis=1)
    return ids[:, prompt.shape[1] :]


def _likeliest(logits: np.ndarray) -> np.ndarray:
    """After the last position: f32[batch, sequence, bytes] -> i64[batch, 1]."""
    return np.asarray(logits[:, -1:].argmax(-1), np.int64)
