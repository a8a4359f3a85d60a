"""How close the outputs are to those of the uncompressed model, output by output.

    float:            cosines of rows, and  |a - b| / |a|  over all elements
    integer, boolean: the share of equal elements
    in one number:    kept = min(mean cosine, 1 - (|a - b| / |a|)^2 / 2),  or the share of equal elements

For small errors the two float terms are equal; the second also penalizes wrong magnitudes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from tersor.plain import EXACT

Outputs = Mapping[str, np.ndarray]
# Rows shorter than this share of the typical length, in both, have no meaningful direction.
_SHORT = 1e-3


@dataclass(frozen=True)
class OutputFidelity:
    """One output over all feeds. Unknown figures are None.

    Attributes:
        name: the output's name.
        elements: the number of elements compared.
        agreement: of integers, booleans and strings: the share of equal elements.
        mean_cosine, min_cosine: of floats: the cosines of rows of the last axis, or of samples if there
            are more than three axes, without rows that contain NaN or infinity.
        rows: the number of such rows.
        relative_error: |a - b| / |a|, a being the reference.
        max_error: the largest absolute difference.
        misplaced: elements that are finite in only one of the two, or different infinities.
        broken: those of them that are finite in the reference.
        reshaped: arrays that are missing or have another shape.
        decides: if these are scores and not an output: what they decide (``ArgMax of labels``).
        counts: False if scores are judged in its place, because it rounds them or its number of elements
            depends on them.
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
        """Its name in messages."""
        return f"{self.name} (before {self.decides})" if self.decides else self.name

    @property
    def kept(self) -> float | None:
        """1: everything; 0: nothing, or a finite element became NaN or infinite; None: unknown."""
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
    """The fidelity of all outputs, the worst first.

    Attributes:
        on: the inputs of the comparison: ``calibration inputs``, ``made-up inputs``.
        samples: how many of these, if known.
    """

    outputs: tuple[OutputFidelity, ...] = ()
    on: str = ""
    samples: int | None = None
    __pydantic_config__ = EXACT

    @staticmethod
    def of(outputs: Iterable[OutputFidelity], on: str = "", samples: int | None = None) -> Fidelity:
        """Sorts the outputs: the worst first, unknown ones last."""

        def key(one: OutputFidelity) -> tuple[bool, float]:
            return one.kept is None, one.kept or 0.0

        return Fidelity(tuple(sorted(outputs, key=key)), on, samples)

    @property
    def worst(self) -> OutputFidelity | None:
        """The output with the lowest fidelity; None if that of none is known."""
        return next((o for o in self.outputs if o.counts and o.kept is not None), None)

    @property
    def kept(self) -> float | None:
        """That of the worst output."""
        return None if self.worst is None else self.worst.kept

    @property
    def mean_cosine(self) -> float | None:
        """Over the rows of all float outputs except scores."""
        rows = sum(o.rows for o in self._floats)
        return sum((o.mean_cosine or 0.0) * o.rows for o in self._floats) / rows if rows else None

    @property
    def min_cosine(self) -> float | None:
        """Over the rows of all float outputs except scores."""
        return min((o.min_cosine for o in self._floats if o.min_cosine is not None), default=None)

    @property
    def relative_error(self) -> float | None:
        """The largest of any float output except scores."""
        known = (o.relative_error for o in self._floats if o.relative_error is not None)
        return max(known, default=None)

    @property
    def max_error(self) -> float | None:
        """The largest of any float output except scores; infinite if one has ``misplaced`` elements."""
        if any(o.misplaced for o in self._floats):
            return float("inf")
        return max((o.max_error for o in self._floats if o.max_error is not None), default=None)

    @property
    def agreement(self) -> float | None:
        """The smallest of any output that is not float."""
        return min((o.agreement for o in self.outputs if o.agreement is not None), default=None)

    @property
    def _floats(self) -> list[OutputFidelity]:
        return [o for o in self.outputs if o.agreement is None and not o.decides]


def fidelity(reference: Sequence[Outputs], got: Sequence[Outputs], on: str = "") -> Fidelity:
    """The fidelity of outputs, one mapping per feed."""
    tally = Tally()
    for expected, actual in zip(reference, got, strict=True):
        tally.add(expected, actual)
    return Fidelity.of(tally.outputs(), on)


@dataclass
class Tally:
    """Accumulates fidelity feed by feed.

    Attributes:
        unordered: by output, the axis along which the order of elements is arbitrary (the indices of an
            unsorted TopK).
    """

    unordered: Mapping[str, int] = field(default_factory=dict)
    _sums: dict[str, _Sums] = field(default_factory=dict, init=False)

    def add(self, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
        """Adds one feed: an array, or a list of them, per output."""
        for name, value in expected.items():
            sums = self._sums.setdefault(name, _Sums(self.unordered.get(name)))
            pairs = zip_longest(_arrays(value), _arrays(actual.get(name)))
            for a, b in pairs:
                if a is not None:
                    sums.add(a, b)

    def outputs(self) -> list[OutputFidelity]:
        """In the order of first appearance."""
        return [sums.result(name) for name, sums in self._sums.items()]


@dataclass
class _Sums:
    """Running sums over one output."""

    unordered: int | None = None
    exact: bool = False
    elements: int = 0
    equal: float = 0.0
    misplaced: int = 0
    broken: int = 0
    reshaped: int = 0
    error_squares: float = 0.0
    squares: float = 0.0
    largest: float = 0.0
    cosines: float = 0.0
    lowest: float = 1.0
    rows: int = 0

    def add(self, a: np.ndarray, b: np.ndarray | None) -> None:
        """A missing array or one of another shape counts as a total loss."""
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
        self._add_floats(x, y)

    def _add_floats(self, a: np.ndarray, b: np.ndarray) -> None:
        finite = np.isfinite(a) & np.isfinite(b)
        same = finite | (a == b) | (np.isnan(a) & np.isnan(b))
        self.misplaced += int((~same).sum())
        self.broken += int((np.isfinite(a) & ~np.isfinite(b)).sum())
        difference = np.subtract(a, b, out=np.zeros_like(a), where=finite)
        self.error_squares += float(np.square(difference).sum())
        self.squares += float(np.square(np.where(finite, a, 0.0)).sum())
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        cosines = _cosines(_rows(a), _rows(b))
        if len(cosines):
            self.cosines += float(cosines.sum())
            self.lowest = min(self.lowest, float(cosines.min()))
            self.rows += len(cosines)

    def result(self, name: str) -> OutputFidelity:
        counts = OutputFidelity(
            name,
            self.elements,
            misplaced=self.misplaced,
            broken=self.broken,
            reshaped=self.reshaped,
        )
        if self.exact:
            share = self.equal / self.elements if self.elements else None
            return replace(counts, agreement=share)
        if self.elements - self.misplaced <= 0:
            return counts
        # Nothing can be relative to a reference of zeros: any difference is total.
        error = (
            (self.error_squares / self.squares) ** 0.5
            if self.squares > 0
            else float(self.error_squares > 0)
        )
        return replace(
            counts,
            mean_cosine=self.cosines / self.rows if self.rows else None,
            min_cosine=self.lowest if self.rows else None,
            rows=self.rows,
            relative_error=error,
            max_error=self.largest,
        )


def _arrays(value: Any) -> list[np.ndarray]:
    """The arrays of an output: one, or those of a sequence; none of a map or None."""
    if isinstance(value, list):
        return [array for one in value for array in _arrays(one)]
    return [] if value is None or isinstance(value, dict) else [np.asarray(value)]


def _wide(x: np.ndarray) -> np.ndarray:
    """As float64; a complex number as two floats."""
    if x.dtype.kind == "c":
        x = np.stack([x.real, x.imag], axis=-1)
    return x.astype(np.float64)


def _rows(x: np.ndarray) -> np.ndarray:
    """Rows of the last axis; samples if there are more than three axes; everything if rows are scalars."""
    if x.ndim > 3:
        return x.reshape(len(x), -1)
    return x.reshape(-1, x.shape[-1]) if x.ndim > 1 and x.shape[-1] > 1 else x.reshape(1, -1)


def _equal(a: np.ndarray, b: np.ndarray, unordered: int | None) -> float:
    """The number of equal elements; along an unordered axis, of those that occur anywhere in it."""
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
    long = (lengths[0] > short) | (lengths[1] > short)
    a, b, norms = a[long], b[long], (lengths[0] * lengths[1])[long]
    same = (a == b).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(same, 1.0, (a * b).sum(axis=1) / norms)
    return np.asarray(np.nan_to_num(np.clip(cosines, -1.0, 1.0), nan=0.0))
