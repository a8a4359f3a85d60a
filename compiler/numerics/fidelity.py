"""How far outputs are from those of the model that was compressed, output by output.

    float:            cosines of rows, and  |a - b| / |a|  over everything that was compared
    integer, boolean: the share of elements that agree
    both in one:      kept = min(mean cosine, 1 - (|a - b| / |a|)^2 / 2),  or the share that agrees

For small errors the two float terms are equal; the second counts wrong magnitudes too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tersor.plain import EXACT

Outputs = Mapping[str, np.ndarray]
# Rows that are this much shorter than the others in both have no direction to speak of.
_SHORT = 1e-3


@dataclass(frozen=True)
class OutputFidelity:
    """One output over all feeds. What could not be told is None.

    Attributes:
        name: the output's.
        elements: how many were compared.
        agreement: the share of equal elements, of integers, booleans and strings.
        mean_cosine, min_cosine: of the rows of the last axis, of floats; of samples where there are more
            than three axes. Rows that hold NaN or infinity are left out.
        rows: how many there were.
        relative_error: the root of the sum of squared differences, by that of the reference's squares.
        max_error: the largest absolute difference.
        misplaced: elements that are finite in one only, or infinities that differ.
        broken: those of them that are finite in the reference.
        reshaped: arrays that had another shape, or were not there.
        decides: where these are no outputs but scores: what is decided by them (``ArgMax of labels``).
        counts: False where scores tell in its place what is kept: it rounds them, or has as many elements
            as were chosen by them.
    """

    name: str
    elements: int = 0
    agreement: float | None = None
    mean_cosine: float | None = None
    min_cosine: float | None = None
    rows: int = 0
    relative_error: float | None = None
    max_error: float | None = None
    misplaced: int = 0
    broken: int = 0
    reshaped: int = 0
    decides: str = ""
    counts: bool = True
    __pydantic_config__ = EXACT

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.name} (before {self.decides})" if self.decides else self.name

    @property
    def kept(self) -> float | None:
        """1: everything; 0: nothing, or something finite became NaN or infinite; None: not known."""
        if self.broken:
            return 0.0
        if self.agreement is not None:
            return self.agreement
        if self.relative_error is None:
            return None
        by_error = 1 - min(self.relative_error, 2.0) ** 2 / 2
        return max(min(by_error, 1.0 if self.mean_cosine is None else self.mean_cosine), 0.0)


@dataclass(frozen=True)
class Fidelity:
    """Of all outputs, the worst first.

    Attributes:
        on: what they were compared on: ``calibration inputs``, ``made-up inputs``.
        samples: how many of these, where that is known.
    """

    outputs: tuple[OutputFidelity, ...] = ()
    on: str = ""
    samples: int | None = None
    __pydantic_config__ = EXACT

    @staticmethod
    def of(outputs: Iterable[OutputFidelity], on: str = "", samples: int | None = None) -> Fidelity:
        """In order: the worst first, what is unknown last."""

        def key(one: OutputFidelity) -> tuple[bool, float]:
            return one.kept is None, one.kept or 0.0

        return Fidelity(tuple(sorted(outputs, key=key)), on, samples)

    @property
    def worst(self) -> OutputFidelity | None:
        """The output that lost most; None where nothing is known of any."""
        return next((o for o in self.outputs if o.counts and o.kept is not None), None)

    @property
    def kept(self) -> float | None:
        """Of the worst output."""
        return None if self.worst is None else self.worst.kept

    @property
    def mean_cosine(self) -> float | None:
        """Over the rows of all float outputs, scores apart."""
        told = [o for o in self._floats if o.mean_cosine is not None]
        rows = sum(o.rows for o in told)
        return sum((o.mean_cosine or 0.0) * o.rows for o in told) / rows if rows else None

    @property
    def min_cosine(self) -> float | None:
        """Over the rows of all float outputs, scores apart."""
        return min((o.min_cosine for o in self._floats if o.min_cosine is not None), default=None)

    @property
    def relative_error(self) -> float | None:
        """The largest of an output, scores apart."""
        told = [o.relative_error for o in self._floats if o.relative_error is not None]
        return max(told, default=None)

    @property
    def max_error(self) -> float | None:
        """The largest of an output, scores apart; infinite where NaN or infinity are elsewhere."""
        if any(o.misplaced for o in self._floats):
            return float("inf")
        return max((o.max_error for o in self._floats if o.max_error is not None), default=None)

    @property
    def agreement(self) -> float | None:
        """The smallest of an output that is no float."""
        return min((o.agreement for o in self.outputs if o.agreement is not None), default=None)

    @property
    def _floats(self) -> list[OutputFidelity]:
        return [o for o in self.outputs if o.agreement is None and not o.decides]


def fidelity(reference: Sequence[Outputs], got: Sequence[Outputs], on: str = "") -> Fidelity:
    """All outputs of all feeds."""
    tally = Tally()
    for expected, found in zip(reference, got, strict=True):
        tally.add(expected, found)
    return Fidelity.of(tally.outputs(), on)


@dataclass
class Tally:
    """What is known of outputs so far, feed by feed.

    Attributes:
        unordered: by output, the axis along which the order of elements says nothing (the indices of
            TopK).
    """

    unordered: Mapping[str, int] = field(default_factory=dict)
    _found: dict[str, _Sums] = field(default_factory=dict, init=False)

    def add(self, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """One feed: arrays, or lists of them, by output."""
        for name, value in expected.items():
            sums = self._found.setdefault(name, _Sums(self.unordered.get(name)))
            mine, others = _arrays(value), _arrays(found.get(name))
            for i, array in enumerate(mine):
                sums.add(array, others[i] if i < len(others) else None)

    def outputs(self) -> list[OutputFidelity]:
        """In the order in which they came."""
        return [sums.told(name) for name, sums in self._found.items()]


@dataclass
class _Sums:
    """Of one output."""

    unordered: int | None = None
    exact: bool = False
    elements: int = 0
    equal: float = 0.0
    misplaced: int = 0
    broken: int = 0
    reshaped: int = 0
    missed: float = 0.0
    whole: float = 0.0
    largest: float = 0.0
    cosines: float = 0.0
    lowest: float = 1.0
    rows: int = 0

    def add(self, a: np.ndarray, b: np.ndarray | None) -> None:
        """An array of another shape, or none at all, has nothing of it."""
        self.elements += a.size
        self.exact = a.dtype.kind not in "fcV"
        if not a.size and b is not None and a.shape == b.shape:
            return
        if b is not None and (a.shape != b.shape or (b.dtype.kind in "fcV") is self.exact):
            b = None
        self.reshaped += b is None
        if self.exact:
            self.equal += 0.0 if b is None else _equal(a, b, self.unordered)
            return
        x = _wide(a)
        y = np.zeros_like(x) if b is None else _wide(b)
        self._add_numbers(x, y)

    def _add_numbers(self, a: np.ndarray, b: np.ndarray) -> None:
        finite = np.isfinite(a) & np.isfinite(b)
        same = finite | (a == b) | (np.isnan(a) & np.isnan(b))
        self.misplaced += int((~same).sum())
        self.broken += int((np.isfinite(a) & ~np.isfinite(b)).sum())
        difference = (
            np.where(finite, a - np.where(finite, b, 0), 0.0) if not finite.all() else a - b
        )
        self.missed += float(np.square(difference).sum())
        self.whole += float(np.square(np.where(finite, a, 0.0)).sum())
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        cosines = _cosines(_rows(a), _rows(b))
        if len(cosines):
            self.cosines += float(cosines.sum())
            self.lowest = min(self.lowest, float(cosines.min()))
            self.rows += len(cosines)

    def told(self, name: str) -> OutputFidelity:
        found = OutputFidelity(
            name,
            self.elements,
            misplaced=self.misplaced,
            broken=self.broken,
            reshaped=self.reshaped,
        )
        if self.exact:
            share = self.equal / self.elements if self.elements else None
            return replace(found, agreement=share)
        if self.elements - self.misplaced <= 0:
            return found
        # Of a reference that is all zeros, no difference is a share.
        error = (self.missed / self.whole) ** 0.5 if self.whole > 0 else float(self.missed > 0)
        return replace(
            found,
            mean_cosine=self.cosines / self.rows if self.rows else None,
            min_cosine=self.lowest if self.rows else None,
            rows=self.rows,
            relative_error=error,
            max_error=self.largest,
        )


def _arrays(value: Any) -> list[np.ndarray]:
    """What an output holds: an array, or those of a sequence; nothing of what is neither."""
    if isinstance(value, list):
        return [array for one in value for array in _arrays(one)]
    return [] if value is None or isinstance(value, dict) else [np.asarray(value)]


def _wide(x: np.ndarray) -> np.ndarray:
    """As float64; a complex number as two."""
    if x.dtype.kind == "c":
        x = np.stack([x.real, x.imag], axis=-1)
    return x.astype(np.float64)


def _rows(x: np.ndarray) -> np.ndarray:
    """Rows of the last axis; of maps, a sample each; of single numbers, all of them in one."""
    if x.ndim > 3:
        return x.reshape(len(x), -1)
    return x.reshape(-1, x.shape[-1]) if x.ndim > 1 and x.shape[-1] > 1 else x.reshape(1, -1)


def _equal(a: np.ndarray, b: np.ndarray, unordered: int | None) -> float:
    """How many elements agree; of an axis without order, how many are there at any place of it."""
    if unordered is None or a.dtype.kind not in "iu":
        return float((a == b).sum())
    x, y = (np.moveaxis(v, unordered, -1).astype(np.int64) for v in (a, b))
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    row = np.arange(x[..., 0].size).reshape(*x.shape[:-1], 1) * (int(high) - int(low) + 1)
    return float(np.isin(x - low + row, y - low + row).sum())


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    usable = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    a, b = a[usable], b[usable]
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    short = _SHORT * float(np.sqrt(np.square(lengths[0]).mean())) if len(a) else 0.0
    told = (lengths[0] > short) | (lengths[1] > short)
    a, b, norms = a[told], b[told], (lengths[0] * lengths[1])[told]
    same = (a == b).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(same, 1.0, (a * b).sum(axis=1) / norms)
    return np.asarray(np.nan_to_num(np.clip(cosines, -1.0, 1.0), nan=0.0))
