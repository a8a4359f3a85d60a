"""The rules a graph keeps; checked by the pipeline after every pass.

1. Def-use is exact both ways, also across subgraphs and for graph outputs.
2. A value is read only after it is made, in its own graph or one inside it.
3. Names of values are unique over a graph and its subgraphs; output names are unique.
4. A constant's type is its encoding's; a node's attributes are complete.
5. What the op table infers does not contradict the types that are written.
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
    """Nodes whose types were checked, by all that the check depends on, so that a graph that is
    verified again and again is only inferred where it has changed."""

    def __init__(self) -> None:
        self._before: dict[Node, list[object]] = {}
        self._now: dict[Node, list[object]] = {}

    def start(self) -> None:
        """Begins another round over the graph; nodes that the last one has not seen are forgotten."""
        self._before, self._now = self._now, {}

    def is_known(self, node: Node) -> bool:
        """Whether ``node`` was checked as it is now; notes that it is, or will be."""
        if node.subgraphs:  # Their results' types are part of it.
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
        # By identity: types and contents are never changed in place, and comparing them takes longer.
        return before is not None and len(before) == len(facts) and all(map(is_, before, facts))


def verify(graph: Graph, *, types: bool = True, checked: Checked | None = None) -> None:
    """Checks all rules; ``types=False`` leaves out rule 5, which infers every node anew, but for
    those that are in ``checked``.

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
    """A graph whose nodes are being walked; ``waiting`` is the node whose subgraphs are walked."""

    graph: Graph
    nodes: Iterator[Node]
    own: list[Value]
    entered: bool = False
    walked: int = 0
    waiting: Node | None = None


def _verify_scope(top: Graph, reads: dict[Use, Value]) -> None:
    """Rules 1 and 2, in execution order with the set of values made so far. A stack of frames stands
    in for recursion, so that deep nesting cannot exhaust Python's."""
    made: set[Value] = set()
    stack = [_enter(top)]
    while stack:
        frame = stack[-1]
        if not frame.entered:
            made.update(frame.own)
            frame.entered = True
        if frame.waiting is not None:
            made.update(frame.waiting.outputs)
            frame.own.extend(frame.waiting.outputs)
        frame.waiting = next(frame.nodes, None)
        if frame.waiting is not None:
            frame.walked += 1
            _verify_node(frame.waiting, made, reads)
            stack.extend(_enter(sub) for sub in frame.waiting.subgraphs)
            continue
        if frame.walked != len(frame.graph):  # The walk passes over nodes that name another graph.
            raise InvalidGraph(f"{frame.graph!r}, but {frame.walked} of them belong to it")
        for i, value in enumerate(frame.graph.outputs):
            reads[Use(frame.graph, i)] = value
            if value not in made:
                raise InvalidGraph(f"{frame.graph!r} returns {value!r}, which is not made in it")
        made.difference_update(frame.own)
        stack.pop()


def _enter(graph: Graph) -> _Frame:
    return _Frame(graph, graph.nodes, [*graph.inputs, *graph.constants.values()])


def _verify_node(node: Node, made: set[Value], reads: dict[Use, Value]) -> None:
    for i, value in enumerate(node.inputs):
        if value is None:
            continue
        reads[Use(node, i)] = value
        if value not in made:
            raise InvalidGraph(
                f"{node.label} reads {value!r} before it is made: {print_node(node)}"
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
