"""Passes: what rewrites a graph, what it promises, and how it is swept over all nodes.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

from tersor.backend import Supports
from tersor.errors import PassFailed
from tersor.ir import Encoding, Graph, Node, Value
from tersor.ir.extract import reads
from tersor.numerics.affine import ActivationForm
from tersor.numerics.sums import Sums
from tersor.pipeline.report import PassReport, Remark

Feed = Mapping[str, np.ndarray]
Evaluate = Callable[[Graph, Feed], Mapping[str, np.ndarray]]
T = TypeVar("T")
Rewrite = Value | Sequence[Value] | bool | None


class Feeds(Protocol):
    """Batches of inputs by name. They can be gone over again, and are the same each time; a list is such,
    and so is what reads them from a disk one by one."""

    def __iter__(self) -> Iterator[Feed]: ...

    def __len__(self) -> int: ...


class Labelled(Protocol):
    """A node, or what else messages call by a name."""

    @property
    def label(self) -> str: ...


class Latency(Protocol):
    """Measures graphs in the runtime that the result is for. ``sizes``: sizes of the model's open dims
    that count."""

    @property
    def sizes(self) -> Sequence[Mapping[str, int]]: ...

    def feed(self, graph: Graph, sizes: Mapping[str, int]) -> Mapping[str, np.ndarray]:
        """Inputs of ``graph``, which takes what the model takes, at one of ``sizes``."""

    def __call__(self, graph: Graph, feed: Mapping[str, np.ndarray]) -> float:
        """Milliseconds of one run of ``graph`` on ``feed``."""


MAX_SWEEPS = 100
BESIDE = 8  # Operands and readers that are looked at again when a node has changed.


class Skip(Exception):
    """Raised where the pattern is met but the rule does not apply; says why.

    Attributes:
        told: further fields of the :class:`Remark` that the report has of it.
    """

    def __init__(self, reason: str = "", **told: Any) -> None:
        super().__init__(reason)
        self.told = told


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


def without_backend(
    op: str, encodings: Sequence[Encoding], activations: ActivationForm
) -> str | None:
    """What can be said where the graph is for any runtime: ONNX quantizes whole tensors."""
    rows = activations is ActivationForm.INT8_ROWS
    return "ONNX has no op for activations with one scale a row" if rows else None


@dataclass
class Context:
    """What the pipeline gives a pass.

    Attributes:
        report: where the pass notes its skips and costs.
        target: hardware facts (see ``tersor.target``), None where no target is known yet.
        calibration: batches of inputs by name; empty where none were given.
        evaluate: runs a graph on one batch.
        supports: what the backend has kernels for (:meth:`tersor.backend.BackendOf.supports`).
        latency: measures graphs; None where nothing can be measured (another machine's target).
        progress: called with (done, total, what).
        given_bytes: of all constants, when the pipeline began.
        rewrites_left: rewrites the pass may still make; for bisection.
        spared: keys of what stays as it is (see ``PassReport.changed``): it costs too much.
        memo: what a pass remembers for the next run of it, with other options, on an equal graph.
        faster_sums: see :attr:`tersor.backend.BackendOf.FASTER_SUMS`.
    """

    report: PassReport
    target: Any = None
    calibration: Feeds = ()
    evaluate: Evaluate | None = None
    supports: Supports = without_backend
    latency: Latency | None = None
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    given_bytes: int = 0
    rewrites_left: int | None = None
    spared: frozenset[str] = frozenset()
    memo: dict[str, Any] = field(default_factory=dict)
    faster_sums: Sequence[Sums] = ()
    _skipped: set[Remark] = field(default_factory=set, init=False)

    def may_rewrite(self, *, after: int = 0) -> bool:
        """Whether one more rewrite is allowed, ``after`` so many that are yet to be counted."""
        return self.rewrites_left is None or self.rewrites_left > after

    def remember(self, key: str, make: Callable[[], T]) -> T:
        """What ``make`` gave at its first call on an equal graph."""
        if key not in self.memo:
            self.memo[key] = make()
        found: T = self.memo[key]
        return found

    def spares(self, key: str, node: Labelled) -> bool:
        """Whether a layer is to stay as it is."""
        if key in self.spared:
            self.skip(node, "it would cost the outputs more than the floor allows")
        return key in self.spared

    def rewrote(self) -> None:
        """Counts one rewrite."""
        self.report.rewrites += 1
        if self.rewrites_left is not None:
            self.rewrites_left -= 1

    def remark(self, reason: str = "", **told: Any) -> None:
        """Adds a :class:`Remark` with these fields to the report."""
        self.report.notes.append(Remark(reason, **told))

    def skip(self, node: Labelled, reason: str = "", **told: Any) -> None:
        """Adds to the report, once, that ``node`` stays as it is, and why: a :class:`Remark`."""
        entry = Remark(reason, layer=node.label, **told)
        if entry not in self._skipped:
            self._skipped.add(entry)
            self.report.skips.append(entry)

    @contextmanager
    def trying(self, node: Labelled) -> Iterator[None]:
        """What is done within ends where it raises :class:`Skip`, which the report has of ``node`` then."""
        try:
            yield
        except Skip as why:
            self.skip(node, str(why), **why.told)


@dataclass(frozen=True)
class Pass:
    """Base of all passes."""

    keeps: ClassVar[Keeps] = EXACT
    needs: ClassVar[frozenset[str]] = frozenset()  # "calibration", "evaluate", "target"
    one_of: ClassVar[frozenset[str]] = frozenset()  # Options of which one is given at most.
    fits: ClassVar[bool] = False  # Whether it fits weights to calibration inputs.
    # Whether outputs are to be those of before: else it makes no sense to compare them.
    comparable: ClassVar[bool] = True
    budget: ClassVar[frozenset[str]] = frozenset()  # Options that say how much is to go.

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

    def milder(self, share: float, left: float | None) -> Self | None:
        """The pass with ``share``, between 0 and 1, of what it takes; None where it has no such dial.
        ``left``: the share that it did leave (``PassReport.left``)."""
        return None

    def run(self, graph: Graph, context: Context) -> None:
        """Sweeps ``visit`` over all nodes, subgraphs included, until nothing changes.

        After a sweep, what stands beside its changes is visited first, and beside the changes of
        that, so that a rule that works its way back through a long chain needs no sweep for each node.
        """
        limit = MAX_SWEEPS * (sum(1 for _ in graph.walk()) + 1)
        visits = 0
        for _ in range(MAX_SWEEPS):
            beside = self._sweep(graph.walk(), context)
            if not beside:
                return
            while beside and visits < limit:
                visits += len(beside)
                beside = self._sweep(beside, context)
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

    def _sweep(self, nodes: Iterable[Node], context: Context) -> list[Node]:
        """Visits ``nodes``; those beside what was changed, each once."""
        beside: dict[Node, None] = {}
        for node in nodes:
            owner = node.graph
            if owner is None or not _is_held(owner):
                continue
            if not context.may_rewrite():
                return []
            try:
                with owner.at(node):
                    result = self.visit(owner, node)
            except Skip as reason:
                context.skip(node, str(reason), **reason.told)
                continue
            if result is None or result is False:
                continue
            context.rewrote()
            if result is True:
                beside.update(dict.fromkeys(_beside(node.outputs)))
                continue
            values = [result] if isinstance(result, Value) else list(result)
            replace_node(node, values)
            beside.update(dict.fromkeys(_beside(values)))
        return list(beside)


def _is_held(graph: Graph) -> bool:
    """Whether a graph is the outermost one or within it still: a rewrite may have taken away the node
    that held it, while nodes of it wait to be visited."""
    while graph.parent is not None:
        outer = graph.parent.graph
        if outer is None:
            return False
        graph = outer
    return True


def _beside(values: Iterable[Value]) -> Iterator[Node]:
    """What makes ``values``, what makes the operands of that, and what reads them. Of many operands or
    readers only the first: the next sweep comes to the others."""
    for value in values:
        for use in islice(value.uses, BESIDE):
            if isinstance(use.user, Node):
                yield use.user
        if value.producer is not None:
            yield value.producer
            for operand in value.producer.inputs[:BESIDE]:
                if operand is not None and operand.producer is not None:
                    yield operand.producer


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
        feeding = [v for v in reads(node) if v is not None]
        node.graph.erase(node)
        erased += 1
        for value in feeding:
            if value.producer is not None:
                work.append(value.producer)
            elif value.is_constant and not value.uses and value.name in value.graph.constants:
                value.graph.erase_constant(value)
    return erased


def erase_unread(graph: Graph) -> int:
    """Erases all nodes and constants that no output needs, subgraphs included; how many."""
    erased = 0
    for owner in list(graph.all_graphs()):
        erased += erase_dead(reversed(list(owner.nodes)))
    for owner in graph.all_graphs():
        for constant in [c for c in owner.constants.values() if not c.uses]:
            owner.erase_constant(constant)
            erased += 1
    return erased
