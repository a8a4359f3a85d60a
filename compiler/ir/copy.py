"""Copying graphs: names and structure anew, encodings shared."""

from __future__ import annotations

from tersor.ir.graph import Graph
from tersor.ir.node import Attribute, Node, Value


def copy_graph(graph: Graph) -> Graph:
    """A deep copy whose constants share their encodings with ``graph``.

    A subgraph that is copied alone keeps reading the outer graph's values.
    """
    return _copy(graph, {}, None)


def _copy(graph: Graph, values: dict[Value, Value], outer: Graph | None) -> Graph:
    result = Graph(graph.name, graph.table, outer)
    result.metadata = dict(graph.metadata)
    if outer is None:
        result._names = dict(graph._names)
    for value in graph.inputs:
        result.inputs.append(_copy_value(value, result, values))
    for value in graph.constants.values():
        copied = _copy_value(value, result, values)
        result.constants[copied.name] = copied
    for node in graph.nodes:
        copy = Node(node.op, _copy_attrs(node, values, result), node.scope, node.name)
        for sub in copy.subgraphs:
            sub.parent = copy
        result._link(copy, None)
        result._set_inputs(copy, [None if v is None else values.get(v, v) for v in node.inputs])
        copy.outputs = tuple(_copy_value(v, result, values) for v in node.outputs)
        for value in copy.outputs:
            value.producer = copy
    result.set_outputs([values.get(v, v) for v in graph.outputs], graph.output_names)
    return result


def _copy_attrs(node: Node, values: dict[Value, Value], outer: Graph) -> dict[str, Attribute]:
    attrs: dict[str, Attribute] = {}
    for key, attr in node.attrs.items():
        if isinstance(attr, Graph):
            attrs[key] = _copy(attr, values, outer)
        elif isinstance(attr, tuple) and any(isinstance(a, Graph) for a in attr):
            attrs[key] = tuple(_copy(a, values, outer) for a in attr if isinstance(a, Graph))
        else:
            attrs[key] = attr
    return attrs


def _copy_value(value: Value, graph: Graph, values: dict[Value, Value]) -> Value:
    copy = Value(value.name, value.type, graph)
    copy.encoding, copy.contents, copy.index = value.encoding, value.contents, value.index
    values[value] = copy
    return copy
