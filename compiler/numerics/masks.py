"""Pruning masks of a matrix [outputs, inputs] from scores, in patterns.

    unstructured   each weight by itself
    2:4            the two best of every four consecutive inputs of an output are kept
    RxC            blocks of R consecutive outputs by C consecutive inputs are kept or pruned as a whole;
                   1xC are groups of C inputs of an output

A block's score is the mean of its weights' scores.  Among equal scores the first in row-major order is
pruned first, so that masks are deterministic and have exactly the requested number of zeros.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tersor.errors import InvalidOption


@dataclass(frozen=True)
class Pattern:
    """Blocks of ``rows`` x ``columns``; with ``kept`` > 0, so many weights of each block (of one row) are
    kept."""

    rows: int = 1
    columns: int = 1
    kept: int = 0

    @staticmethod
    def parse(text: str) -> Pattern:
        """``unstructured``, ``N:M`` or ``RxC``.

        Raises:
            InvalidOption: none of these.
        """
        if text == "unstructured":
            return Pattern()
        if match := re.fullmatch(r"(\d+)([:x])(\d+)", text):
            first, second = int(match[1]), int(match[3])
            if match[2] == ":" and 0 < first < second:
                return Pattern(columns=second, kept=first)
            if match[2] == "x" and first and second:
                return Pattern(first, second)
        raise InvalidOption(
            f"unknown pattern {text!r}: use unstructured, N:M with 0 < N < M (2:4), or RxC for blocks of R "
            "outputs by C inputs (32x1)"
        )

    def misfit(self, shape: tuple[int, ...]) -> str:
        """Why a matrix of ``shape`` cannot be divided into such blocks; empty if it can."""
        for size, part, what in zip(
            shape, (self.rows, self.columns), ("outputs", "inputs"), strict=True
        ):
            if size % part:
                return f"its {size} {what} are not a multiple of {part}"
        return ""

    def pool(self, scores: np.ndarray) -> np.ndarray:
        """The scores of the blocks, [outputs / rows, inputs / columns]."""
        if self.rows == self.columns == 1:
            return scores
        height, width = scores.shape
        blocks = (height // self.rows, self.rows, width // self.columns, self.columns)
        return np.asarray(scores.reshape(blocks).mean(axis=(1, 3)))

    def spread(self, blocks: np.ndarray) -> np.ndarray:
        """Repeats each block's element for its weights."""
        return np.repeat(np.repeat(blocks, self.rows, axis=0), self.columns, axis=1)


def lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """bool, like ``scores``: the ``count`` lowest along the last axis, the first among equal ones."""
    if not count:
        return np.zeros(scores.shape, bool)
    edge = np.partition(scores, count - 1, axis=-1)[..., count - 1 : count]
    below, level = scores < edge, scores == edge
    left = count - below.sum(axis=-1, keepdims=True)
    return np.asarray(below | (level & (np.cumsum(level, axis=-1) <= left)))


def share(size: int, sparsity: float) -> int:
    """How many of ``size`` to prune: ``sparsity`` of them rounded down, and never all."""
    return min(int(size * sparsity + 1e-9), max(size - 1, 0))


def n_of_m(scores: np.ndarray, pattern: Pattern) -> np.ndarray:
    """bool, like ``scores``: the ``pattern.kept`` best of every ``pattern.columns`` inputs."""
    groups = scores.reshape(len(scores), -1, pattern.columns)
    return ~lowest(groups, pattern.columns - pattern.kept).reshape(scores.shape)


def by_sparsity(
    scores: Sequence[np.ndarray], pattern: Pattern, sparsity: float, *, per_output: bool = False
) -> list[np.ndarray]:
    """A mask for each matrix of scores: prunes the lowest ``sparsity`` (0 to 1) of all their blocks
    together, or of each row of blocks with ``per_output``."""
    pooled = [pattern.pool(s) for s in scores]
    if per_output:
        return [~pattern.spread(lowest(p, share(p.shape[1], sparsity))) for p in pooled]
    whole = np.concatenate([np.zeros(0), *(p.reshape(-1) for p in pooled)])
    gone = lowest(whole, share(whole.size, sparsity))
    parts = np.split(gone, np.cumsum([p.size for p in pooled]))
    return [~pattern.spread(part.reshape(p.shape)) for p, part in zip(pooled, parts, strict=False)]


def by_threshold(scores: np.ndarray, pattern: Pattern, threshold: float) -> np.ndarray:
    """The mask of the blocks whose score is at least ``threshold``."""
    return ~pattern.spread(pattern.pool(scores) < threshold)
