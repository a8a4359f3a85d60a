"""Values, nodes, and the linked list of nodes that a graph is.

Plain data: only a :class:`tersor.ir.graph.Graph` changes them.
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


class NotATensor(TypeError):
    """A value was taken for a tensor: a sequence, or the result of an opaque op."""


class Value:
    """A tensor (or sequence, optional) in a graph.

    Attributes:
        name: unique in the outermost graph and its subgraphs.
        type: its type, as far as it is known.
        producer: the node that computes it; None for inputs and constants.
        index: its position among the producer's outputs.
        encoding: the stored numbers of a constant; None for other values.
        uses: its uses, oldest first (a dict serves as an ordered set).
        contents: for small integer tensors, the elements as dims if they follow from the shapes of inputs
            (an object array of int, Sym or None); None if nothing is known.
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
        self._returned = 0  # How many of the uses are graph outputs.

    @property
    def is_constant(self) -> bool:
        return self.encoding is not None

    @property
    def is_dense(self) -> bool:
        """Whether it is a constant stored as a plain array."""
        return self.encoding is not None and self.encoding.is_dense

    @property
    def stores_floats(self) -> bool:
        """Whether it is a constant that is not quantized, in half precision or not, pruned or not."""
        return self.encoding is not None and self.encoding.storage.is_float

    @property
    def is_input(self) -> bool:
        return self.producer is None and self.encoding is None

    @property
    def users(self) -> list[Node]:
        """The nodes that read it, each once, in the order of ``uses``."""
        return list(dict.fromkeys(u.user for u in self.uses if isinstance(u.user, Node)))

    @property
    def is_output(self) -> bool:
        """Whether a graph returns it."""
        return self._returned > 0

    def only_user(self) -> Node | None:
        """The node that is its only user (perhaps with several operands), else None."""
        user = next(iter(self.uses)).user if self.uses else None
        if not isinstance(user, Node) or any(use.user is not user for use in self.uses):
            return None
        return user

    @property
    def tensor(self) -> TensorType:
        """Its type, which must be a tensor's.

        Raises:
            NotATensor: it is a sequence, an optional, a map, or unknown.
        """
        if not isinstance(self.type, TensorType):
            raise NotATensor(f"%{self.name} is {self.type}, not a tensor")
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
    """An op applied to values.

    Attributes:
        op: ONNX's name of the op; ops of other domains are ``domain.Name``.
        scope: the module path it came from (``encoder.layer.0.attention.self.key``).
        name: the node's name in the source file, if it had one.
        subgraphs: the graphs among the attributes, in the order of the text form; fixed for the node's
            lifetime.
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
        """Operand ``index``; None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    @property
    def label(self) -> str:
        """Its name in messages: ``MatMul %h (encoder.layer.0)``."""
        where = self.scope or self.name
        output = f" %{self.outputs[0].name}" if self.outputs else ""
        return f"{self.op}{output}{f' ({where})' if where else ''}"

    def __repr__(self) -> str:
        return f"<{self.label}>"


def subgraphs_in(attr: Attribute) -> list[Graph]:
    """The graphs in an attribute."""
    items = attr if isinstance(attr, tuple) else (attr,)
    return [item for item in items if isinstance(item, NodeList)]


class NodeList:
    """Nodes in execution order, in a doubly linked list: inserting, moving and removing one take constant
    time. The base class of a graph."""

    def __init__(self) -> None:
        self._first: Node | None = None
        self._last: Node | None = None
        self._count = 0

    @property
    def nodes(self) -> Iterator[Node]:
        """Nodes in order. The graph may change during iteration; nodes inserted before the current one
        are not visited."""
        node = self._first
        while node is not None:
            following = node._next
            if node.graph is self:
                yield node
            # An erased node keeps its links, which lead back to the nodes still in the list.
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
        node.graph = cast("Graph", self)  # Every NodeList is a Graph.
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
