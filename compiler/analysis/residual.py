"""The layers of a graph: what lies between two values of a residual stream.

    pre-norm    u -> norm -> f -> (+u) -> v              a layer leads from u to v = u + f(norm(u))
    post-norm   u -> f -> (+u) -> norm -> v              from u to v = norm(u + f(u))

v is the immediate post-dominator of u, both have the same type, f has weights, and a path of sums and
normalizations bypasses f. So the graph stays meaningful if users of v read u instead and the layer is
removed. Masks, positions and an encoder's result are side inputs. Names of models and modules play no role.

Fused sums (tersor.AddLayerNormalization) hide the stream: split them first
(:mod:`tersor.transforms.skip_norm`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Literal

import networkx as nx

from tersor.analysis.match import dtype, rank, same_type
from tersor.ir import Graph, Node, Value
from tersor.ops import TABLE

Unit = Literal["block", "sublayer"]


@dataclass(frozen=True)
class Layer:
    """A segment of a residual stream.

    Attributes:
        entry, exit: values of the same type; without the layer, users of ``exit`` read ``entry``.
        nodes: what computes ``exit`` from ``entry``, in graph order.
        pinned: why it cannot be removed; empty if it can.
    """

    entry: Value
    exit: Value
    nodes: tuple[Node, ...]
    pinned: str = ""

    @property
    def kind(self) -> tuple[str, ...]:
        """Its sorted ops, equal for repetitions of the same layer."""
        return tuple(sorted(node.op for node in self.nodes))

    @property
    def where(self) -> str:
        """The common scope of its weights, or else the name of its exit."""
        scopes = [n.scope.split(".") for n in self.nodes if _has_weights(n)]
        common = takewhile(lambda parts: len(set(parts)) == 1, zip(*scopes, strict=False))
        return ".".join(parts[0] for parts in common) or f"%{self.exit.name}"


def find_layers(graph: Graph, unit: Unit) -> list[list[Layer]]:
    """Runs of consecutive layers that repeat on a stream: single layers of one kind (``sublayer``: an
    attention, a feed-forward), or the shortest repeating sequence of kinds (``block``)."""
    flow = _flow(graph)
    streams = [s for s in _streams(graph, flow) if len(s) > 1]
    inside = {v for s in streams for layer in s for n in layer.nodes for v in n.outputs}
    points = {layer.exit for s in streams for layer in s}
    runs = []
    for stream in streams:
        if stream[0].entry in inside - points:
            continue  # Nested in a layer of another stream.
        run = _blocks(stream) if unit == "block" else _repeated(stream)
        runs += [[_pin(graph, layer) for layer in part] for part in _contiguous(run)]
    return runs


# -- streams ---------------------------------------------------------------------------------------


def _flow(graph: Graph) -> nx.DiGraph:
    """Data flow: an edge from each operand of a node to each result."""
    flow = nx.DiGraph()
    for node in graph.nodes:
        if TABLE.has(node.op, "shape"):  # Depends on the type alone.
            continue
        for operand in dict.fromkeys(_operands(node)):
            flow.add_edges_from((operand, result) for result in node.outputs)
    flow.add_nodes_from(graph.outputs)
    return flow


def _operands(node: Node) -> Iterator[Value]:
    """The non-constant values that a node reads, captures of its subgraphs included."""
    yield from (v for v in node.inputs if v is not None and not v.is_constant)
    for sub in node.subgraphs:
        for inner in sub.all_graphs():
            reads = [v for n in inner.nodes for v in n.inputs if v is not None]
            yield from (v for v in (*reads, *inner.outputs) if v.graph is node.graph)


def _streams(graph: Graph, flow: nx.DiGraph) -> list[list[Layer]]:
    """Maximal chains of layers of any kind."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    steps: dict[Value, _Step] = {}
    backwards = flow.reverse()
    for output in dict.fromkeys(graph.outputs):
        for value, following in nx.immediate_dominators(backwards, output).items():
            known = steps.get(value)
            if following is None or (known and (known.weighted or known.exit is following)):
                continue
            step = _step(flow, value, following, order) if _alike(value, following) else None
            if step is not None:
                steps[value] = step
    ends = {step.exit for step in steps.values()}
    starts = [v for v in steps if v not in ends]
    chains = [_chain(v, steps) for v in sorted(starts, key=lambda v: order.get(v.producer, -1))]  # type: ignore[arg-type]
    return [_layers(chain, order) for chain in chains]


@dataclass(frozen=True)
class _Step:
    """From a value to its immediate post-dominator; ``weighted``: through an f, not only a normalization
    or the like."""

    entry: Value
    exit: Value
    nodes: frozenset[Node]
    weighted: bool


def _alike(u: Value, v: Value) -> bool:
    kind = dtype(u)
    return kind is not None and kind.is_float and (rank(u) or 0) >= 2 and same_type(u, v)


def _step(flow: nx.DiGraph, u: Value, v: Value, order: dict[Node, int]) -> _Step | None:
    """None where no path bypasses what lies between."""
    ahead = {u}
    work = [u]
    while work:
        for reached in flow.successors(work.pop()):
            if reached not in ahead:
                ahead.add(reached)
                if reached is not v:
                    work.append(reached)
    between, work = {v}, [v]
    while work:
        for before in flow.predecessors(work.pop()):
            if before in ahead and before not in between and before is not u:
                between.add(before)
                work.append(before)
    nodes = frozenset(w.producer for w in between if w.producer in order)
    weighted = any(_has_weights(node) for node in nodes)
    if not _is_bypassed(u, v, between, weighted):
        return None
    return _Step(u, v, nodes, weighted)


def _is_bypassed(u: Value, v: Value, between: set[Value], sums: bool) -> bool:
    work, seen = [v], {v}
    while work:
        value = work.pop()
        for before in _straight(value.producer, sums):
            if before is u:
                return True
            if before in between and before not in seen:
                seen.add(before)
                work.append(before)
    return False


def _straight(node: Node | None, sums: bool) -> list[Value]:
    """Operands that a node without weights passes through; those of a sum only if ``sums``."""
    if node is None:
        return []
    inputs = [v for v in node.inputs if v is not None]
    if TABLE.has(node.op, "normalization"):
        return inputs[:1]
    varying = [v for v in inputs if not v.is_constant]
    if len(varying) == 1:
        passes = TABLE.has(node.op, "elementwise") and not TABLE.has(node.op, "discrete")
        return varying if passes else []
    return varying if node.op == "Add" and sums else []


def _has_weights(node: Node) -> bool:
    """Whether an operand is a constant float tensor of rank 2 or more, or the node has subgraphs."""
    return bool(node.subgraphs) or any(
        v is not None and v.is_constant and v.tensor.dtype.is_float and (v.tensor.rank or 0) >= 2
        and v.tensor.numel not in (0, 1)
        for v in node.inputs
    )  # fmt: skip


def _chain(start: Value, steps: dict[Value, _Step]) -> list[_Step]:
    chain: list[_Step] = []
    while start in steps:
        chain.append(steps[start])
        start = chain[-1].exit
    return chain


def _layers(chain: Sequence[_Step], order: dict[Node, int]) -> list[Layer]:
    """One per weighted step, followed by as many unweighted steps as every one of them has: the
    normalizations of post-norm, but not the final one of pre-norm."""
    starts = [i for i, step in enumerate(chain) if step.weighted]
    if not starts:
        return []
    behind = min(b - a for a, b in pairwise([*starts, len(chain)]))
    parts = [chain[i : i + behind] for i in starts]
    return [
        Layer(p[0].entry, p[-1].exit, tuple(sorted({n for s in p for n in s.nodes}, key=order.get)))  # type: ignore[arg-type]
        for p in parts
    ]


# -- repetition ------------------------------------------------------------------------------------


def _repeated(stream: Sequence[Layer]) -> list[Layer]:
    kinds = [layer.kind for layer in stream]
    return [layer for layer in stream if kinds.count(layer.kind) > 1]


def _blocks(stream: Sequence[Layer]) -> list[Layer]:
    """The longest periodic stretch of ``stream``, one layer per period.

    a f a f a f   ->   af af af
    """
    kinds = [layer.kind for layer in stream]
    begin, end, period = 0, 0, 1
    for p in range(1, len(kinds) // 2 + 1):
        start = 0
        for i in range(p, len(kinds) + 1):
            if i < len(kinds) and kinds[i] == kinds[i - p]:
                continue
            whole = (i - start) // p * p
            if whole >= 2 * p and whole > end - begin:
                begin, end, period = start, start + whole, p
            start = i - p + 1
    return [_joined(stream[i : i + period]) for i in range(begin, end, period)]


def _joined(parts: Sequence[Layer]) -> Layer:
    return Layer(parts[0].entry, parts[-1].exit, tuple(n for part in parts for n in part.nodes))


def _contiguous(run: Sequence[Layer]) -> Iterator[list[Layer]]:
    part: list[Layer] = []
    for layer in run:
        if part and part[-1].exit is not layer.entry:
            yield part
            part = []
        part.append(layer)
    if part:
        yield part


# -- layers that cannot be removed -----------------------------------------------------------------


def _pin(graph: Graph, layer: Layer) -> Layer:
    """``layer``, with ``pinned`` set if an output depends on its inside by another path than its exit."""
    inside = set(layer.nodes)
    for name, output in zip(graph.output_names, graph.outputs, strict=True):
        seen: set[Value] = set()
        work = [layer.entry if output is layer.exit else output]
        while work:
            value = work.pop()
            if value in seen or value is layer.entry:
                continue
            seen.add(value)
            if value.producer in inside:
                return Layer(layer.entry, layer.exit, layer.nodes, _reason(name, output, value))
            if value.producer is not None:
                reads = (layer.entry if v is layer.exit else v for v in _operands(value.producer))
                work += reads
    return layer


def _reason(name: str, output: Value, value: Value) -> str:
    what = "" if output is value else f", computed from its %{value.name},"
    return f"the model also returns {name!r}{what} from inside it"
