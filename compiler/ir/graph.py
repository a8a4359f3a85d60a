"""The graph: the one representation that every pass rewrites.

Only a :class:`Graph` mutates itself, its nodes and their values, and it keeps def-use exact:
``value.uses`` lists every (user, operand index) that reads a value, in subgraphs too; a graph that returns
a value is one of its users.

    graph = Graph("main", table)
    x = graph.add_input("x", TensorType(DType.F32, (symbol("batch"), 4)))
    y = graph.emit("MatMul", [x, graph.constant(w, "w")], scope="classifier")
    graph.set_outputs([y], ["logits"])
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, cast

import numpy as np

from tersor.ir.copy import copy_graph
from tersor.ir.encodings import Dense, Encoding
from tersor.ir.node import Attribute, Node, NodeList, Use, Value
from tersor.ir.types import UnknownType, ValueType


class OpTable(Protocol):
    """What a graph needs from the op table when a node is emitted (see ``tersor.ops``)."""

    def complete(self, op: str, attrs: Mapping[str, Attribute]) -> dict[str, Attribute]:
        """``attrs`` with the op's defaults filled in."""

    def infer(self, node: Node) -> list[tuple[ValueType, np.ndarray | None]]:
        """Type and symbolic contents (None if unknown) of each output of ``node``."""


class Graph(NodeList):
    """Inputs, constants, nodes in execution order, outputs.

    ``output_names`` belong to the graph's interface and are independent of the values' names: an output
    may have the name of an internal value, and one value may be returned twice.
    """

    def __init__(
        self, name: str = "main", table: OpTable | None = None, outer: Graph | None = None
    ) -> None:
        """``outer`` is the graph around a subgraph: they share one namespace of values."""
        super().__init__()
        self.name = name
        self.table: OpTable | None = table if table or outer is None else outer.table
        self.inputs: list[Value] = []
        self.constants: dict[str, Value] = {}
        self.outputs: list[Value] = []
        self.output_names: list[str] = []
        self.metadata: dict[str, str] = {}
        self.domains: dict[str, int] = {}  # Opset versions of foreign ops' domains.
        self.parent: Node | None = None
        self._names: dict[str, int] = outer._names if outer is not None else {}
        self._changes: list[int] = outer._changes if outer is not None else [0]
        self._cursor: Node | None = None

    # -- reading ---------------------------------------------------------------------------------

    def walk(self) -> Iterator[Node]:
        """All nodes in order; a node's subgraphs directly after it."""
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
        """This graph, then its subgraphs, however deep."""
        yield self
        for node in self.walk():
            yield from node.subgraphs

    @property
    def outer(self) -> Graph | None:
        """The graph of the node that this subgraph belongs to; None for an outermost graph."""
        return self.parent.graph if self.parent is not None else None

    @property
    def changes(self) -> int:
        """A counter that every change of this graph, its outer graphs or its subgraphs increases."""
        return self._changes[0]

    def values(self) -> Iterator[Value]:
        """Inputs, constants and node outputs of this graph, without those of subgraphs."""
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
        """Renames the inputs, in order; any other value with one of these names is renamed too."""
        self._changes[0] += 1
        taken = set(names)
        for value, name in zip(self.inputs, names, strict=True):
            value.name = name
            self._names.setdefault(name, 0)
        inputs = set(self.inputs)
        for graph in self.all_graphs():
            clashing = [v for v in graph.values() if v.name in taken and v not in inputs]
            for value in clashing:
                value.name = self.fresh(value.name)
            if any(v.is_constant for v in clashing):
                graph.constants = {v.name: v for v in graph.constants.values()}

    def fresh(self, base: str) -> str:
        """``base``, or ``base_1``, ``base_2`` … if that name is taken in this, an outer or an inner graph."""
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
        """Stores a constant in another encoding, which must decode to the same type."""
        if encoding.type != constant.type:
            raise ValueError(f"{constant!r} cannot be stored as {encoding.type}")
        self._changes[0] += 1
        constant.encoding = encoding
        constant.contents = None

    def slice_axis(self, value: Value, axis: int, kept: np.ndarray) -> None:
        """Keeps the positions ``kept`` of an axis: slices a constant, or adjusts the type of any other
        value, whose producer and readers the caller has to change accordingly."""
        dims = list(value.tensor.dims or ())
        dims[axis] = len(kept)
        if value.encoding is not None:
            value.encoding = value.encoding.take(kept, axis)
        self._changes[0] += 1
        value.type = value.tensor.with_dims(tuple(dims))
        value.contents = None

    def set_attributes(self, node: Node, attrs: Mapping[str, Attribute | None]) -> None:
        """Sets attributes of a node (not subgraphs); None removes one."""
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
        """Adds a node with one output, called ``name``, and returns that output. Inside :meth:`at` the node
        goes before the given node and has its scope by default, otherwise it goes at the end."""
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
        """Adds a node with ``len(names)`` outputs (an empty name is replaced by one made from the op's).

        ``types``, if given, replace inference (for opaque ops).

        Raises:
            TypeError: the op does not accept these operand types or attributes.
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
            self._set_types(node, types)
        except Exception:
            self.erase(node)
            raise
        return node

    def _set_types(self, node: Node, types: Sequence[ValueType] | None) -> None:
        self._changes[0] += 1
        if types is not None:
            for value, type in zip(node.outputs, types, strict=True):
                value.type = type
        elif self.table is not None:
            for value, (type, contents) in zip(node.outputs, self.table.infer(node), strict=True):
                value.type, value.contents = type, contents

    def infer(self, node: Node) -> None:
        """Infers the types of ``node``'s outputs again, after its operands' types were refined."""
        self._set_types(node, None)

    @contextmanager
    def at(self, node: Node | None) -> Iterator[None]:
        """Emits nodes before ``node``, with its scope by default, while the context is active."""
        previous, self._cursor = self._cursor, node
        try:
            yield
        finally:
            self._cursor = previous

    def set_outputs(self, values: Iterable[Value], names: Iterable[str] | None = None) -> None:
        """Makes ``values`` the outputs, called ``names`` (by default the values' own names)."""
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
        """Makes every reader of ``old`` read ``new``; ``old`` and its node stay, unread."""
        if old is new:
            return
        for use in list(old.uses):
            self.set_input(use.user, use.operand, new)

    def set_input(self, user: Node | Graph, index: int, new: Value | None) -> None:
        """Sets operand (or graph output) ``index`` of ``user``, also an operand that was left out; None
        leaves it out."""
        self._changes[0] += 1
        # In place: a Concat or Sum may have thousands of operands, replaced one by one.
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
        while operands and operands[-1] is None:
            operands.pop()

    def erase(self, node: Node) -> None:
        """Removes an unread node, and all reads by it and its subgraphs.

        Raises:
            ValueError: one of its outputs is still read.
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
        """An independent graph with the same names; encodings are shared."""
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
        """Drops all reads by this graph's nodes and outputs, before the graph is discarded."""
        for node in self.walk():
            if node.graph is not None:
                node.graph._set_inputs(node, ())
        for graph in list(self.all_graphs()):
            for i, value in enumerate(graph.outputs):
                value._drop_use(Use(graph, i))

    def __repr__(self) -> str:
        return f"<graph {self.name}: {len(self.inputs)} inputs, {self._count} nodes>"


def _operands(user: Node | Graph) -> list[Value | None]:
    return cast("list[Value | None]", user.inputs if isinstance(user, Node) else user.outputs)
