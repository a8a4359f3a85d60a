"""Graph, node, value: the one representation that every pass rewrites.

A :class:`Graph` is the only mutator of itself, its nodes and their values, and keeps def-use exact:
``value.uses`` names every (user, operand index) that reads it, in subgraphs too, and a graph that
returns it counts as a user.

    graph = Graph("main", table)
    x = graph.add_input("x", TensorType(DType.F32, (symbol("batch"), 4)))
    y = graph.emit("MatMul", [x, graph.constant(w, "w")], scope="classifier")
    graph.set_outputs([y], ["logits"])
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, cast

import numpy as np

from tersor.ir.copy import copy_graph
from tersor.ir.encodings import Dense, Encoding
from tersor.ir.node import Attribute, Node, NodeList, Use, Value
from tersor.ir.types import UnknownType, ValueType


class OpTable(Protocol):
    """What a graph asks of the op table when a node is emitted (see ``tersor.ops``)."""

    def complete(self, op: str, attrs: Mapping[str, Attribute]) -> dict[str, Attribute]:
        """``attrs`` with the op's defaults filled in."""

    def infer(self, node: Node) -> list[tuple[ValueType, np.ndarray | None]]:
        """Type and symbolic contents (or None) of each output of ``node``."""


class Graph(NodeList):
    """Inputs, constants, nodes in execution order, outputs.

    ``output_names`` are the graph's interface and independent of the values' own names, so that an
    output may be called like an internal value, and one value may be returned twice.
    """

    def __init__(
        self, name: str = "main", table: OpTable | None = None, outer: Graph | None = None
    ) -> None:
        """``outer`` is the graph that a subgraph will be part of: they share one space of names."""
        super().__init__()
        self.name = name
        self.table: OpTable | None = table if table or outer is None else outer.table
        self.inputs: list[Value] = []
        self.constants: dict[str, Value] = {}
        self.outputs: list[Value] = []
        self.output_names: list[str] = []
        self.metadata: dict[str, str] = {}
        self.domains: dict[str, int] = {}  # Versions of the foreign ops' domains.
        self.parent: Node | None = None
        self._names: dict[str, int] = outer._names if outer is not None else {}
        self._changes: list[int] = outer._changes if outer is not None else [0]
        self._cursor: Node | None = None

    # -- reading ---------------------------------------------------------------------------------

    def walk(self) -> Iterator[Node]:
        """All nodes, those of subgraphs before the node that holds them is passed."""
        stack: list[Iterator[Node]] = [self.nodes]
        while stack:
            for node in stack[-1]:
                yield node
                if node.subgraphs:
                    stack.extend(g.nodes for g in node.subgraphs)
                    break
            else:
                stack.pop()

    def all_graphs(self) -> Iterator[Graph]:
        """This graph, then its subgraphs at any depth."""
        yield self
        for node in self.walk():
            yield from node.subgraphs

    @property
    def outer(self) -> Graph | None:
        """The graph whose node holds this one; None for an outermost graph."""
        return self.parent.graph if self.parent is not None else None

    @property
    def changes(self) -> int:
        """How often this graph, the outer ones and the inner ones were changed: grows with each."""
        return self._changes[0]

    def values(self) -> Iterator[Value]:
        """Inputs, constants and results of this graph, without those of subgraphs."""
        yield from self.inputs
        yield from self.constants.values()
        for node in self.nodes:
            yield from node.outputs

    def signature(self) -> tuple[list[tuple[str, ValueType]], list[tuple[str, ValueType]]]:
        """Names and types of inputs and of outputs."""
        outputs = zip(self.output_names, self.outputs, strict=True)
        return [(v.name, v.type) for v in self.inputs], [(n, v.type) for n, v in outputs]

    # -- building --------------------------------------------------------------------------------

    def rename_inputs(self, names: Sequence[str]) -> None:
        """New names for the inputs, in order; an inner value that has one of them gets another."""
        self._changes[0] += 1
        taken = set(names)
        for value, name in zip(self.inputs, names, strict=True):
            value.name = name
            self._names.setdefault(name, 0)
        for graph in self.all_graphs():
            inner = [v for v in graph.values() if graph is not self or not v.is_input]
            clashing = [v for v in inner if v.name in taken]
            for value in clashing:
                value.name = self.fresh(value.name)
            if any(v.is_constant for v in clashing):
                graph.constants = {v.name: v for v in graph.constants.values()}

    def fresh(self, base: str) -> str:
        """``base``, or ``base_1`` … where a value of this or an outer or inner graph has that name."""
        names = self._names
        if base not in names:
            names[base] = 0
            return base
        while True:
            names[base] += 1
            candidate = f"{base}_{names[base]}"
            if candidate not in names:
                names[candidate] = 0
                return candidate

    def add_input(self, name: str, type: ValueType) -> Value:
        value = Value(self.fresh(name), type, self)
        self._changes[0] += 1
        self.inputs.append(value)
        return value

    def constant(self, data: np.ndarray | Encoding, name: str = "const") -> Value:
        """A new constant of this graph."""
        encoding = data if isinstance(data, Encoding) else Dense(np.asarray(data))
        value = Value(self.fresh(name), encoding.type, self)
        value.encoding = encoding
        self._changes[0] += 1
        self.constants[value.name] = value
        return value

    def set_encoding(self, constant: Value, encoding: Encoding) -> None:
        """Holds a constant's numbers in another form; the decoded type must stay."""
        if encoding.type != constant.type:
            raise ValueError(f"{constant!r} cannot be held as {encoding.type}")
        self._changes[0] += 1
        constant.encoding = encoding
        constant.contents = None

    def slice_axis(self, value: Value, axis: int, kept: np.ndarray) -> None:
        """Leaves the positions ``kept`` of an axis: of a constant's numbers, of any other value's type.
        What makes and what reads the value has to be changed alike."""
        dims = list(value.tensor.dims or ())
        dims[axis] = len(kept)
        if value.encoding is not None:
            value.encoding = value.encoding.take(kept, axis)
        self._changes[0] += 1
        value.type = value.tensor.with_dims(tuple(dims))
        value.contents = None

    def set_attributes(self, node: Node, attrs: Mapping[str, Attribute | None]) -> None:
        """Changes attributes of a node, which are no graphs; None takes one away."""
        self._changes[0] += 1
        for name, attr in attrs.items():
            if attr is None:
                node.attrs.pop(name, None)
            else:
                node.attrs[name] = attr

    def emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attrs: Mapping[str, Attribute] | None = None,
        *,
        name: str = "",
        scope: str | None = None,
    ) -> Value:
        """Adds a node with one output and returns that. Goes before the node under :meth:`at`, whose
        scope it takes unless told, else at the end. ``name`` names the value."""
        return self.emit_node(op, inputs, attrs, names=[name], scope=scope).outputs[0]

    def emit_node(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attrs: Mapping[str, Attribute] | None = None,
        *,
        names: Sequence[str] = ("",),
        types: Sequence[ValueType] | None = None,
        scope: str | None = None,
        node_name: str = "",
        before: Node | None = None,
    ) -> Node:
        """Adds a node with ``len(names)`` outputs (an empty name: a fresh one from the op's).

        ``types`` are taken instead of inferred ones (for opaque ops).

        Raises:
            TypeError: the op refuses its operands' types or attributes.
        """
        where = before or self._cursor
        if scope is None:
            scope = where.scope if where is not None else ""
        completed = dict(attrs or {})
        if self.table is not None:
            completed = self.table.complete(op, completed)
        node = Node(op, completed, scope, node_name)
        for sub in node.subgraphs:
            sub.parent = node
        self._link(node, where)
        base = op.rsplit(".", 1)[-1].lower()
        outputs = []
        for i, given in enumerate(names):
            value = Value(self.fresh(given or base), UnknownType(), self)
            value.producer, value.index = node, i
            outputs.append(value)
        node.outputs = tuple(outputs)
        self._set_inputs(node, inputs)
        try:
            self._type(node, types)
        except Exception:
            self.erase(node)
            raise
        return node

    def _type(self, node: Node, types: Sequence[ValueType] | None) -> None:
        self._changes[0] += 1
        if types is not None:
            for value, type in zip(node.outputs, types, strict=True):
                value.type = type
        elif self.table is not None:
            for value, (type, contents) in zip(node.outputs, self.table.infer(node), strict=True):
                value.type, value.contents = type, contents

    def infer(self, node: Node) -> None:
        """Types ``node`` anew, after its operands' types have become sharper."""
        self._type(node, None)

    def at(self, node: Node | None) -> AbstractContextManager[None]:
        """Within it, emitted nodes go before ``node`` and take its scope."""
        return _Cursor(self, node)

    def set_outputs(self, values: Iterable[Value], names: Iterable[str] | None = None) -> None:
        """Makes ``values`` the outputs, called ``names`` (else as the values are)."""
        self._changes[0] += 1
        for i, old in enumerate(self.outputs):
            old._drop_use(Use(self, i))
        self.outputs = list(values)
        self.output_names = list(names) if names is not None else [v.name for v in self.outputs]
        if len(self.output_names) != len(self.outputs):
            raise ValueError(f"{len(self.outputs)} outputs, {len(self.output_names)} names")
        for i, value in enumerate(self.outputs):
            value._add_use(Use(self, i))

    # -- rewriting -------------------------------------------------------------------------------

    def replace(self, old: Value, new: Value) -> None:
        """Every reader of ``old`` reads ``new`` instead; ``old`` and its node stay, unread."""
        if old is new:
            return
        for use in list(old.uses):
            self.set_input(use.user, use.operand, new)

    def set_input(self, user: Node | Graph, index: int, new: Value | None) -> None:
        """Makes operand (or graph output) ``index`` of ``user`` read ``new``; an operand may be one that
        was left out."""
        self._changes[0] += 1
        # In place: among thousands of operands (of a Concat, a Sum), each may be replaced in turn.
        operands = _operands(user)
        if isinstance(user, Node):
            operands += [None] * (index + 1 - len(operands))
        old = operands[index]
        assert new is not None or isinstance(user, Node), "a graph output cannot be left out"
        if old is not None:
            old._drop_use(Use(user, index))
        if new is not None:
            new._add_use(Use(user, index))
        operands[index] = new
        while operands and operands[-1] is None:  # Left out at the end is not there at all.
            operands.pop()

    def erase(self, node: Node) -> None:
        """Removes an unread node, and its subgraphs' reads with it.

        Raises:
            ValueError: something still reads it.
        """
        for value in node.outputs:
            if value.uses:
                raise ValueError(f"{node.label} is still read by {next(iter(value.uses)).user!r}")
        self._set_inputs(node, ())
        for sub in node.subgraphs:
            sub._release()
        self._unlink(node)

    def erase_constant(self, constant: Value) -> None:
        """Removes an unread constant."""
        if constant.uses:
            raise ValueError(f"{constant!r} is still read")
        self._changes[0] += 1
        del self.constants[constant.name]

    def move_before(self, node: Node, other: Node) -> None:
        """Moves ``node`` to just before ``other``."""
        if node is not other:
            self._changes[0] += 1
            self._unlink(node)
            self._link(node, other)

    def copy(self) -> Graph:
        """A graph of its own with the same names; encodings are shared."""
        return copy_graph(self)

    # -- inner -----------------------------------------------------------------------------------

    def _set_inputs(self, node: Node, inputs: Sequence[Value | None]) -> None:
        self._changes[0] += 1
        for i, old in enumerate(node.inputs):
            if old is not None:
                old._drop_use(Use(node, i))
        node.inputs = list(inputs)
        for i, new in enumerate(node.inputs):
            if new is not None:
                new._add_use(Use(node, i))

    def _release(self) -> None:
        """Drops all reads made by this graph's nodes and outputs (it is going away)."""
        for node in self.walk():
            if node.graph is not None:
                node.graph._set_inputs(node, ())
        for graph in list(self.all_graphs()):
            for i, value in enumerate(graph.outputs):
                value._drop_use(Use(graph, i))

    def __repr__(self) -> str:
        return f"<graph {self.name}: {len(self.inputs)} inputs, {self._count} nodes>"


class _Cursor:
    """Where a graph puts what is emitted, while it is entered."""

    __slots__ = ("before", "graph", "node")

    def __init__(self, graph: Graph, node: Node | None) -> None:
        self.graph = graph
        self.node = node
        self.before: Node | None = None

    def __enter__(self) -> None:
        self.before, self.graph._cursor = self.graph._cursor, self.node

    def __exit__(self, *error: object) -> None:
        self.graph._cursor = self.before


def _operands(user: Node | Graph) -> list[Value | None]:
    return cast("list[Value | None]", user.inputs if isinstance(user, Node) else user.outputs)
