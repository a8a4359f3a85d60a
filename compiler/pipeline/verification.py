"""Verification of a pass's claims, by the pipeline after each pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from tersor.errors import InvalidGraph, PassFailed
from tersor.ir import (
    DType,
    Graph,
    TensorType,
    UnknownType,
    ValueType,
    parse,
    print_graph,
    print_node,
    verify,
    weights_of,
)
from tersor.ir.verify import Checked
from tersor.pipeline.report import PassReport
from tersor.pipeline.rewriting import Context, Evaluate, Feeds, Pass

Signature = tuple[list[tuple[str, ValueType]], list[tuple[str, ValueType]]]
LEVELS = ("none", "types", "text", "values")


@dataclass
class Verification:
    """Checks one pass after another.

    Attributes:
        level: one of ``LEVELS``; each includes those before it.
        feeds: inputs for the ``values`` level.
        evaluate: runs a graph on one of them.
        context: makes a context with a limited number of rewrites, to rerun a pass.
    """

    level: str
    feeds: Feeds
    evaluate: Evaluate | None
    context: Callable[[PassReport, int], Context]
    _checked: Checked = field(default_factory=Checked, init=False)
    _verified: int = field(default=-1, init=False)  # The graph's change count when last verified.

    def check(
        self, step: Pass, signature: Signature, before: Graph, after: Graph, report: PassReport
    ) -> None:
        """Checks ``after``, the result of ``step`` on ``before``, whose signature was ``signature``.

        Raises:
            PassFailed: a claim does not hold.
        """
        if self.level == "none":
            return
        self._check_rules(step, after)
        if step.keeps.signature:
            _verify_signature(step, signature, after)
        if self.level == "values" and step.keeps.values is not None:
            self._verify_values(step, before, after, report)

    def _check_rules(self, step: Pass, after: Graph) -> None:
        if self.level == "types" and after.changes == self._verified:
            return
        try:
            verify(after, checked=self._checked)
            if self.level in ("text", "values"):
                _verify_text(after)
        except InvalidGraph as error:
            raise PassFailed(f"after {step.label}: {error}") from error
        self._verified = after.changes

    def _verify_values(self, step: Pass, before: Graph, after: Graph, report: PassReport) -> None:
        # A pass may have failed to count its rewrites.
        if report.rewrites == 0 and print_graph(before) == print_graph(after):
            return
        # A copy, since the evaluator may cache a graph's session, and this graph changes later.
        error, allowed, worst = self._difference(before, after.copy(), step)
        report.max_error = worst
        if error <= allowed:
            return
        guilty = self._bisect(step, before, report.rewrites)
        raise PassFailed(
            f"{step.label} claims to keep values, but the outputs differ by {error:.3g} "
            f"(allowed {allowed:.3g}); {guilty}"
        )

    def _difference(self, before: Graph, after: Graph, step: Pass) -> tuple[float, float, float]:
        """(Absolute difference, tolerance) of the output that exceeds its tolerance most, and the largest
        difference of all outputs."""
        assert self.evaluate is not None
        worst, largest = (0.0, 0.0), 0.0
        for feed in self.feeds:
            expected, got = self.evaluate(before, feed), self.evaluate(after, feed)
            for name in expected:
                error, allowed = _compare(expected[name], got[name], step.keeps.values or 0.0)
                largest = max(largest, error)
                if error - allowed > worst[0] - worst[1]:
                    worst = (error, allowed)
        return *worst, largest

    def _bisect(self, step: Pass, before: Graph, rewrites: int) -> str:
        """The first rewrite after which the outputs differ, by rerunning the pass with fewer rewrites."""
        if rewrites == 0:
            return "it counts no rewrites"
        low, high = 0, rewrites
        while high - low > 1:
            middle = (low + high) // 2
            error, allowed, _ = self._difference(before, self._partial(step, before, middle), step)
            low, high = (low, middle) if error > allowed else (middle, high)
        good, bad = self._partial(step, before, high - 1), self._partial(step, before, high)
        return f"rewrite {high} of {rewrites} is the first that does:\n{_changed_lines(good, bad)}"

    def _partial(self, step: Pass, before: Graph, rewrites: int) -> Graph:
        graph = before.copy()
        step.run(graph, self.context(PassReport(step.label), rewrites))
        return graph


def _compare(expected: np.ndarray, got: np.ndarray, rtol: float) -> tuple[float, float]:
    """(Largest absolute difference, tolerance). A number may not become NaN. A NaN in the reference may
    become a number: fusions may define what was undefined."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return float("inf"), 0.0
    if expected.dtype.kind not in "fcV":
        return (0.0 if np.array_equal(expected, got) else float("inf")), 0.0
    a, b = (
        np.asarray(x, np.complex128 if x.dtype.kind == "c" else np.float64) for x in (expected, got)
    )
    with np.errstate(invalid="ignore"):
        difference = np.where((a == b) | np.isnan(a), 0.0, np.abs(a - b))
    if np.isnan(difference).any():
        return float("inf"), 0.0
    finite = np.abs(a[np.isfinite(a)])
    scale = max(1.0, float(finite.max())) if finite.size else 1.0
    return float(difference.max(initial=0.0)), rtol * scale * _coarseness(expected.dtype)


def _coarseness(dtype: np.dtype) -> float:
    """How much coarser than f32 a float dtype is; at least 1."""
    name = DType.of(dtype)
    if not name.is_float:
        return 1.0
    return max(1.0, _epsilon(dtype) / _epsilon(np.dtype(np.float32)))


def _epsilon(dtype: np.dtype) -> float:
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def _verify_text(graph: Graph) -> None:
    text = print_graph(graph)
    again = print_graph(parse(text, graph.table, weights_of(graph)))
    if again != text:
        raise InvalidGraph("the printed graph does not parse back to the same graph")


def _verify_signature(step: Pass, before: Signature, after: Graph) -> None:
    for kind, old, new in zip(("inputs", "outputs"), before, after.signature(), strict=True):
        names, now = [n for n, _ in old], [n for n, _ in new]
        if names != now:
            raise PassFailed(
                f"{step.label} claims to keep the signature, but its {kind} were "
                f"{', '.join(names)} and are {', '.join(now)}"
            )
        for (name, was), (_, type) in zip(old, new, strict=True):
            if _differs(was, type, step.keeps.shapes):
                raise PassFailed(
                    f"{step.label} claims to keep the signature, but {name} was {was} and is {type}"
                )


def _differs(was: ValueType, now: ValueType, shapes: bool) -> bool:
    """Whether two types cannot be one; without ``shapes``, whether their element types differ."""
    if isinstance(was, TensorType) and isinstance(now, TensorType):
        return not was.accepts(now) if shapes else was.dtype is not now.dtype
    return type(was) is not type(now) and UnknownType() not in (was, now)


def _changed_lines(before: Graph, after: Graph) -> str:
    """Lines of text that only one of the graphs has, as a diff."""
    old, new = ([print_node(n) for n in g.walk()] for g in (before, after))
    gone = [f"- {line}" for line in old if line not in set(new)]
    come = [f"+ {line}" for line in new if line not in set(old)]
    return "\n".join([*gone, *come])
