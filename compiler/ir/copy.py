"""Copying graphs: new nodes and values with the same names, shared encodings."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from tersor.ir.dims import KnownDim, dim_array, substitute
from tersor.ir.node import Attribute, Node, Value, subgraphs_in
from tersor.ir.types import OptionalType, SequenceType, TensorType, ValueType

if TYPE_CHECKING:
    from tersor.ir.graph import Graph


def copy_graph(graph: Graph) -> Graph:
    """A deep copy whose constants share their encodings with ``graph``.

    A copied subgraph still reads the values of the original's outer graph.
    """
    return Copy().graph(graph, None)


def inline(body: Graph, before: Node) -> list[Value]:
    """Copies the nodes and constants of ``body``, a subgraph without inputs, to just before ``before`` in
    the outer graph, and returns the copies of its outputs. Names are kept: the caller erases the node
    that owns ``body``."""
    assert before.graph is not None and not body.inputs
    copy = Copy()
    copy.fill(before.graph, body, before)
    return [copy.values.get(v, v) for v in body.outputs]


def specialize(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """A copy with ``sizes`` substituted for symbolic dims, and the types that depend on them inferred
    again.

    Raises:
        InvalidGraph: an op does not accept these sizes.
    """
    result = Copy(sizes).graph(graph, None)
    for node in result.walk():
        if node.subgraphs or node.graph is None:
            continue
        before = [(value.type, value.contents) for value in node.outputs]
        node.graph.infer(node)
        for value, (type, contents) in zip(node.outputs, before, strict=True):
            # Inference may know less than whoever emitted the node.
            if not isinstance(value.type, TensorType) or not value.type.is_static:
                value.type = type
            if value.contents is None:
                value.contents = contents
    return result


@dataclass
class Copy:
    """One copying run.

    Attributes:
        sizes: replacements for symbols in dims.
        only: the nodes and constants of the outermost level to copy; None: all.
        values: the copy of each value copied so far.
    """

    sizes: Mapping[str, KnownDim] = field(default_factory=dict)
    only: Container[Node | Value] | None = None
    values: dict[Value, Value] = field(default_factory=dict)

    def graph(self, graph: Graph, outer: Graph | None) -> Graph:
        values, result = self.values, self.empty(graph, outer)
        for value in graph.inputs:
            result.inputs.append(self.value(value, result))
        self.fill(result, graph, None)
        result.set_outputs([values.get(v, v) for v in graph.outputs], graph.output_names)
        return result

    def empty(self, graph: Graph, outer: Graph | None) -> Graph:
        """``graph`` without all that is in it."""
        result = type(graph)(graph.name, graph.table, outer)
        result.metadata = dict(graph.metadata)
        result.domains = dict(graph.domains)
        if outer is None:
            result._names = dict(graph._names)
        return result

    def fill(self, result: Graph, graph: Graph, before: Node | None) -> None:
        """Copies ``graph``'s constants and nodes into ``result``, the nodes before ``before``."""
        values = self.values
        only = self.only if graph.parent is None else None
        for value in graph.constants.values():
            if only is not None and value not in only:
                continue
            copied = self.value(value, result)
            result.constants[copied.name] = copied
        for node in graph.nodes:
            if only is not None and node not in only:
                continue
            copy = Node(node.op, self.attrs(node, result), node.scope, node.name)
            for sub in copy.subgraphs:
                sub.parent = copy
            result._link(copy, before)
            result._set_inputs(copy, [None if v is None else values.get(v, v) for v in node.inputs])
            copy.outputs = tuple(self.value(v, result) for v in node.outputs)
            for value in copy.outputs:
                value.producer = copy

    def attrs(self, node: Node, outer: Graph) -> dict[str, Attribute]:
        attrs: dict[str, Attribute] = {}
        for key, attr in node.attrs.items():
            copies = tuple(self.graph(body, outer) for body in subgraphs_in(attr))
            attrs[key] = attr if not copies else copies if isinstance(attr, tuple) else copies[0]
        return attrs

    def value(self, value: Value, graph: Graph) -> Value:
        # One that is there already (an input in place of a result) keeps the name, and its readers.
        name = graph.fresh(value.name) if value in self.values else value.name
        copy = Value(name, self.type(value.type), graph)
        copy.encoding, copy.index = value.encoding, value.index
        copy.contents = self.contents(value.contents)
        self.values.setdefault(value, copy)
        return copy

    def type(self, type: ValueType) -> ValueType:
        if isinstance(type, (SequenceType, OptionalType)):
            return replace(type, element=self.type(type.element)) if self.sizes else type
        if not self.sizes or not isinstance(type, TensorType) or type.dims is None:
            return type
        return type.with_dims(tuple(substitute(d, self.sizes) for d in type.dims))

    def contents(self, contents: np.ndarray | None) -> np.ndarray | None:
        if not self.sizes or contents is None:
            return contents
        return dim_array([substitute(d, self.sizes) for d in contents.flat], contents.shape)
