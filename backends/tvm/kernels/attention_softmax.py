"""Rows of scores become chances, not yet divided: masks, the range of keys that a query sees, exponentials.

    p[j] = 2^((s[j] - max s) log2 e),     s[j] = score[j] + mask[j]        for the keys that the query sees

Without a float mask scores come as exponents of two: the factor of the queries holds log2 e. A float mask
is added to scores as they are, for the lowest float times log2 e is not finite. A key is left out by a score
of -1e30 there, which no sum of real scores comes near to, and here by -inf, for scores may be the lowest
float.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import activations, emit, rowwise, vector
from tersor.backends.tvm.kernels.attention_form import Attention
from tersor.backends.tvm.kernels.attention_products import KEYS, LARGEST
from tersor.backends.tvm.kernels.emit import Isa

TOGETHER = 4  # Rows whose softmax is taken at once, for each waits for its maximum and its sum.
LOG2_E = math.log2(math.e)
_LEFT_OUT, _SEEN = -1e30, -1e29
_LOWEST = float(np.finfo(np.float32).min)
_COARSE = (1.0, 0.69328296, 0.24221113, 0.05500874)  # 2^f to 1e-4, |f| <= 1/2


@dataclass(frozen=True)
class Span:
    """Which keys a query sees, from one on and up to another.

    Attributes:
        there: keys that count.
        offset: keys before the first query.
        causal: whether it sees none behind its position.
        left, right: how many positions before and behind its own it sees; -1: all.
    """

    there: Any
    offset: Any
    causal: bool
    left: int
    right: int

    @property
    def whole(self) -> bool:
        """Whether all queries see the same keys."""
        return not self.causal and self.left < 0 and self.right < 0

    def low(self, i: Any) -> Any:
        """The first key that query ``i`` sees."""
        if self.left < 0:
            return T.int64(0)
        return T.min(T.max(i + self.offset - self.left, T.int64(0)), self.there)

    def high(self, i: Any) -> Any:
        """Behind the last one."""
        bound = self.there
        ahead = [0] if self.causal else []
        ahead += [self.right] if self.right >= 0 else []
        for count in ahead:
            bound = T.min(bound, i + self.offset + (1 + count))
        return T.max(bound, T.int64(0)) if ahead else bound

    def panels(self, first: Any, count: int) -> tuple[Any, Any]:
        """(first, end) of the panels with keys that ``count`` queries from ``first`` on see."""
        stop = T.ceildiv(self.high(first + (count - 1)), T.int64(KEYS))
        if self.left < 0:
            return T.int64(0), stop
        start = T.floordiv(self.low(first), T.int64(KEYS))
        return T.min(start, stop), stop


@dataclass(frozen=True)
class Mask:
    """A mask as the kernel is given it; ``keys``: the size of its last axis."""

    buffer: Any
    axes: str
    sizes: tuple[Any, ...]
    is_bool: bool

    @staticmethod
    def parameter(dtype: str, axes: str) -> Mask:
        """An operand with these axes."""
        sizes = tuple(1 if axis == "1" else emit.size(f"mask_{axis}") for axis in axes)
        return Mask(emit.parameter("mask", sizes, dtype), axes, sizes, dtype == "bool")

    @property
    def keys(self) -> Any:
        """How many keys it is for."""
        return self.sizes[-1]

    def of(self, b: Any, head: Any, there: Any, wide: Any) -> HeadMask:
        """For one head. Where it is the same for all queries, it is copied once, padded to ``wide``."""
        found = HeadMask(self, b, head, None)
        if "q" in self.axes:
            return found
        row = emit.scratch((wide,), "float32")
        with T.serial(0, there) as j:
            T.buffer_store(row, found.number(0, j), [j])
        return HeadMask(self, b, head, row)


@dataclass(frozen=True)
class HeadMask:
    """The mask of a head; ``row``: its numbers where they are the same for all queries."""

    mask: Mask
    b: Any
    head: Any
    row: Any

    def _at(self, i: Any, j: Any) -> list[Any]:
        """Where it lies; an axis that turns out to be 1 is read at 0."""
        where = {"b": self.b, "h": self.head, "q": i}
        *outer, _ = zip(self.mask.axes, self.mask.sizes, strict=True)
        lead = [T.int64(0) if a == "1" else T.min(where[a], size - 1) for a, size in outer]
        return [*lead, j]

    def number(self, i: Any, j: Any) -> Any:
        """What is added to the score of query ``i`` and key ``j``."""
        found = self.mask.buffer[tuple(self._at(i, j))]
        if self.mask.is_bool:
            return T.Select(found, T.float32(0), T.float32(_LEFT_OUT))
        return found

    def line(self, i: Any) -> Callable[[Any, int], Any]:
        """Reads numbers of query ``i`` from a key on."""
        lead = [emit.bind(x) for x in self._at(i, 0)[:-1]]

        def read(j: Any, lanes: int) -> Any:
            found = emit.load(self.mask.buffer, *lead, j, lanes=lanes)
            if not self.mask.is_bool:
                return found
            zero, out = emit.number(0.0, lanes), emit.number(_LEFT_OUT, lanes)
            return T.Select(found, zero, out)

        return read


class Softmax:
    """Of the rows of one head.

    Attributes:
        factor: that queries, or else scores, are to be multiplied by.
    """

    def __init__(self, isa: Isa, spec: Attention, span: Span, mask: HeadMask | None) -> None:
        self.isa, self.spec, self.span, self.mask = isa, spec, span, mask
        # Whether scores are natural numbers, not exponents of two.
        self.natural = mask is not None and not mask.mask.is_bool
        self.out = -math.inf if self.natural else _LEFT_OUT
        self.unit = 1.0 if self.natural else LOG2_E
        self.factor = spec.scale / spec.softcap if spec.softcap else spec.scale * self.unit
        self.multiplied = spec.dtype != "bfloat16"  # Whether scores have the factor already.
        if mask is not None and mask.row is None:
            self.edge = emit.scratch((TOGETHER, KEYS), "float32")

    def rows(
        self, scores: Any, chances: Any, inverse: Any, rows: Sequence[Any], first: Any,
        start: Any, stop: Any,
    ) -> None:  # fmt: skip
        """Emits the softmax of ``rows`` of a block whose first query is ``first``, over panels of keys
        from ``start`` to ``stop``: ``scores`` become ``chances``, and ``inverse`` gets one over their
        sums."""
        most = self._scored(scores, rows, [emit.bind(first + r) for r in rows], start, stop)
        if self.natural:
            most = [emit.bind(tirx.max(T.float32(_LOWEST), one)) for one in most]
        sums = self._powers(scores, chances, rows, most, start, stop)
        for r, total, high in zip(rows, sums, most, strict=True):
            nothing = total == T.float32(0) if self.natural else high <= T.float32(_SEEN)
            T.buffer_store(inverse, T.Select(nothing, T.float32(0), T.float32(1) / total), [r])

    def _accumulators(self, rows: Sequence[Any], start: float) -> list[list[Any]]:
        lanes = self.isa.lanes
        count = 2 if lanes == 16 or len(rows) == 1 else 1  # AVX2 has 16 registers.
        made = [[emit.registers(lanes, "float32") for _ in range(count)] for _ in rows]
        for held in itertools.chain.from_iterable(made):
            emit.put(held, emit.number(start, lanes), lanes)
        return made

    def _folded(self, held: list[Any], combine: Callable[[Any, Any], Any]) -> Any:
        values = [emit.get(one, self.isa.lanes) for one in held]
        both = functools.reduce(combine, values)
        return emit.bind(emit.reduce_lanes(both, self.isa.lanes, combine))

    # -- the scores and their maximum --------------------------------------------------------------

    def _scored(
        self, scores: Any, rows: Sequence[Any], queries: Sequence[Any], start: Any, stop: Any
    ) -> list[Any]:
        """Panels that all rows see whole go without comparisons; those before and behind them with."""
        highs = self._accumulators(rows, self.out)
        lows = [emit.bind(self.span.low(i)) for i in queries]
        ends = [emit.bind(self.span.high(i)) for i in queries]
        lines = [] if self.mask is None else [self._line(i) for i in queries]

        def panels(begin: Any, end: Any, bounds: bool, edge: bool = False) -> None:
            lanes, limits = self.isa.lanes, (lows, ends) if bounds else None
            read = self._edge_lines(rows) if edge else lines
            with T.serial(begin, end) as panel:
                if edge:
                    self._copy_edge(queries, panel)
                if bounds:  # Few: not worth the code.
                    with T.serial(0, KEYS // lanes) as i:
                        self._vector(scores, rows, highs, panel * KEYS + i * lanes, 0, limits, read)
                    return
                for i in range(KEYS // lanes):
                    self._vector(scores, rows, highs, panel * KEYS + i * lanes, i, limits, read)

        if len(rows) == 1:
            edges = self.mask is not None and self.mask.row is None
            panels(start, stop, True, edge=edges)
            return [self._folded(high, tirx.max) for high in highs]
        inside = emit.bind(T.max(start, T.min(T.floordiv(ends[0], T.int64(KEYS)), stop)))
        before = start
        if self.span.left >= 0:
            whole = T.ceildiv(lows[-1], T.int64(KEYS))
            before = emit.bind(T.max(start, T.min(whole, inside)))
            panels(start, before, True)
        panels(before, inside, False)
        if self.mask is None or self.mask.row is not None:
            panels(inside, stop, True)
        else:
            # A row of a mask cannot be read in whole vectors beyond its end.
            full = T.floordiv(self.span.there, T.int64(KEYS))
            full = emit.bind(T.max(inside, T.min(full, stop)))
            if not self.span.whole:
                panels(inside, full, True)
            panels(full, stop, True, edge=True)
        return [self._folded(high, tirx.max) for high in highs]

    def _line(self, i: Any) -> Callable[[Any, int], Any]:
        assert self.mask is not None
        row = self.mask.row
        return self.mask.line(i) if row is None else lambda j, n: emit.load(row, j, lanes=n)

    def _copy_edge(self, queries: Sequence[Any], panel: Any) -> None:
        assert self.mask is not None
        last = emit.bind(self.span.there - 1)
        for n, i in enumerate(queries):
            with T.serial(0, KEYS) as j:
                number = self.mask.number(i, T.min(panel * KEYS + j, last))
                T.buffer_store(self.edge, number, [n, j])

    def _edge_lines(self, rows: Sequence[Any]) -> list[Callable[[Any, int], Any]]:
        def line(n: int) -> Callable[[Any, int], Any]:
            return lambda j, lanes: emit.load(self.edge, n, j % KEYS, lanes=lanes)

        return [line(n) for n in range(len(rows))]

    def _vector(
        self, scores: Any, rows: Sequence[Any], highs: list[list[Any]], c: Any, i: int,
        bounds: tuple[list[Any], list[Any]] | None, lines: Sequence[Callable[[Any, int], Any]],
    ) -> None:  # fmt: skip
        """A vector of keys from ``c`` on, for all rows; ``i`` tells those of a panel apart."""
        lanes = self.isa.lanes
        changed = not self.multiplied or self.spec.softcap or lines or bounds is not None
        shared = self.mask is not None and self.mask.row is not None
        once = emit.bind(lines[0](c, lanes)) if shared else None
        for n, (r, high) in enumerate(zip(rows, highs, strict=True)):
            value = emit.load(scores, r, c, lanes=lanes)
            if not self.multiplied:
                value = value * emit.number(self.factor, lanes)
            if self.spec.softcap:
                cap = emit.number(self.spec.softcap * self.unit, lanes)
                value = cap * activations.tanh(emit.bind(value))
            if lines:
                value = value + (once if shared else lines[n](c, lanes))
            if bounds is not None:
                value = self._within(emit.bind(value), c, bounds[0][n], bounds[1][n])
            value = emit.bind(value)
            if changed:
                emit.store(scores, value, r, c, lanes=lanes)
            held = high[i % len(high)]
            emit.put(held, tirx.max(emit.get(held, lanes), value), lanes)

    def _within(self, value: Any, c: Any, low: Any, end: Any) -> Any:
        lanes, out = self.isa.lanes, emit.number(self.out, self.isa.lanes)
        steps = T.ramp(T.int32(0), 1, lanes)
        until = emit.splat(emit.cast(end - c, "int32"), lanes)
        value = T.Select(steps < until, value, out)
        if self.span.left < 0:
            return value
        from_ = emit.splat(emit.cast(low - c, "int32"), lanes)
        return T.Select(steps >= from_, emit.bind(value), out)

    # -- exponentials ------------------------------------------------------------------------------

    def _powers(
        self, scores: Any, chances: Any, rows: Sequence[Any], most: list[Any], start: Any, stop: Any
    ) -> list[Any]:
        lanes, sums = self.isa.lanes, self._accumulators(rows, 0.0)
        shifts = [emit.bind(emit.splat(one, lanes)) for one in most]
        with T.serial(start, stop) as panel:
            for i in range(KEYS // lanes):
                c = panel * KEYS + i * lanes
                for r, total, shift in zip(rows, sums, shifts, strict=True):
                    y = emit.bind(emit.load(scores, r, c, lanes=lanes) - shift)
                    if self.natural:
                        y = emit.bind(y * emit.number(LOG2_E, lanes))
                    y = emit.bind(self._exp2(y))
                    held = total[i % len(total)]
                    emit.put(held, emit.get(held, lanes) + y, lanes)
                    emit.store(chances, _held(y, chances.dtype, lanes), r, c, lanes=lanes)
        return [self._folded(total, operator.add) for total in sums]

    def _exp2(self, x: Any) -> Any:
        """2^x of what is at most zero, or NaN: 2^n 2^f with n whole and |f| <= 1/2. What is rounded to
        fewer bits needs no more than a cubic."""
        lanes = self.isa.lanes
        if lanes != 16:
            # Of -127 the exponent's bits are those of zero.
            x = emit.bind(tirx.max(emit.number(-127.0, lanes), x))
        elif self.natural:
            x = emit.bind(tirx.max(emit.number(_LEFT_OUT, lanes), x))
        terms = vector.TWO_TO_F if self.spec.dtype == "float32" else _COARSE
        if lanes != 16:
            return vector.exp2(x, terms)
        n = emit.bind(T.nearbyint(x))
        return emit.times_power_of_two(vector.polynomial(emit.bind(x - n), terms), n, lanes)


def _held(chance: Any, dtype: str, lanes: int) -> Any:
    """Chances as products read them."""
    if dtype == "uint16":
        return rowwise.bfloat16(chance)
    if dtype == "int16":
        bits = chance * emit.number(LARGEST, lanes) + emit.number(vector.WHOLE, lanes)
        return emit.cast(emit.as_bits(bits, f"int32x{lanes}"), f"int16x{lanes}")
    return chance
