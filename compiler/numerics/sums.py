"""Which integer products a kernel adds up in 16 bits before it widens them, and weights that fit in there.

Products of u8 and s8 are at most 255 times a weight, so a sum of some is within 32,767 if the weights among
them that are positive add up to at most 128, and those that are negative to at least -128:

    255 * (64 + 64) = 32,640        255 * (64 + 65) = 32,895: clipped or wrapped, a wrong result
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST = 128  # 255 * 128 <= 32,767.


@dataclass(frozen=True)
class Sums:
    """Of each ``block`` inputs in a row, those at each of ``places`` are added up.

    Attributes:
        block: how many inputs.
        places: of the inputs of each sum; each input is in one.
        most: 2: any two of a sum's are added up, and it is not known which; 0: all of them are.
    """

    block: int
    places: tuple[tuple[int, ...], ...]
    most: int = 0

    def blocks(self, weights: np.ndarray) -> np.ndarray:
        """A copy of ``weights`` [k, n] as [blocks, block, n], zeros behind the last."""
        k, n = weights.shape
        full = np.zeros((-(-k // self.block) * self.block, n), np.result_type(weights, np.int16))
        full[:k] = weights
        return full.reshape(-1, self.block, n)

    def largest(self, weights: np.ndarray) -> np.ndarray:
        """For each column of ``weights`` [k, n], the largest sum of weights of one sign."""
        blocks = self.blocks(weights)
        found = np.zeros(weights.shape[1], blocks.dtype)
        for places in self.places:
            for signed in (blocks[:, places], -blocks[:, places]):
                one = np.maximum(signed, 0)
                if self.most:
                    one = np.sort(one, axis=1)[:, -self.most :]
                found = np.maximum(found, one.sum(1).max(0, initial=0))
        return found

    def holds(self, weights: np.ndarray) -> bool:
        """Whether no sum of products with integers ``weights`` [k, n] leaves 16 bits."""
        return bool(self.largest(weights).max(initial=0) <= MOST)


TWO_OF_FOUR = Sums(4, ((0, 1, 2, 3),), most=2)
"""Kernels of ONNX Runtime pair two of four neighbours, and which is their own."""

FOURS = Sums(8, ((0, 1, 4, 5), (2, 3, 6, 7)))
EIGHTS = Sums(16, ((0, 1, 4, 5, 8, 9, 12, 13), (2, 3, 6, 7, 10, 11, 14, 15)))
"""Sums of neighbours of two, or four, vectors with four inputs a lane, added before they widen."""
