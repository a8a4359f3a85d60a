"""What compression cost: fidelity of the embeddings, and a task that people rated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tersor.models.minilm.build import OUTPUT

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def embed(run: Run, feeds: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Embeddings of all sentences in ``feeds``, f32[n, 384]."""
    return np.concatenate([run(feed)[OUTPUT] for feed in feeds])


def fidelity(reference: np.ndarray, got: np.ndarray) -> dict[str, float]:
    """Mean and minimum cosine of the rows of two f32[n, 384], and nn1: the share of rows whose nearest
    neighbour among all rows stays the same."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (reference, got))
    cosine = (a * b).sum(axis=1)
    same = _nearest(a) == _nearest(b)
    return {
        "mean_cosine": float(cosine.mean()),
        "min_cosine": float(cosine.min()),
        "nn1": float(same.mean()),
    }


def _nearest(rows: np.ndarray) -> np.ndarray:
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(similarity.argmax(axis=1))


def valence_words() -> tuple[list[str], np.ndarray]:
    """Words of vaderSentiment's lexicon that people rated clearly (mean beyond +-1 of -4 .. 4), and
    whether they are positive, bool[n]."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    lexicon: dict[str, float] = SentimentIntensityAnalyzer().lexicon
    rated = {w: r for w, r in sorted(lexicon.items()) if w.isalpha() and abs(r) >= 1}
    return list(rated), np.array([r > 0 for r in rated.values()])


def valence_head(reference: np.ndarray, positive: np.ndarray) -> Any:
    """A logistic head trained on the even rows of the uncompressed model's embeddings."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=2000).fit(reference[::2], positive[::2])


def valence_accuracy(head: Any, embeddings: np.ndarray, positive: np.ndarray) -> float:
    """Accuracy of the head on the odd rows."""
    return float(head.score(embeddings[1::2], positive[1::2]))
