"""The pass interface: a rewrite of a graph, its claims, and the sweep over all nodes.

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
from tersor.ir import Encoding, Graph, Node, NotATensor, Value
from tersor.ir.extract import reads
from tersor.numerics.affine import ActivationForm
from tersor.numerics.sums import Sums
from tersor.pipeline.report import PassReport, Remark

Feed = Mapping[str, np.ndarray]
Evaluate = Callable[[Graph, Feed], Mapping[str, np.ndarray]]
T = TypeVar("T")
Rewrite = Value | Sequence[Value] | bool | None


class Feeds(Protocol):
    """Re-iterable batches of inputs by name, the same on each iteration: a list, or a reader from disk."""

    def __iter__(self) -> Iterator[Feed]: ...

    def __len__(self) -> int: ...


class Labelled(Protocol):
    """A node, or anything else with a name for messages."""

    @property
    def label(self) -> str: ...


class Latency(Protocol):
    """Measures graphs in the runtime of the result. ``sizes``: sizes of the model's dynamic dims to measure
    at."""

    @property
    def sizes(self) -> Sequence[Mapping[str, int]]: ...

    def feed(self, graph: Graph, sizes: Mapping[str, int]) -> Mapping[str, np.ndarray]:
        """Inputs of ``graph``, which has the model's inputs, at one of ``sizes``."""

    def __call__(self, graph: Graph, feed: Mapping[str, np.ndarray]) -> float:
        """Milliseconds of one run of ``graph`` on ``feed``."""


MAX_SWEEPS = 100
NEIGHBOURS = 8  # Operands and readers that are revisited when a node has changed.


class Skip(Exception):
    """Raised if a pattern matches but the rule does not apply; says why.

    Attributes:
        fields: further fields of the report's :class:`Remark`.
    """

    def __init__(self, reason: str = "", **fields: Any) -> None:
        super().__init__(reason)
        self.fields = fields


@dataclass(frozen=True)
class Keeps:
    """The claims of a pass. ``values``: tolerance of the outputs in f32, relative to the output's largest
    magnitude, and scaled by the epsilon of narrower dtypes. 0: exact; None: lossy."""

    signature: bool = True
    shapes: bool = True
    values: float | None = None


EXACT = Keeps(values=0.0)
ROUNDING = Keeps(values=1e-5)  # Reordered float arithmetic: some ulps of the largest output.
LOSSY = Keeps(values=None)


def without_backend(
    op: str, encodings: Sequence[Encoding], activations: ActivationForm
) -> str | None:
    """``supports`` of a graph for any runtime: ONNX quantizes whole tensors."""
    rows = activations is ActivationForm.INT8_ROWS
    return "ONNX has no op for activations with one scale a row" if rows else None


@dataclass
class Context:
    """The pipeline's arguments to a pass.

    Attributes:
        report: records the pass's skips and costs.
        target: hardware facts (see ``tersor.target``), or None.
        calibration: batches of inputs by name; empty if none were given.
        evaluate: runs a graph on one batch.
        supports: what the backend has kernels for (:meth:`tersor.backend.BackendOf.supports`).
        latency: measures graphs; None if nothing can be measured (another machine's target).
        progress: called with (done, total, what).
        given_bytes: bytes of all constants when the pipeline started.
        rewrites_left: rewrites the pass may still make; for bisection.
        excluded: keys of layers to leave unchanged (see ``PassReport.changed``), because they cost too much.
        memo: a cache for later runs of the pass with other options on an equal graph.
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
    excluded: frozenset[str] = frozenset()
    memo: dict[str, Any] = field(default_factory=dict)
    faster_sums: Sequence[Sums] = ()
    _skipped: set[Remark] = field(default_factory=set, init=False)

    def may_rewrite(self, *, after: int = 0) -> bool:
        """Whether one more rewrite is allowed, given ``after`` rewrites that are not counted yet."""
        return self.rewrites_left is None or self.rewrites_left > after

    def remember(self, key: str, make: Callable[[], T]) -> T:
        """The result of ``make``, cached for equal graphs."""
        if key not in self.memo:
            self.memo[key] = make()
        result: T = self.memo[key]
        return result

    def excludes(self, key: str, node: Labelled) -> bool:
        """Whether a layer must be left unchanged; reports it as skipped."""
        if key in self.excluded:
            self.skip(node, "it would cost the outputs more than the floor allows")
        return key in self.excluded

    def rewrote(self) -> None:
        """Counts one rewrite."""
        self.report.rewrites += 1
        if self.rewrites_left is not None:
            self.rewrites_left -= 1

    def remark(self, reason: str = "", **fields: Any) -> None:
        """Adds a :class:`Remark` with these fields to the report."""
        self.report.notes.append(Remark(reason, **fields))

    def skip(self, node: Labelled, reason: str = "", **fields: Any) -> None:
        """Reports, once, that ``node`` is left unchanged, and why."""
        entry = Remark(reason, layer=node.label, **fields)
        if entry not in self._skipped:
            self._skipped.add(entry)
            self.report.skips.append(entry)

    @contextmanager
    def trying(self, node: Labelled) -> Iterator[None]:
        """A context that ends at a :class:`Skip` and reports it for ``node``."""
        try:
            yield
        except Skip as why:
            self.skip(node, str(why), **why.fields)


@dataclass(frozen=True)
class Pass:
    """Base of all passes."""

    keeps: ClassVar[Keeps] = EXACT
    needs: ClassVar[frozenset[str]] = frozenset()  # "calibration", "evaluate", "target"
    one_of: ClassVar[frozenset[str]] = frozenset()  # Mutually exclusive options.
    fits: ClassVar[bool] = False  # Whether it fits weights to calibration inputs.
    comparable: ClassVar[bool] = True  # Whether outputs can be compared with those before the pass.
    budget: ClassVar[frozenset[str]] = frozenset()  # Options that set how much is removed.

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

    def weakened(self, share: float, remaining: float | None) -> Self | None:
        """The pass weakened to remove ``share``, between 0 and 1, of what it does; None without a dial.
        ``remaining``: see :class:`PassReport`."""
        return None

    def run(self, graph: Graph, context: Context) -> None:
        """Sweeps ``visit`` over all nodes, subgraphs included, until nothing changes.

        After a sweep, neighbours of changed nodes are revisited first, and then neighbours of their changes,
        so that a rule that works its way back through a long chain does not need a sweep per node.
        """
        limit = MAX_SWEEPS * (sum(1 for _ in graph.walk()) + 1)
        visits = 0
        for _ in range(MAX_SWEEPS):
            neighbours = self._sweep(graph.walk(), context)
            if not neighbours:
                return
            while neighbours and visits < limit:
                visits += len(neighbours)
                neighbours = self._sweep(neighbours, context)
        raise PassFailed(f"{self.label} still changes the graph after {MAX_SWEEPS} sweeps")

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        """Rewrites at ``node``, a node of ``graph``. Nodes that it emits go before ``node``.

        Returns:
            Replacements of the outputs (the node, and nodes that fed only it, are then erased), True for a
            change in place, None or False if the rule does not match.

        Raises:
            Skip: the pattern matches but the rule does not apply.
        """
        raise TypeError(f"{type(self).__name__} defines neither run nor visit")

    def _sweep(self, nodes: Iterable[Node], context: Context) -> list[Node]:
        """Visits ``nodes``; returns the neighbours of changed ones."""
        neighbours: dict[Node, None] = {}
        for node in nodes:
            owner = node.graph
            if owner is None or not _is_attached(owner):
                continue
            if not context.may_rewrite():
                return []
            try:
                with owner.at(node):
                    result = self.visit(owner, node)
            except Skip as reason:
                context.skip(node, str(reason), **reason.fields)
                continue
            except NotATensor as reason:  # The result of an opaque op.
                context.skip(node, str(reason))
                continue
            if result is None or result is False:
                continue
            context.rewrote()
            if result is True:
                neighbours.update(dict.fromkeys(_neighbours(node.outputs)))
                continue
            values = [result] if isinstance(result, Value) else list(result)
            replace_node(node, values)
            neighbours.update(dict.fromkeys(_neighbours(values)))
        return list(neighbours)


def _is_attached(graph: Graph) -> bool:
    """Whether a graph is the outermost one or still part of it: a rewrite may have erased the node that owns
    it while its nodes wait to be visited."""
    while graph.parent is not None:
        outer = graph.parent.graph
        if outer is None:
            return False
        graph = outer
    return True


def _neighbours(values: Iterable[Value]) -> Iterator[Node]:
    """Producers of ``values``, producers of their operands, and readers of ``values``. Only the first few:
    the next sweep visits the others."""
    for value in values:
        for use in islice(value.uses, NEIGHBOURS):
            if isinstance(use.user, Node):
                yield use.user
        if value.producer is not None:
            yield value.producer
            for operand in value.producer.inputs[:NEIGHBOURS]:
                if operand is not None and operand.producer is not None:
                    yield operand.producer


def replace_node(node: Node, values: Sequence[Value]) -> None:
    """Replaces the node's outputs by ``values`` (possibly fewer if the rest are unread), and erases the node
    and those that fed only it."""
    graph = node.graph
    assert graph is not None
    for old, new in zip(node.outputs, values, strict=False):
        graph.replace(old, new)
    erase_dead([node])


def erase_dead(nodes: Iterable[Node]) -> int:
    """Erases unread ``nodes``, then those that fed only them; returns their number."""
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
    """Erases all nodes and constants that no output needs, subgraphs included; returns their number."""
    erased = 0
    for owner in list(graph.all_graphs()):
        erased += erase_dead(reversed(list(owner.nodes)))
    for owner in graph.all_graphs():
        for constant in [c for c in owner.constants.values() if not c.uses]:
            owner.erase_constant(constant)
            erased += 1
    return erased
