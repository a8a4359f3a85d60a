"""Which weights of a matrix [outputs, inputs] stay: masks by scores, in patterns.

    unstructured   each weight by itself
    2:4            of every four consecutive inputs of an output, the two best stay
    RxC            blocks of R consecutive outputs by C consecutive inputs stay or go as a whole; 1xC are
                   groups of C inputs of an output

A block's score is the mean of its weights' scores.  Of equal scores the first (in rows, then in columns)
goes first, so that masks are the same everywhere and have exactly as many zeros as they should.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tersor.errors import InvalidOption
from tersor.ir import Graph, Value


@dataclass(frozen=True)
class Pattern:
    """Blocks of ``rows`` x ``columns``; with ``kept`` > 0, of each such block (of one row) as many
    weights stay."""

    rows: int = 1
    columns: int = 1
    kept: int = 0

    @staticmethod
    def parse(text: str) -> Pattern:
        """``unstructured``, ``N:M`` or ``RxC``.

        Raises:
            InvalidOption: it is none of them.
        """
        if text == "unstructured":
            return Pattern()
        if (found := re.fullmatch(r"(\d+):(\d+)", text)) and 0 < int(found[1]) < int(found[2]):
            return Pattern(columns=int(found[2]), kept=int(found[1]))
        if (found := re.fullmatch(r"(\d+)x(\d+)", text)) and int(found[1]) and int(found[2]):
            return Pattern(int(found[1]), int(found[2]))
        raise InvalidOption(
            f"no pattern {text!r}: there are unstructured, N:M with 0 < N < M (2:4), "
            "and RxC, R outputs by C inputs (32x1)"
        )

    def misfit(self, shape: tuple[int, ...]) -> str:
        """Why a matrix of ``shape`` has no such blocks; empty if it has."""
        for size, part, what in zip(
            shape, (self.rows, self.columns), ("outputs", "inputs"), strict=True
        ):
            if size % part:
                return f"its {size} {what} are no multiple of {part}"
        return ""

    def pool(self, scores: np.ndarray) -> np.ndarray:
        """The scores of the blocks, [outputs / rows, inputs / columns]."""
        if self.rows == self.columns == 1:
            return scores
        height, width = scores.shape
        blocks = (height // self.rows, self.rows, width // self.columns, self.columns)
        return np.asarray(scores.reshape(blocks).mean(axis=(1, 3)))

    def spread(self, blocks: np.ndarray) -> np.ndarray:
        """What is said of blocks, said of their weights."""
        return np.repeat(np.repeat(blocks, self.rows, axis=0), self.columns, axis=1)


def lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """bool, like ``scores``: the ``count`` lowest along the last axis, of equal ones the first."""
    if not count:
        return np.zeros(scores.shape, bool)
    edge = np.partition(scores, count - 1, axis=-1)[..., count - 1 : count]
    below, level = scores < edge, scores == edge
    left = count - below.sum(axis=-1, keepdims=True)
    return np.asarray(below | (level & (np.cumsum(level, axis=-1) <= left)))


def share(size: int, sparsity: float) -> int:
    """How many of ``size`` go: never more than the sparsity says, and never all."""
    return min(int(size * sparsity + 1e-9), max(size - 1, 0))


def n_of_m(scores: np.ndarray, pattern: Pattern) -> np.ndarray:
    """bool, like ``scores``: the ``pattern.kept`` best of every ``pattern.columns`` inputs."""
    groups = scores.reshape(len(scores), -1, pattern.columns)
    return ~lowest(groups, pattern.columns - pattern.kept).reshape(scores.shape)


def by_sparsity(
    scores: Sequence[np.ndarray], pattern: Pattern, sparsity: float, *, per_output: bool = False
) -> list[np.ndarray]:
    """A mask for each matrix of scores: the lowest ``sparsity`` (0 to 1) of all their blocks together
    go; with ``per_output`` of each row's blocks (of R outputs together, where blocks have R)."""
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


def stores_floats(value: Value) -> bool:
    """Whether it is a constant that nobody quantized, in half precision or not, pruned or not."""
    return value.encoding is not None and value.encoding.storage.is_float


def drop_masks(graph: Graph) -> None:
    """Masked constants become what they hold, zeros and all: for a backend that has no sparse form."""
    for owner in graph.all_graphs():
        for constant in owner.constants.values():
            if constant.encoding is not None and constant.encoding.mask is not None:
                owner.set_encoding(constant, constant.encoding.unmasked)
