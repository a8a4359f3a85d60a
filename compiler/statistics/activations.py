"""Statistics of a layer's input for quantization: ranges and sample rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.numerics.affine import ActivationForm, Range
from tersor.statistics.observers import MinMax, Observer, Reservoir

ROWS = 2048  # Sample rows per activation: enough to rank scales, small enough for any model.


@dataclass
class Activation:
    """Statistics of one float tensor, viewed as rows of its last axis.

    Attributes:
        channel_low, channel_high: f32[k], lowest and highest value of each channel.
        rows: f32[n, k], a sample of at most ROWS rows.
        left_out: the number of rows with NaN or infinity, if there are others.
    """

    channel_low: np.ndarray
    channel_high: np.ndarray
    rows: np.ndarray
    left_out: int = 0

    @property
    def channel_amax(self) -> np.ndarray:
        """f32[k], largest magnitude of each channel."""
        return np.asarray(np.maximum(np.abs(self.channel_low), np.abs(self.channel_high)))

    def range(
        self, scale: np.ndarray | float = 1.0, *, form: ActivationForm = ActivationForm.INT8
    ) -> Range:
        """(Lowest, highest) value of the tensor, or of each of ``rows``, with channels divided by
        ``scale``."""
        if form is ActivationForm.INT8_ROWS:
            rows = self.rows / scale
            return rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
        return float((self.channel_low / scale).min()), float((self.channel_high / scale).max())


class Activations(Observer[Activation]):
    """Leaves out rows with NaN or infinity, unless there are no others."""

    def __init__(self) -> None:
        self._finite = MinMax(), Reservoir(ROWS)
        self._other = MinMax(), Reservoir(ROWS)
        self._left_out = 0

    def _add(self, rows: np.ndarray) -> None:
        finite = np.isfinite(rows).all(axis=1)
        self._left_out += int((~finite).sum())
        for observers, of in ((self._finite, finite), (self._other, ~finite)):
            for observer in observers if of.any() else ():
                observer.update(rows[of])

    @property
    def result(self) -> Activation | None:
        for (extremes, sample), left_out in ((self._finite, self._left_out), (self._other, 0)):
            range, rows = extremes.result, sample.result
            if range is not None and rows is not None:
                return Activation(*range, rows, left_out)
        return None
