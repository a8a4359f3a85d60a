"""The invariants of a graph; checked by the pipeline after every pass.

1. Def-use is exact in both directions, also across subgraphs and for graph outputs.
2. A value is read only after it is defined, in its own graph or a subgraph.
3. Names of values are unique over a graph and its subgraphs; output names are unique.
4. A constant's type is its encoding's; a node's attributes are complete.
5. What the op table infers does not contradict the values' types.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import is_

from tersor.errors import InvalidGraph
from tersor.ir.graph import Graph
from tersor.ir.node import Node, Use, Value
from tersor.ir.text import print_node
from tersor.ir.types import TensorType, UnknownType


class Checked:
    """A cache of nodes whose types were checked, keyed by everything the check depends on, so that
    repeated verification infers only the nodes that have changed."""

    def __init__(self) -> None:
        self._before: dict[Node, list[object]] = {}
        self._now: dict[Node, list[object]] = {}

    def start(self) -> None:
        """Begins a new round over the graph; drops the nodes that the last round did not see."""
        self._before, self._now = self._now, {}

    def is_known(self, node: Node) -> bool:
        """Whether ``node`` was already checked in its present state; records it as checked."""
        if node.subgraphs:  # Depends on the types of their outputs.
            return False
        facts: list[object] = [node.op, *node.attrs, *node.attrs.values(), node.graph]
        for value in node.inputs:
            if value is not None:
                facts += (value.type, value.encoding, value.contents, value.producer)
            else:
                facts.append(None)
        facts += [value.type for value in node.outputs]
        before = self._before.get(node)
        self._now[node] = facts
        # By identity: types and contents are never changed in place, and comparing them is slower.
        return before is not None and len(before) == len(facts) and all(map(is_, before, facts))


def verify(graph: Graph, *, types: bool = True, checked: Checked | None = None) -> None:
    """Checks all rules. ``types=False`` skips rule 5, which infers every node that is not in ``checked``.

    Raises:
        InvalidGraph: the first broken rule, with the node and its line of text.
    """
    reads: dict[Use, Value] = {}
    _verify_scope(graph, reads)
    for value in _all_values(graph):
        for use in value.uses:
            if reads.get(use) is not value:
                raise InvalidGraph(f"{value!r} lists a use by {use.user!r} that does not read it")
    for use, value in reads.items():
        if use not in value.uses:
            raise InvalidGraph(f"{use.user!r} reads {value!r}, which does not list it")
    _verify_names(graph)
    if types:
        checked = checked or Checked()
        checked.start()
        for node in graph.walk():
            if not checked.is_known(node):
                _verify_types(node)


def _all_values(graph: Graph) -> Iterator[Value]:
    for g in graph.all_graphs():
        yield from g.values()


@dataclass
class _Frame:
    """A graph that is being walked; ``waiting`` is the node whose subgraphs are walked first."""

    graph: Graph
    nodes: Iterator[Node]
    own: list[Value]
    entered: bool = False
    walked: int = 0
    waiting: Node | None = None


def _verify_scope(top: Graph, reads: dict[Use, Value]) -> None:
    """Rules 1 and 2, in execution order with the set of values defined so far. An explicit stack, so that
    deep nesting cannot exceed Python's recursion limit."""
    defined: set[Value] = set()
    stack = [_enter(top)]
    while stack:
        frame = stack[-1]
        if not frame.entered:
            defined.update(frame.own)
            frame.entered = True
        if frame.waiting is not None:
            defined.update(frame.waiting.outputs)
            frame.own.extend(frame.waiting.outputs)
        frame.waiting = next(frame.nodes, None)
        if frame.waiting is not None:
            frame.walked += 1
            _verify_node(frame.waiting, defined, reads)
            stack.extend(_enter(sub) for sub in frame.waiting.subgraphs)
            continue
        if frame.walked != len(frame.graph):  # Iteration skips nodes that name another graph.
            raise InvalidGraph(
                f"{frame.graph!r}, but only {frame.walked} of them name it as theirs"
            )
        for i, value in enumerate(frame.graph.outputs):
            reads[Use(frame.graph, i)] = value
            if value not in defined:
                raise InvalidGraph(f"{frame.graph!r} returns {value!r}, which is not defined there")
        defined.difference_update(frame.own)
        stack.pop()


def _enter(graph: Graph) -> _Frame:
    return _Frame(graph, graph.nodes, [*graph.inputs, *graph.constants.values()])


def _verify_node(node: Node, defined: set[Value], reads: dict[Use, Value]) -> None:
    for i, value in enumerate(node.inputs):
        if value is None:
            continue
        reads[Use(node, i)] = value
        if value not in defined:
            raise InvalidGraph(
                f"{node.label} reads {value!r} before it is defined: {print_node(node)}"
            )
    for i, value in enumerate(node.outputs):
        if value.producer is not node or value.index != i:
            raise InvalidGraph(f"output {i} of {node.label} names another producer")
    for sub in node.subgraphs:
        if sub.parent is not node:
            raise InvalidGraph(f"a subgraph of {node.label} has another parent")


def _verify_names(top: Graph) -> None:
    seen: set[str] = set()
    for graph in top.all_graphs():
        if len(set(graph.output_names)) != len(graph.outputs):
            raise InvalidGraph(f"{graph!r} has output names {graph.output_names}")
        for value in graph.values():
            if value.name in seen:
                raise InvalidGraph(f"two values are called %{value.name}")
            seen.add(value.name)
        for name, value in graph.constants.items():
            if name != value.name or value.encoding is None or value.encoding.type != value.type:
                raise InvalidGraph(f"constant {value!r} does not agree with its encoding")


def _verify_types(node: Node) -> None:
    assert node.graph is not None
    table = node.graph.table
    if table is None:
        return
    if table.complete(node.op, node.attrs) != node.attrs:
        raise InvalidGraph(f"{node.label} lacks defaults: {print_node(node)}")
    for value, (inferred, _) in zip(node.outputs, table.infer(node), strict=True):
        if isinstance(value.type, TensorType) and isinstance(inferred, TensorType):
            if not value.type.accepts(inferred):
                raise InvalidGraph(f"{value!r} is inferred as {inferred}: {print_node(node)}")
        elif type(inferred) is not type(value.type) and UnknownType() not in (inferred, value.type):
            raise InvalidGraph(f"{value!r} is inferred as {inferred}: {print_node(node)}")
