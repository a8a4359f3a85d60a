"""What quantization asks of the activations that a layer reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.numerics.affine import ActivationForm, Range
from tersor.statistics.observers import MinMax, Observer, Reservoir

ROWS = 2048  # Rows kept of each activation: enough to rank scales, small enough for any model.


@dataclass
class Activation:
    """What was seen of one float tensor, taken as rows of its last axis.

    Attributes:
        channel_low, channel_high: f32[k], extremes of each channel over everything seen.
        rows: f32[n, k], a sample of at most ROWS rows.
        left_out: how many rows held NaN or infinity, where others did not.
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
        """(Lowest, highest) value of the tensor, or of each of ``rows``, once its channels are divided
        by ``scale``."""
        if form is ActivationForm.INT8_ROWS:
            rows = self.rows / scale
            return rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
        return float((self.channel_low / scale).min()), float((self.channel_high / scale).max())


class Activations(Observer[Activation]):
    """Rows that hold NaN or infinity are left out where there are others."""

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
