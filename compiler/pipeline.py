"""Passes, and the pipeline that runs, verifies, times and reports them.

A pass is a frozen dataclass whose fields are its options.  Most only write ``visit``:

    @dataclass(frozen=True)
    class EliminateIdentity(Pass):
        '''Identity(x) = x'''

        keeps = EXACT

        def visit(self, graph: Graph, node: Node) -> Rewrite:
            return node.inputs[0] if node.op == "Identity" else None
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from tersor.errors import InvalidGraph, InvalidOption, PassFailed
from tersor.ir import (
    DType,
    Graph,
    Node,
    TensorType,
    UnknownType,
    Value,
    ValueType,
    parse,
    print_graph,
    print_node,
    verify,
    weights_of,
)
from tersor.report import PassReport

Feeds = Sequence[Mapping[str, np.ndarray]]
Evaluate = Callable[[Graph, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
Rewrite = Value | Sequence[Value] | bool | None
Signature = tuple[list[tuple[str, ValueType]], list[tuple[str, ValueType]]]
MAX_SWEEPS = 100
LEVELS = ("none", "types", "text", "values")


class Skip(Exception):
    """Raised in ``visit`` where the pattern is met but the rule does not apply; says why."""


@dataclass(frozen=True)
class Keeps:
    """What a pass promises. ``values``: outputs agree within that, relative to the output's largest
    magnitude, in f32; narrower dtypes are as much coarser as they are. 0: exactly; None: lossy."""

    signature: bool = True
    shapes: bool = True
    values: float | None = None


EXACT = Keeps(values=0.0)
ROUNDING = Keeps(values=1e-5)  # Reordered float arithmetic: some ulps of the largest output.
LOSSY = Keeps(values=None)


@dataclass
class Context:
    """What the pipeline gives a pass.

    Attributes:
        report: where the pass notes its skips and costs.
        target: hardware facts (see ``tersor.target``), None where no target is known yet.
        calibration: batches of inputs by name; empty where none were given.
        evaluate: runs a graph on one batch.
        progress: called with (done, total, what).
        rewrites_left: rewrites the pass may still make; for bisection.
    """

    report: PassReport
    target: Any = None
    calibration: Feeds = ()
    evaluate: Evaluate | None = None
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    rewrites_left: int | None = None

    def may_rewrite(self) -> bool:
        return self.rewrites_left is None or self.rewrites_left > 0

    def rewrote(self) -> None:
        """Counts one rewrite."""
        self.report.rewrites += 1
        if self.rewrites_left is not None:
            self.rewrites_left -= 1

    def skip(self, node: Node, reason: str) -> None:
        entry = (node.label, reason)
        if entry not in self.report.skips:
            self.report.skips.append(entry)


@dataclass(frozen=True)
class Pass:
    """Base of all passes."""

    keeps: ClassVar[Keeps] = EXACT
    needs: ClassVar[frozenset[str]] = frozenset()  # "calibration", "evaluate", "target"

    @classmethod
    def pass_name(cls) -> str:
        """``FuseLayerNorm`` -> ``fuse-layer-norm``."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()

    @property
    def label(self) -> str:
        """Name, with the options that differ from their defaults."""
        given = [
            f"{f.name}={getattr(self, f.name)}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return self.pass_name() + (f"{{{','.join(given)}}}" if given else "")

    def run(self, graph: Graph, context: Context) -> None:
        """Sweeps ``visit`` over all nodes, subgraphs included, until nothing changes."""
        for _ in range(MAX_SWEEPS):
            if not self._sweep(graph, context):
                return
        raise PassFailed(f"{self.label} still changes the graph after {MAX_SWEEPS} sweeps")

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        """Rewrites at ``node``, a node of ``graph``. Nodes that it emits go before ``node``.

        Returns:
            What replaces the outputs (the node, and what fed only it, are then erased), True for a
            change in place, None or False where the rule does not match.

        Raises:
            Skip: the pattern is met but the rule does not apply.
        """
        raise TypeError(f"{type(self).__name__} defines neither run nor visit")

    def _sweep(self, graph: Graph, context: Context) -> bool:
        changed = False
        for node in graph.walk():
            owner = node.graph
            if owner is None:
                continue
            if not context.may_rewrite():
                return False
            try:
                with owner.at(node):
                    result = self.visit(owner, node)
            except Skip as reason:
                context.skip(node, str(reason))
                continue
            if result is None or result is False:
                continue
            context.rewrote()
            changed = True
            if result is not True:
                replace_node(node, [result] if isinstance(result, Value) else result)
        return changed


def replace_node(node: Node, values: Sequence[Value]) -> None:
    """Readers of the node's outputs read ``values`` (as many, or fewer if the rest is unread); the
    node is erased, and what fed only it."""
    graph = node.graph
    assert graph is not None
    for old, new in zip(node.outputs, values, strict=False):
        graph.replace(old, new)
    erase_dead([node])


def erase_dead(nodes: Iterable[Node]) -> int:
    """Erases those of ``nodes`` that nothing reads, then what fed only them; how many went."""
    work, erased = list(nodes), 0
    while work:
        node = work.pop()
        if node.graph is None or any(v.uses for v in node.outputs):
            continue
        feeding = [v for v in _reads(node) if v is not None]
        node.graph.erase(node)
        erased += 1
        for value in feeding:
            if value.producer is not None:
                work.append(value.producer)
            elif value.is_constant and not value.uses and value.name in value.graph.constants:
                value.graph.erase_constant(value)
    return erased


def _reads(node: Node) -> list[Value | None]:
    """Operands of a node and of everything in its subgraphs."""
    found = list(node.inputs)
    for sub in node.subgraphs:
        for inner in sub.all_graphs():
            found += inner.outputs
            for reader in inner.nodes:
                found += reader.inputs
    return found


@dataclass
class Pipeline:
    """A list of passes, run in order on a copy of the graph.

    Attributes:
        passes: in order.
        level: how much is verified after each pass: ``none``; ``types``: structure and types;
            ``text``: also that the printed graph reads back the same; ``values``: also every claim to
            keep values, on ``feeds``.
        feeds: inputs for the ``values`` level.
        evaluate: runs a graph on inputs, for the ``values`` level and for passes that need it.
        progress: called with (done, total, what).
    """

    passes: Sequence[Pass]
    level: str = "types"
    feeds: Feeds = ()
    evaluate: Evaluate | None = None
    target: Any = None
    calibration: Feeds = ()
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    reports: list[PassReport] = field(default_factory=list)

    def run(self, graph: Graph) -> Graph:
        """A rewritten copy of ``graph``; ``reports`` gains an entry for each pass.

        Raises:
            InvalidOption: a pass needs something that was not given.
            PassFailed: a pass broke a claim; names the pass, the node, and where it can, the rewrite.
        """
        self._check()
        current = graph.copy()
        for i, step in enumerate(self.passes):
            self.progress(i, len(self.passes), step.label)
            # Only a failure needs the graph as it was before; claims of values are checked on it.
            before = current.copy() if self.level == "values" else current
            signature = current.signature()
            report = PassReport(step.label)
            start = time.perf_counter()
            step.run(current, self._context(report))
            report.seconds = time.perf_counter() - start
            report.nodes = sum(1 for _ in current.walk())
            report.weight_bytes = weight_bytes(current)
            self._verify(step, signature, before, current, report)
            self.reports.append(report)
        self.progress(len(self.passes), len(self.passes), "done")
        return current

    def _context(self, report: PassReport, rewrites_left: int | None = None) -> Context:
        return Context(
            report, self.target, self.calibration, self.evaluate, self.progress, rewrites_left
        )

    def _check(self) -> None:
        if self.level not in LEVELS:
            raise InvalidOption(
                f"no verification level {self.level!r}; there are {', '.join(LEVELS)}"
            )
        given = {"calibration": self.calibration, "evaluate": self.evaluate, "target": self.target}
        for step in self.passes:
            for need in sorted(step.needs):
                if not given[need]:
                    raise InvalidOption(f"{step.label} needs {need}, and none was given")
        if self.level == "values" and not (self.feeds and self.evaluate):
            raise InvalidOption("verification of values needs inputs and a way to run the graph")

    def _verify(
        self, step: Pass, signature: Signature, before: Graph, after: Graph, report: PassReport
    ) -> None:
        if self.level == "none":
            return
        try:
            verify(after)
            if self.level in ("text", "values"):
                _verify_text(after)
        except InvalidGraph as error:
            raise PassFailed(f"after {step.label}: {error}") from error
        if step.keeps.signature:
            _verify_signature(step, signature, after)
        if self.level == "values" and step.keeps.values is not None:
            self._verify_values(step, before, after, report)

    def _verify_values(self, step: Pass, before: Graph, after: Graph, report: PassReport) -> None:
        # A pass that does not count its rewrites is not trusted to have made none.
        if report.rewrites == 0 and print_graph(before) == print_graph(after):
            return
        # A copy, since the evaluator may keep what it made of a graph, and this one changes later on.
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
        """(Absolute difference, what is allowed there) of the output that is worst by its allowance,
        then the largest difference of all."""
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
        """The first rewrite after which the outputs differ, by running the pass with fewer."""
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
        step.run(graph, self._context(PassReport(step.label), rewrites))
        return graph


def weight_bytes(graph: Graph) -> int:
    """Bytes of all constants as encoded, subgraphs included."""
    return sum(
        v.encoding.nbytes
        for g in graph.all_graphs()
        for v in g.constants.values()
        if v.encoding is not None
    )


def _compare(expected: np.ndarray, got: np.ndarray, rtol: float) -> tuple[float, float]:
    """(Largest absolute difference, allowed). A NaN must stay one; what was not one may not become
    one. Where the reference is NaN, a number is accepted: fusions may define what was undefined."""
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
        raise InvalidGraph("the printed graph reads back as another one")


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
