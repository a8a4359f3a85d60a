"""Values, the nodes that make and read them, and the list that nodes stand in.

They are plain data: a :class:`tersor.ir.graph.Graph` alone changes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Union, cast

import numpy as np

from tersor.ir.encodings import Encoding
from tersor.ir.types import TensorType, ValueType

if TYPE_CHECKING:
    from tersor.ir.graph import Graph

Attribute = Union[
    int, float, str, bytes, Encoding, "Graph", tuple[int, ...], tuple[float, ...], tuple[str, ...],
    tuple["Graph", ...], tuple[Encoding, ...], ValueType,
]  # fmt: skip


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

    __slots__ = (
        "_returned", "contents", "encoding", "graph", "index", "name", "producer", "type", "uses",
    )  # fmt: skip

    def __init__(self, name: str, type: ValueType, graph: Graph) -> None:
        self.name = name
        self.type = type
        self.graph = graph
        self.producer: Node | None = None
        self.index = 0
        self.encoding: Encoding | None = None
        self.contents: np.ndarray | None = None
        self.uses: dict[Use, None] = {}
        self._returned = 0  # How many of the uses are graphs' outputs.

    @property
    def is_constant(self) -> bool:
        return self.encoding is not None

    @property
    def is_dense(self) -> bool:
        """Whether it is a constant that is stored as an array as it is."""
        return self.encoding is not None and self.encoding.is_dense

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
        return self._returned > 0

    def only_user(self) -> Node | None:
        """The node that alone reads it (perhaps at several operands), else None."""
        user = next(iter(self.uses)).user if self.uses else None
        if not isinstance(user, Node) or any(use.user is not user for use in self.uses):
            return None
        return user

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

    def _add_use(self, use: Use) -> None:
        self.uses[use] = None
        self._returned += not isinstance(use.user, Node)

    def _drop_use(self, use: Use) -> None:
        if use in self.uses:
            del self.uses[use]
            self._returned -= not isinstance(use.user, Node)

    def __repr__(self) -> str:
        return f"{'@' if self.is_constant else '%'}{self.name}: {self.type}"


class Node:
    """An op applied to values. ``op`` is ONNX's name; ops of other domains are ``domain.Name``.

    ``scope`` is the module path it came from (``encoder.layer.0.attention.self.key``), ``name`` the
    node's own name in the source file where it had one. ``subgraphs`` are the graphs among the
    attributes, in the order that the text form has them in; they stay as long as the node does.
    """

    __slots__ = (
        "_next", "_prev", "attrs", "graph", "inputs", "name", "op", "outputs", "scope", "subgraphs",
    )  # fmt: skip

    def __init__(self, op: str, attrs: dict[str, Attribute], scope: str, name: str) -> None:
        self.op = op
        self.attrs = attrs
        self.scope = scope
        self.name = name
        self.subgraphs = [body for key in sorted(attrs) for body in subgraphs_in(attrs[key])]
        self.inputs: Sequence[Value | None] = []
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
    def label(self) -> str:
        """How messages call it: op, then scope or name, then what it makes."""
        where = self.scope or self.name
        made = f"%{self.outputs[0].name}" if self.outputs else "nothing"
        return f"{self.op}{f' ({where})' if where else ''} making {made}"

    def __repr__(self) -> str:
        return f"<{self.label}>"


def subgraphs_in(attr: Attribute) -> list[Graph]:
    """The graphs that an attribute is or holds."""
    held = attr if isinstance(attr, tuple) else (attr,)
    return [item for item in held if isinstance(item, NodeList)]


class NodeList:
    """Nodes in execution order: a doubly linked list, so that each is put in, moved and taken out in
    constant time. The part of a graph that its nodes know of."""

    def __init__(self) -> None:
        self._first: Node | None = None
        self._last: Node | None = None
        self._count = 0

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
        node.graph = cast("Graph", self)  # Every list of nodes is a graph's.
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
