"""Streaming statistics of rows, in memory that does not grow with their number.

    update([[1, 4], [3, 2]]);  update([[5, 0]])      MinMax by channel:  low [1, 0],  high [5, 4]

Results do not depend on how the rows are divided into updates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

T = TypeVar("T")
By = Literal["tensor", "channel", "token"]
EMPTY = -1100  # Exponent of a histogram of zeros only: below that of any float64.


class Observer(ABC, Generic[T]):
    """Observes arrays [..., k], viewed as rows of their last axis."""

    def update(self, array: np.ndarray, mask: np.ndarray | None = None) -> None:
        """
        Args:
            array: [..., k], numeric.
            mask: one element per row, zero at rows to ignore (padding); None: no row is ignored. A mask of
                another size is itself ignored.
        """
        self._add(real_rows(array, mask))

    @abstractmethod
    def _add(self, rows: np.ndarray) -> None:
        """``rows``: f32[n, k]; n may be 0."""

    @property
    @abstractmethod
    def result(self) -> T | None:
        """The statistic of all rows so far; None before the first update."""


def real_rows(array: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """f32[n, k]: rows of ``array`` [..., k] where ``mask`` is not zero; all rows without a mask of that
    size."""
    rows = np.asarray(array, np.float32).reshape(-1, array.shape[-1])
    kept = None if mask is None else np.asarray(mask).reshape(-1)
    return rows if kept is None or len(kept) != len(rows) else rows[kept != 0]


def _columns(rows: np.ndarray, by: By) -> np.ndarray:
    """[n, c], the numbers to observe in each column, of rows [n, k]: all, by channel, or the range of each
    row."""
    if by == "channel":
        return rows
    if by == "tensor":
        return rows.reshape(-1, 1)
    return np.stack([rows.min(axis=1), rows.max(axis=1)], axis=1)


class MinMax(Observer[tuple[np.ndarray, np.ndarray]]):
    """(Lowest, highest), f32[c] each: c = 1 by tensor, k by channel, and 2 by token, for each row's lowest
    and highest number. NaN propagates."""

    def __init__(self, by: By = "channel") -> None:
        self.by: By = by
        self._range: tuple[np.ndarray, np.ndarray] | None = None

    def _add(self, rows: np.ndarray) -> None:
        if not rows.size:
            return
        columns = _columns(rows, self.by)
        low, high = columns.min(axis=0), columns.max(axis=0)
        if self._range is not None:
            low, high = np.minimum(self._range[0], low), np.maximum(self._range[1], high)
        self._range = low, high

    @property
    def result(self) -> tuple[np.ndarray, np.ndarray] | None:
        return self._range


@dataclass(frozen=True)
class Distribution:
    """Counts of numbers in bins of equal width.

    Attributes:
        counts: i64[c, bins]; the middle bin begins at 0.
        width: f64[c], of a bin: a power of two, at most 4 / bins times the largest magnitude.
        low, high: f64[c], the extremes.
    """

    counts: np.ndarray
    width: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def percentile(self, percent: float) -> np.ndarray:
        """f64[c], as numpy's ``inverted_cdf``, with an error of at most half a bin: a 1,024th of the largest
        magnitude with 2,048 bins. The lowest and the highest are exact. NaN for a column without numbers."""
        total = self.counts.sum(axis=1)
        rank = np.maximum(np.ceil(percent / 100 * total), 1)
        bin = (np.cumsum(self.counts, axis=1) >= rank[:, None]).argmax(axis=1)
        middle = (bin - self.counts.shape[1] // 2 + 0.5) * self.width
        value = np.clip(middle, self.low, self.high)
        value = np.where(rank >= total, self.high, np.where(rank <= 1, self.low, value))
        return np.where(total > 0, value, np.nan)


class Histogram(Observer[Distribution]):
    """A :class:`Distribution` of the same numbers as :class:`MinMax`. NaN and infinity are left out.

    The width w of bins [i w, (i + 1) w) is a power of two.  For a number beyond them w is doubled and pairs
    of bins are merged, which equals counting with the wider bins from the start:
    floor(floor(x / w) / 2) = floor(x / 2w).
    """

    def __init__(self, by: By = "tensor", bins: int = 2048) -> None:
        assert bins & (bins - 1) == 0, "a power of two"
        self.by: By = by
        self.bins = bins
        self._counts = np.zeros((0, bins), np.int64)
        self._exponent = np.zeros(0, np.int64)  # Of the width.
        self._low = self._high = np.zeros(0)

    def _add(self, rows: np.ndarray) -> None:
        if not rows.size:
            return
        columns = _columns(rows, self.by).astype(np.float64)
        c = columns.shape[1]
        if not len(self._counts):
            self._counts = np.zeros((c, self.bins), np.int64)
            self._exponent = np.full(c, EMPTY)
            self._low, self._high = np.full(c, np.inf), np.full(c, -np.inf)
        known = np.isfinite(columns)
        numbers = np.where(known, columns, 0)
        self._widen(np.abs(numbers).max(axis=0))
        self._low = np.minimum(self._low, np.where(known, columns, np.inf).min(axis=0))
        self._high = np.maximum(self._high, np.where(known, columns, -np.inf).max(axis=0))
        bin = np.floor(np.ldexp(numbers, -self._exponent)).astype(np.int64) + self.bins // 2
        flat = (bin + np.arange(c) * self.bins)[known]
        self._counts += np.bincount(flat, minlength=c * self.bins).reshape(c, self.bins)

    def _widen(self, peak: np.ndarray) -> None:
        """Widens bins to cover the magnitudes ``peak`` f64[c]."""
        _, above = np.frexp(peak)  # peak < 2^above
        needed = np.where(peak > 0, above - (self.bins.bit_length() - 2), EMPTY)
        shift = np.maximum(needed - self._exponent, 0)
        index = np.arange(self.bins) - self.bins // 2
        for i in np.flatnonzero(shift):
            to = (index >> min(int(shift[i]), 62)) + self.bins // 2
            counts, self._counts[i] = self._counts[i].copy(), 0
            np.add.at(self._counts[i], to, counts)
        self._exponent = np.maximum(self._exponent, needed)

    @property
    def result(self) -> Distribution | None:
        if not len(self._counts):
            return None
        width = np.ldexp(1.0, self._exponent)
        return Distribution(self._counts, width, self._low, self._high)


@dataclass(frozen=True)
class Sums:
    """Sums over the rows of an activation of ``k`` channels.

    Attributes:
        rows: their number.
        total: f64[k], sum of a.
        magnitude: f64[k], sum of |a|.
        squares: f64[k], sum of a^2.
        largest: f64[k], largest |a|.
        off: f64[k], the number of a that are at most 0.
    """

    rows: int
    total: np.ndarray
    magnitude: np.ndarray
    squares: np.ndarray
    largest: np.ndarray
    off: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """f64[k]."""
        return np.asarray(self.total / max(self.rows, 1))

    @property
    def variance(self) -> np.ndarray:
        """f64[k], with an error of 1e-16 of the mean square."""
        return np.asarray(np.maximum(self.squares / max(self.rows, 1) - np.square(self.mean), 0))


class Moments(Observer[Sums]):
    """First and second moments of each channel. NaN propagates."""

    def __init__(self) -> None:
        self._sums: Sums | None = None

    def _add(self, rows: np.ndarray) -> None:
        wide = rows.astype(np.float64)
        size = np.abs(wide)
        new = Sums(
            len(rows),
            wide.sum(axis=0),
            size.sum(axis=0),
            np.square(wide).sum(axis=0),
            size.max(axis=0, initial=0),
            # NaN counts neither as at most 0 nor as above it.
            np.where(np.isnan(rows), np.nan, rows <= 0).sum(axis=0),
        )
        before = self._sums
        self._sums = new if before is None else _added(before, new)

    @property
    def result(self) -> Sums | None:
        return self._sums


def _added(a: Sums, b: Sums) -> Sums:
    return Sums(
        a.rows + b.rows,
        a.total + b.total,
        a.magnitude + b.magnitude,
        a.squares + b.squares,
        np.maximum(a.largest, b.largest),
        a.off + b.off,
    )


class Reservoir(Observer[np.ndarray]):
    """f32[n, k]: a uniform sample of ``size`` rows in their order; all rows if there are no more.  Every row
    draws a random key, and the rows with the smallest keys stay (reservoir sampling, Vitter 1985), so the
    sample depends on the seed but not on how rows are divided into updates."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self._draws = np.random.default_rng(seed)
        self._seen = 0
        self._keys = np.zeros(0)
        self._places = np.zeros(0, np.int64)  # Indices of the kept rows among all.
        self._rows: np.ndarray | None = None

    def _add(self, rows: np.ndarray) -> None:
        keys, places = self._draws.random(len(rows)), self._seen + np.arange(len(rows))
        self._seen += len(rows)
        free = slice(0, self.size - len(self._keys))
        self._keys = np.append(self._keys, keys[free])
        self._places = np.append(self._places, places[free])
        # A copy: a runtime's output may be a view of a larger buffer.
        first = np.array(rows[free])
        if self._rows is None:
            self._rows = first
        elif len(first):
            self._rows = np.concatenate([self._rows, first])
        keys, places, rows = keys[free.stop :], places[free.stop :], rows[free.stop :]
        if not len(keys):
            return
        lowest = np.argpartition(np.append(self._keys, keys), self.size - 1)[: self.size]
        replaced = np.setdiff1d(np.arange(self.size), lowest)
        new = lowest[lowest >= self.size] - self.size
        self._keys[replaced], self._places[replaced] = keys[new], places[new]
        self._rows[replaced] = rows[new]

    @property
    def result(self) -> np.ndarray | None:
        return None if self._rows is None else self._rows[np.argsort(self._places)]
