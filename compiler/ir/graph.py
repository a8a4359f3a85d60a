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
from contextlib import contextmanager
from typing import NamedTuple, Protocol, Union

import numpy as np

from tersor.ir.encodings import Dense, Encoding
from tersor.ir.types import TensorType, UnknownType, ValueType

Attribute = Union[
    int, float, str, bytes, Encoding, "Graph", tuple[int, ...], tuple[float, ...], tuple[str, ...],
    tuple["Graph", ...], tuple[Encoding, ...], ValueType,
]  # fmt: skip


class OpTable(Protocol):
    """What a graph asks of the op table when a node is emitted (see ``tersor.ops``)."""

    def complete(self, op: str, attrs: Mapping[str, Attribute]) -> dict[str, Attribute]:
        """``attrs`` with the op's defaults filled in."""

    def infer(self, node: Node) -> list[tuple[ValueType, np.ndarray | None]]:
        """Type and symbolic contents (or None) of each output of ``node``."""


class Use(NamedTuple):
    """One read of a value: operand ``index`` of a node, or output ``index`` of a graph."""

    user: Node | Graph
    operand: int


class Value:
    """A tensor (or sequence, optional) in a graph.

    Attributes:
        name: unique in the outermost graph.
        type: what is known of its type.
        producer: the node that makes it, None for inputs and constants.
        encoding: its numbers, for constants.
        uses: its readers, in the order they began to read (a dict used as an ordered set).
        contents: for small integer tensors, their elements as dims where they follow from the shapes
            of inputs (an object array of int, Sym or None); None where nothing is known.
    """

    __slots__ = ("contents", "encoding", "graph", "index", "name", "producer", "type", "uses")

    def __init__(self, name: str, type: ValueType, graph: Graph) -> None:
        self.name = name
        self.type = type
        self.graph = graph
        self.producer: Node | None = None
        self.index = 0
        self.encoding: Encoding | None = None
        self.contents: np.ndarray | None = None
        self.uses: dict[Use, None] = {}

    @property
    def is_constant(self) -> bool:
        return self.encoding is not None

    @property
    def is_input(self) -> bool:
        return self.producer is None and self.encoding is None

    @property
    def users(self) -> list[Node]:
        """Nodes that read it, each once, in order."""
        return list(dict.fromkeys(u.user for u in self.uses if isinstance(u.user, Node)))

    @property
    def is_output(self) -> bool:
        """Whether some graph returns it."""
        return any(isinstance(use.user, Graph) for use in self.uses)

    def only_user(self) -> Node | None:
        """The node that alone reads it (perhaps at several operands), else None."""
        users = {use.user for use in self.uses}
        user = users.pop() if len(users) == 1 else None
        return user if isinstance(user, Node) else None

    @property
    def tensor(self) -> TensorType:
        """Its type, where that is a tensor.

        Raises:
            TypeError: it is a sequence, an optional, or unknown.
        """
        if not isinstance(self.type, TensorType):
            raise TypeError(f"%{self.name} is {self.type}, not a tensor")
        return self.type

    def numpy(self) -> np.ndarray:
        """The decoded numbers of a constant.

        Raises:
            ValueError: not a constant.
        """
        if self.encoding is None:
            raise ValueError(f"%{self.name} is not a constant")
        return self.encoding.decode()

    def __repr__(self) -> str:
        return f"{'@' if self.is_constant else '%'}{self.name}: {self.type}"


class Node:
    """An op applied to values. ``op`` is ONNX's name; ops of other domains are ``domain.Name``.

    ``scope`` is the module path it came from (``encoder.layer.0.attention.self.key``), ``name`` the
    node's own name in the source file where it had one.
    """

    __slots__ = ("_next", "_prev", "attrs", "graph", "inputs", "name", "op", "outputs", "scope")

    def __init__(self, op: str, attrs: dict[str, Attribute], scope: str, name: str) -> None:
        self.op = op
        self.attrs = attrs
        self.scope = scope
        self.name = name
        self.inputs: tuple[Value | None, ...] = ()
        self.outputs: tuple[Value, ...] = ()
        self.graph: Graph | None = None
        self._prev: Node | None = None
        self._next: Node | None = None

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    def input(self, index: int) -> Value | None:
        """Operand ``index``; None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    @property
    def subgraphs(self) -> list[Graph]:
        """Graphs among the attributes, in the order that the text form has them in."""
        found: list[Graph] = []
        for _, attr in sorted(self.attrs.items()):
            if isinstance(attr, Graph):
                found.append(attr)
            elif isinstance(attr, tuple):
                found.extend(a for a in attr if isinstance(a, Graph))
        return found

    @property
    def label(self) -> str:
        """How messages call it: op, then scope or name, then what it makes."""
        where = self.scope or self.name
        made = f"%{self.outputs[0].name}" if self.outputs else "nothing"
        return f"{self.op}{f' ({where})' if where else ''} making {made}"

    def __repr__(self) -> str:
        return f"<{self.label}>"


class Graph:
    """Inputs, constants, nodes in execution order, outputs.

    ``output_names`` are the graph's interface and independent of the values' own names, so that an
    output may be called like an internal value, and one value may be returned twice.
    """

    def __init__(
        self, name: str = "main", table: OpTable | None = None, outer: Graph | None = None
    ) -> None:
        """``outer`` is the graph that a subgraph will be part of: they share one space of names."""
        self.name = name
        self.table: OpTable | None = table if table or outer is None else outer.table
        self.inputs: list[Value] = []
        self.constants: dict[str, Value] = {}
        self.outputs: list[Value] = []
        self.output_names: list[str] = []
        self.metadata: dict[str, str] = {}
        self.parent: Node | None = None
        self._names: dict[str, int] = outer._names if outer is not None else {}
        self._first: Node | None = None
        self._last: Node | None = None
        self._count = 0
        self._cursor: Node | None = None

    # -- reading ---------------------------------------------------------------------------------

    @property
    def nodes(self) -> Iterator[Node]:
        """Nodes in order. Nodes may be erased and inserted meanwhile; those inserted before the
        current one are not visited."""
        node = self._first
        while node is not None:
            following = node._next
            if node.graph is self:
                yield node
            # An erased node keeps its link, so the walk finds its way back to the living.
            node = following if node._next is following or node.graph is not self else node._next

    def __len__(self) -> int:
        return self._count

    def walk(self) -> Iterator[Node]:
        """All nodes, those of subgraphs before the node that holds them is passed."""
        stack: list[Iterator[Node]] = [self.nodes]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
                continue
            yield node
            stack.extend(g.nodes for g in node.subgraphs)

    def all_graphs(self) -> Iterator[Graph]:
        """This graph, then its subgraphs at any depth."""
        yield self
        for node in self.walk():
            yield from node.subgraphs

    @property
    def outer(self) -> Graph | None:
        """The graph whose node holds this one; None for an outermost graph."""
        return self.parent.graph if self.parent is not None else None

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
        inner = [
            v for g in self.all_graphs() for v in g.values() if g is not self or not v.is_input
        ]
        for value, name in zip(self.inputs, names, strict=True):
            value.name = name
            self._names.setdefault(name, 0)
        for value in inner:
            if value.name in names:
                new = self.fresh(value.name)
                if value.is_constant:
                    value.graph.constants = {
                        (new if v is value else k): v for k, v in value.graph.constants.items()
                    }
                value.name = new

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
        self.inputs.append(value)
        return value

    def constant(self, data: np.ndarray | Encoding, name: str = "const") -> Value:
        """A new constant of this graph."""
        encoding = data if isinstance(data, Encoding) else Dense(np.asarray(data))
        value = Value(self.fresh(name), encoding.type, self)
        value.encoding = encoding
        self.constants[value.name] = value
        return value

    def set_encoding(self, constant: Value, encoding: Encoding) -> None:
        """Holds a constant's numbers in another form; the decoded type must stay."""
        if encoding.type != constant.type:
            raise ValueError(f"{constant!r} cannot be held as {encoding.type}")
        constant.encoding = encoding
        constant.contents = None

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
        if types is not None:
            for value, type in zip(node.outputs, types, strict=True):
                value.type = type
        elif self.table is not None:
            for value, (type, contents) in zip(node.outputs, self.table.infer(node), strict=True):
                value.type, value.contents = type, contents

    def infer(self, node: Node) -> None:
        """Types ``node`` anew, after its operands' types have become sharper."""
        self._type(node, None)

    @contextmanager
    def at(self, node: Node | None) -> Iterator[None]:
        """Within it, emitted nodes go before ``node`` and take its scope."""
        previous, self._cursor = self._cursor, node
        try:
            yield
        finally:
            self._cursor = previous

    def set_outputs(self, values: Iterable[Value], names: Iterable[str] | None = None) -> None:
        """Makes ``values`` the outputs, called ``names`` (else as the values are)."""
        for i, old in enumerate(self.outputs):
            old.uses.pop(Use(self, i), None)
        self.outputs = list(values)
        self.output_names = list(names) if names is not None else [v.name for v in self.outputs]
        if len(self.output_names) != len(self.outputs):
            raise ValueError(f"{len(self.outputs)} outputs, {len(self.output_names)} names")
        for i, value in enumerate(self.outputs):
            value.uses[Use(self, i)] = None

    # -- rewriting -------------------------------------------------------------------------------

    def replace(self, old: Value, new: Value) -> None:
        """Every reader of ``old`` reads ``new`` instead; ``old`` and its node stay, unread."""
        if old is new:
            return
        for use in list(old.uses):
            self.set_input(use.user, use.operand, new)

    def set_input(self, user: Node | Graph, index: int, new: Value | None) -> None:
        """Makes operand (or graph output) ``index`` of ``user`` read ``new``."""
        operands = user.inputs if isinstance(user, Node) else tuple(user.outputs)
        old = operands[index]
        if old is not None:
            old.uses.pop(Use(user, index), None)
        if new is not None:
            new.uses[Use(user, index)] = None
        changed = (*operands[:index], new, *operands[index + 1 :])
        if isinstance(user, Node):
            while changed and changed[-1] is None:  # Left out at the end is not there at all.
                changed = changed[:-1]
            user.inputs = changed
        else:
            assert new is not None, "a graph output cannot be left out"
            user.outputs = [v for v in changed if v is not None]

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
        del self.constants[constant.name]

    def move_before(self, node: Node, other: Node) -> None:
        """Moves ``node`` to just before ``other``."""
        if node is not other:
            self._unlink(node)
            self._link(node, other)

    def copy(self) -> Graph:
        """A graph of its own with the same names; encodings are shared."""
        from tersor.ir.copy import copy_graph

        return copy_graph(self)

    # -- inner -----------------------------------------------------------------------------------

    def _set_inputs(self, node: Node, inputs: Sequence[Value | None]) -> None:
        for i, old in enumerate(node.inputs):
            if old is not None:
                old.uses.pop(Use(node, i), None)
        node.inputs = tuple(inputs)
        for i, new in enumerate(node.inputs):
            if new is not None:
                new.uses[Use(node, i)] = None

    def _release(self) -> None:
        """Drops all reads made by this graph's nodes and outputs (it is going away)."""
        for node in self.walk():
            if node.graph is not None:
                node.graph._set_inputs(node, ())
        for graph in list(self.all_graphs()):
            for i, value in enumerate(graph.outputs):
                value.uses.pop(Use(graph, i), None)

    def _link(self, node: Node, before: Node | None) -> None:
        if before is not None and before.graph is not self:
            raise ValueError(f"{before.label} is not a node of this graph")
        previous = before._prev if before is not None else self._last
        node._prev, node._next = previous, before
        if previous is None:
            self._first = node
        else:
            previous._next = node
        if before is None:
            self._last = node
        else:
            before._prev = node
        node.graph = self
        self._count += 1

    def _unlink(self, node: Node) -> None:
        if node.graph is not self:
            raise ValueError(f"{node.label} is not a node of this graph")
        if node._prev is None:
            self._first = node._next
        else:
            node._prev._next = node._next
        if node._next is None:
            self._last = node._prev
        else:
            node._next._prev = node._prev
        node.graph = None
        self._count -= 1

    def __repr__(self) -> str:
        return f"<graph {self.name}: {len(self.inputs)} inputs, {self._count} nodes>"
