"""Geometry of sliding windows: strides, dilations, padding and output sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tersor.ir import Dim
from tersor.ir.dims import ceil_div, floordiv


@dataclass(frozen=True)
class Window:
    """A window over positions; every tuple has an entry per axis.

    ``span`` is the extent of the dilated window. ``pads`` are the explicit (before, after); with
    ``auto_pad`` SAME the padding follows from the operand's size.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    auto_pad: str
    ceil: bool = False

    @property
    def span(self) -> tuple[int, ...]:
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def sizes(self, have: Sequence[Dim]) -> list[Dim]:
        """How many windows fit along each axis of the sizes ``have``."""
        return [self._fitting(i, size) for i, size in enumerate(have)]

    def _fitting(self, axis: int, size: Dim) -> Dim:
        stride, span, (before, after) = self.strides[axis], self.span[axis], self.pads[axis]
        if size is None:
            return None
        if self.auto_pad.startswith("SAME"):
            return ceil_div(size, stride)
        if self.auto_pad == "VALID":
            before = after = 0
        room = size + (before + after - span)
        if not self.ceil or stride == 1:
            return floordiv(room, stride) + 1
        count = ceil_div(room, stride) + 1
        if isinstance(size, int) and isinstance(count, int):
            # Without a window that would begin in the padding after the operand.
            return count - 1 if (count - 1) * stride >= size + before else count
        return None

    def padding(self, have: Sequence[int]) -> list[tuple[int, int]]:
        """The padding (before, after) of each axis of the sizes ``have``."""
        return [self._padding(i, size) for i, size in enumerate(have)]

    def _padding(self, axis: int, size: int) -> tuple[int, int]:
        if not self.auto_pad.startswith("SAME"):
            return (0, 0) if self.auto_pad == "VALID" else self.pads[axis]
        stride = self.strides[axis]
        total = max((-(-size // stride) - 1) * stride + self.span[axis] - size, 0)
        return halves(total, self.auto_pad)

    def patches(self, x: np.ndarray, at: np.ndarray) -> np.ndarray:
        """[len(at), kernel… * channels]: patches of ``x`` [batch, channels, positions…], channels being
        the fastest axis; zeros in the padding.

            x = [[[1, 2, 3]]], a kernel of 2, padding (1, 0)     windows 0 1 2:  [0, 1] [1, 2] [2, 3]

        Args:
            at: indices of windows, counted over batch and positions, the last axis the fastest.
        """
        axes = len(self.kernel)
        padded = np.pad(x, [(0, 0), (0, 0), *self.padding(x.shape[2:])])
        if not len(at) or any(n < s for n, s in zip(padded.shape[2:], self.span, strict=True)):
            return np.zeros((0, math.prod(self.kernel) * x.shape[1]), x.dtype)
        view = sliding_window_view(padded, self.span, axis=tuple(range(2, 2 + axes)))
        steps = [slice(None, None, n) for n in (*self.strides, *self.dilations)]
        view = np.moveaxis(view[:, :, *steps], 1, -1)  # [batch, positions…, kernel…, channels]
        return view[np.unravel_index(at, view.shape[: 1 + axes])].reshape(len(at), -1)

    def extra(self, have: Sequence[int]) -> list[int]:
        """Positions after the padding that the last window reaches with ``ceil``."""
        counts = self.sizes(have)
        ends = [
            (int(n) - 1) * stride + span  # type: ignore[arg-type]
            for n, stride, span in zip(counts, self.strides, self.span, strict=True)
        ]
        pads = self.padding(have)
        return [max(e - (size + sum(p)), 0) for e, size, p in zip(ends, have, pads, strict=True)]


def halves(total: int, auto_pad: str) -> tuple[int, int]:
    """Padding split between both ends; an odd one goes after (SAME_UPPER) or before (SAME_LOWER)."""
    small, large = total // 2, total - total // 2
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def window(kernel: Sequence[Any], attrs: Any) -> Window:
    """The window of a Conv or pooling node with these kernel sizes and attributes."""
    axes = len(kernel)
    pads = tuple(attrs.get("pads") or (0,) * (2 * axes))
    return Window(
        tuple(int(k) for k in kernel),
        tuple(attrs.get("strides") or (1,) * axes),
        tuple(attrs.get("dilations") or (1,) * axes),
        tuple(zip(pads[:axes], pads[axes:], strict=True)),
        str(attrs.get("auto_pad", "NOTSET")),
        bool(attrs.get("ceil_mode", 0)),
    )


def is_too_small(size: Dim) -> bool:
    """Whether no window fits: the remaining size is certainly negative."""
    return isinstance(size, int) and size < 0


def torch_pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """As torch.nn.functional.pad takes them: the last axis first."""
    return [n for pair in reversed(pads) for n in pair]
