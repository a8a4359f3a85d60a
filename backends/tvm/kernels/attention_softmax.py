"""The softmax of attention, not yet divided by the sum: masks, the range of keys of a query, exponentials.

    p[j] = 2^((s[j] - max s) log2 e),     s[j] = score[j] + mask[j]        for the keys that the query sees

Without a float mask, log2 e is part of the factor of the queries, so that scores are exponents of 2, and a
masked key has the score -1e30, which no sum of real scores comes near. A float mask is added to natural
scores, as the lowest float times log2 e overflows, and a masked key has the score -inf, as masks may contain
the lowest float.
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
from tersor.backends.tvm.kernels.attention_products import KEYS, LARGEST
from tersor.backends.tvm.kernels.attention_spec import Attention
from tersor.backends.tvm.kernels.emit import Isa

ROWS_AT_ONCE = 4  # Rows processed at once, to hide the latency of maxima and sums.
LOG2_E = math.log2(math.e)
_MASKED, _LEAST_SCORE = -1e30, -1e29  # A score at or below the latter is a masked key's.
_LOWEST = float(np.finfo(np.float32).min)
_COARSE = (1.0, 0.69328296, 0.24221113, 0.05500874)  # 2^f to 1e-4, |f| <= 1/2


@dataclass(frozen=True)
class KeyRange:
    """The range of keys that each query sees.

    Attributes:
        n_keys: the number of keys.
        offset: the number of keys before the first query.
        causal: whether a query sees no key after its position.
        left, right: how many positions before and after its own a query sees; -1: all.
    """

    n_keys: Any
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
        return T.min(T.max(i + self.offset - self.left, T.int64(0)), self.n_keys)

    def high(self, i: Any) -> Any:
        """The end of the keys that query ``i`` sees."""
        bound = self.n_keys
        ahead = [0] if self.causal else []
        ahead += [self.right] if self.right >= 0 else []
        for count in ahead:
            bound = T.min(bound, i + self.offset + (1 + count))
        return T.max(bound, T.int64(0)) if ahead else bound

    def panels(self, first: Any, count: int) -> tuple[Any, Any]:
        """(first, end) of the panels of keys that any of ``count`` queries from ``first`` on sees."""
        stop = T.ceildiv(self.high(first + (count - 1)), T.int64(KEYS))
        if self.left < 0:
            return T.int64(0), stop
        start = T.floordiv(self.low(first), T.int64(KEYS))
        return T.min(start, stop), stop


@dataclass(frozen=True)
class Mask:
    """The mask operand."""

    buffer: Any
    axes: str
    sizes: tuple[Any, ...]
    is_bool: bool

    @staticmethod
    def parameter(dtype: str, axes: str) -> Mask:
        """Declares the operand with these axes."""
        sizes = tuple(1 if axis == "1" else emit.size(f"mask_{axis}") for axis in axes)
        return Mask(emit.parameter("mask", sizes, dtype), axes, sizes, dtype == "bool")

    @property
    def keys(self) -> Any:
        """The size of its last axis."""
        return self.sizes[-1]

    def for_head(self, b: Any, head: Any, n_keys: Any, n_padded: Any) -> HeadMask:
        """The mask of a head. One that is shared by all queries is copied once, padded to ``n_padded``."""
        mask = HeadMask(self, b, head, None)
        if "q" in self.axes:
            return mask
        row = emit.scratch((n_padded,), "float32")
        with T.serial(0, n_keys) as j:
            T.buffer_store(row, mask.number(0, j), [j])
        return HeadMask(self, b, head, row)


@dataclass(frozen=True)
class HeadMask:
    """The mask of a head; ``row``: its numbers, if all queries share them."""

    mask: Mask
    b: Any
    head: Any
    row: Any

    def _at(self, i: Any, j: Any) -> list[Any]:
        """Indices into the operand; an axis that is 1 at run time is read at 0."""
        where = {"b": self.b, "h": self.head, "q": i}
        *outer, _ = zip(self.mask.axes, self.mask.sizes, strict=True)
        lead = [T.int64(0) if a == "1" else T.min(where[a], size - 1) for a, size in outer]
        return [*lead, j]

    def number(self, i: Any, j: Any) -> Any:
        """The number to add to the score of query ``i`` and key ``j``."""
        element = self.mask.buffer[tuple(self._at(i, j))]
        if self.mask.is_bool:
            return T.Select(element, T.float32(0), T.float32(_MASKED))
        return element

    def reader(self, i: Any) -> Callable[[Any, int], Any]:
        """Reads vectors of the numbers of query ``i``, from a key on."""
        lead = [emit.bind(x) for x in self._at(i, 0)[:-1]]

        def read(j: Any, lanes: int) -> Any:
            elements = emit.load(self.mask.buffer, *lead, j, lanes=lanes)
            if not self.mask.is_bool:
                return elements
            return T.Select(elements, emit.number(0.0, lanes), emit.number(_MASKED, lanes))

        return read


class Softmax:
    """The softmax of the rows of one head.

    Attributes:
        factor: by which queries are to be multiplied, unless the softmax multiplies scores (bfloat16).
    """

    def __init__(self, isa: Isa, spec: Attention, range: KeyRange, mask: HeadMask | None) -> None:
        self.isa, self.spec, self.range, self.mask = isa, spec, range, mask
        # Whether scores are exponents of e rather than of 2.
        self.natural = mask is not None and not mask.mask.is_bool
        self.masked = -math.inf if self.natural else _MASKED
        self.unit = 1.0 if self.natural else LOG2_E
        self.factor = spec.scale / spec.softcap if spec.softcap else spec.scale * self.unit
        self.scaled = spec.dtype != "bfloat16"  # Whether scores include the factor.
        if mask is not None and mask.row is None:
            self.edge = emit.scratch((ROWS_AT_ONCE, KEYS), "float32")

    def rows(
        self, scores: Any, probs: Any, inverse_sums: Any, rows: Sequence[Any], first: Any,
        start: Any, stop: Any,
    ) -> None:  # fmt: skip
        """Emits the softmax of ``rows`` of a block whose first query is ``first``, over the panels of keys
        from ``start`` to ``stop``: from ``scores`` to ``probs``, with the reciprocals of their sums in
        ``inverse_sums``."""
        maxima = self._mask_and_max(scores, rows, [emit.bind(first + r) for r in rows], start, stop)
        if self.natural:
            maxima = [emit.bind(tirx.max(T.float32(_LOWEST), maximum)) for maximum in maxima]
        sums = self._exponentiate(scores, probs, rows, maxima, start, stop)
        for r, total, high in zip(rows, sums, maxima, strict=True):
            nothing = total == T.float32(0) if self.natural else high <= T.float32(_LEAST_SCORE)
            T.buffer_store(inverse_sums, T.Select(nothing, T.float32(0), T.float32(1) / total), [r])

    def _accumulators(self, rows: Sequence[Any], start: float) -> list[list[Any]]:
        """One or two for each row."""
        lanes = self.isa.lanes
        count = 2 if lanes == 16 or len(rows) == 1 else 1  # AVX2 has 16 registers.
        registers = [[emit.register(lanes, "float32") for _ in range(count)] for _ in rows]
        for register in itertools.chain.from_iterable(registers):
            emit.put(register, emit.number(start, lanes))
        return registers

    def _folded(self, registers: list[Any], combine: Callable[[Any, Any], Any]) -> Any:
        combined = functools.reduce(combine, [emit.get(register) for register in registers])
        return emit.bind(emit.reduce_lanes(combined, self.isa.lanes, combine))

    # -- the scores and their maximum --------------------------------------------------------------

    def _mask_and_max(
        self, scores: Any, rows: Sequence[Any], queries: Sequence[Any], start: Any, stop: Any
    ) -> list[Any]:
        """Masks scores; returns the maxima of rows. Panels that all rows see whole need no comparisons of
        positions; those before and after them do."""
        highs = self._accumulators(rows, self.masked)
        lows = [emit.bind(self.range.low(i)) for i in queries]
        ends = [emit.bind(self.range.high(i)) for i in queries]
        readers = [] if self.mask is None else [self._mask_reader(i) for i in queries]

        def panels(begin: Any, end: Any, bounds: bool, edge: bool = False) -> None:
            lanes, limits = self.isa.lanes, (lows, ends) if bounds else None
            read = self._edge_readers(rows) if edge else readers
            with T.serial(begin, end) as panel:
                if edge:
                    self._copy_edge(queries, panel)
                if bounds:  # Few panels: a loop keeps the code small.
                    with T.serial(0, KEYS // lanes) as i:
                        self._mask_vector(
                            scores, rows, highs, panel * KEYS + i * lanes, 0, limits, read
                        )
                    return
                for i in range(KEYS // lanes):
                    self._mask_vector(
                        scores, rows, highs, panel * KEYS + i * lanes, i, limits, read
                    )

        if len(rows) == 1:
            edges = self.mask is not None and self.mask.row is None
            panels(start, stop, True, edge=edges)
            return [self._folded(high, tirx.max) for high in highs]
        inside = emit.bind(T.max(start, T.min(T.floordiv(ends[0], T.int64(KEYS)), stop)))
        before = start
        if self.range.left >= 0:
            whole = T.ceildiv(lows[-1], T.int64(KEYS))
            before = emit.bind(T.max(start, T.min(whole, inside)))
            panels(start, before, True)
        panels(before, inside, False)
        if self.mask is None or self.mask.row is not None:
            panels(inside, stop, True)
        else:
            # The last panel of a mask's row is copied: vectors must not be read beyond its end.
            full = T.floordiv(self.range.n_keys, T.int64(KEYS))
            full = emit.bind(T.max(inside, T.min(full, stop)))
            if not self.range.whole:
                panels(inside, full, True)
            panels(full, stop, True, edge=True)
        return [self._folded(high, tirx.max) for high in highs]

    def _mask_reader(self, i: Any) -> Callable[[Any, int], Any]:
        assert self.mask is not None
        row = self.mask.row
        return self.mask.reader(i) if row is None else lambda j, n: emit.load(row, j, lanes=n)

    def _copy_edge(self, queries: Sequence[Any], panel: Any) -> None:
        assert self.mask is not None
        last = emit.bind(self.range.n_keys - 1)
        for n, i in enumerate(queries):
            with T.serial(0, KEYS) as j:
                number = self.mask.number(i, T.min(panel * KEYS + j, last))
                T.buffer_store(self.edge, number, [n, j])

    def _edge_readers(self, rows: Sequence[Any]) -> list[Callable[[Any, int], Any]]:
        def line(n: int) -> Callable[[Any, int], Any]:
            return lambda j, lanes: emit.load(self.edge, n, j % KEYS, lanes=lanes)

        return [line(n) for n in range(len(rows))]

    def _mask_vector(
        self, scores: Any, rows: Sequence[Any], highs: list[list[Any]], c: Any, i: int,
        bounds: tuple[list[Any], list[Any]] | None, readers: Sequence[Callable[[Any, int], Any]],
    ) -> None:  # fmt: skip
        """Masks a vector of keys from ``c`` on, the ``i``-th of its panel, for all rows."""
        lanes = self.isa.lanes
        changed = not self.scaled or self.spec.softcap or readers or bounds is not None
        shared = self.mask is not None and self.mask.row is not None
        once = emit.bind(readers[0](c, lanes)) if shared else None
        for n, (r, high) in enumerate(zip(rows, highs, strict=True)):
            value = emit.load(scores, r, c, lanes=lanes)
            if not self.scaled:
                value = value * emit.number(self.factor, lanes)
            if self.spec.softcap:
                cap = emit.number(self.spec.softcap * self.unit, lanes)
                value = cap * activations.tanh(emit.bind(value))
            if readers:
                value = value + (once if shared else readers[n](c, lanes))
            if bounds is not None:
                value = self._mask_outside(emit.bind(value), c, bounds[0][n], bounds[1][n])
            value = emit.bind(value)
            if changed:
                emit.store(scores, value, r, c, lanes=lanes)
            register = high[i % len(high)]
            emit.put(register, tirx.max(emit.get(register), value))

    def _mask_outside(self, value: Any, c: Any, low: Any, end: Any) -> Any:
        lanes, masked = self.isa.lanes, emit.number(self.masked, self.isa.lanes)
        steps = T.ramp(T.int32(0), 1, lanes)
        until = emit.splat(emit.cast(end - c, "int32"), lanes)
        value = T.Select(steps < until, value, masked)
        if self.range.left < 0:
            return value
        from_ = emit.splat(emit.cast(low - c, "int32"), lanes)
        return T.Select(steps >= from_, emit.bind(value), masked)

    # -- exponentials ------------------------------------------------------------------------------

    def _exponentiate(
        self, scores: Any, probs: Any, rows: Sequence[Any], maxima: list[Any], start: Any, stop: Any
    ) -> list[Any]:
        lanes, sums = self.isa.lanes, self._accumulators(rows, 0.0)
        shifts = [emit.bind(emit.splat(maximum, lanes)) for maximum in maxima]
        with T.serial(start, stop) as panel:
            for i in range(KEYS // lanes):
                c = panel * KEYS + i * lanes
                for r, total, shift in zip(rows, sums, shifts, strict=True):
                    y = emit.bind(emit.load(scores, r, c, lanes=lanes) - shift)
                    if self.natural:
                        y = emit.bind(y * emit.number(LOG2_E, lanes))
                    y = emit.bind(self._exp2(y))
                    register = total[i % len(total)]
                    emit.put(register, emit.get(register) + y)
                    emit.store(probs, _stored(y, probs.dtype, lanes), r, c, lanes=lanes)
        return [self._folded(total, operator.add) for total in sums]

    def _exp2(self, x: Any) -> Any:
        """2^x for x <= 0, or NaN: 2^n 2^f with an integer n and |f| <= 1/2. A cubic is enough for results
        that are rounded to 16 bits."""
        lanes = self.isa.lanes
        if lanes != 16:
            # 2^-127 has the exponent bits of zero.
            x = emit.bind(tirx.max(emit.number(-127.0, lanes), x))
        elif self.natural:
            x = emit.bind(tirx.max(emit.number(_MASKED, lanes), x))
        terms = vector.TWO_TO_F if self.spec.dtype == "float32" else _COARSE
        if lanes != 16:
            return vector.exp2(x, terms)
        n = emit.bind(T.nearbyint(x))
        return emit.times_power_of_two(vector.polynomial(emit.bind(x - n), terms), n, lanes)


def _stored(probs: Any, dtype: str, lanes: int) -> Any:
    """Probabilities in the dtype of products."""
    if dtype == "uint16":
        return rowwise.to_bfloat16(probs)
    if dtype == "int16":
        bits = probs * emit.number(LARGEST, lanes) + emit.number(vector.WHOLE, lanes)
        return emit.cast(emit.as_bits(bits, f"int32x{lanes}"), f"int16x{lanes}")
    return probs
