"""The text form: deterministic, parseable, weights by shape and digest.

    graph main(%x: f32[batch, 4]) -> (y = %h) {
      @w: f32[4, 8] = dense #8d41a5c09ee2f1b3
      @b: f32[2] = dense [0.5, 1.0]
      %h: f32[batch, 8] = MatMul(%x, @w) scope "classifier"
      %m: f32[batch, 8], %_: bool[batch, 8] = Dropout(%h, _) {seed = 1}
    }

Constants of up to eight elements are written out in any encoding (see :mod:`tersor.ir.encodings.text`),
larger ones as the digest of their encoding, which :func:`parse` looks up in ``weights`` (see
:func:`weights_of`).  In place of numbers it also reads ``normal(seed)`` and ``arange``, for tests.  An
operand that is left out is ``_``.  Printing a parsed graph gives the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

import numpy as np

from tersor.ir.encodings import Encoding
from tersor.ir.encodings.text import print_encoding, print_number, read_encoding
from tersor.ir.graph import Graph, OpTable
from tersor.ir.node import Attribute, Node, Value
from tersor.ir.tokens import Tokens
from tersor.ir.types import (
    MapType,
    OptionalType,
    SequenceType,
    TensorType,
    UnknownType,
    parse_type,
)

_PLAIN = re.compile(r"[A-Za-z0-9_./\-]+\Z")
# What needs no quotes as a bare name: a number, or a word that does not begin like one.
_WORD = re.compile(r"(?!(?:inf|nan)\b)[A-Za-z_][A-Za-z0-9_./\-]*\Z|\d+\Z")


# -- printing ------------------------------------------------------------------------------------


def print_graph(graph: Graph) -> str:
    """The text form of ``graph``, ending in a newline."""
    return "\n".join(_graph_lines(graph, "")) + "\n"


def print_node(node: Node) -> str:
    """The text of one node: a line, or several if it has subgraphs."""
    return "\n".join(_node_lines(node, ""))


def weights_of(graph: Graph) -> dict[str, Encoding]:
    """All encodings in the graph by digest, as :func:`parse` takes them."""
    items: list[object] = [v.encoding for g in graph.all_graphs() for v in g.constants.values()]
    for node in graph.walk():
        for attr in node.attrs.values():
            items += attr if isinstance(attr, tuple) else (attr,)
    # Of equal ones the first: others may be views of its memory.
    return {item.digest: item for item in reversed(items) if isinstance(item, Encoding)}


def _graph_lines(graph: Graph, indent: str) -> Iterator[str]:
    inputs = ", ".join(f"{_ref(v)}: {v.type}" for v in graph.inputs)
    returned = ", ".join(
        f"{_name(n)} = {_ref(v)}" for n, v in zip(graph.output_names, graph.outputs, strict=True)
    )
    yield f"graph {_name(graph.name)}({inputs}) -> ({returned}) {{"
    for value in graph.constants.values():
        assert value.encoding is not None
        yield f"{indent}  {_ref(value)}: {value.type} = {print_encoding(value.encoding)}"
    for node in graph.nodes:
        yield from _node_lines(node, indent + "  ")
    yield indent + "}"


def _node_lines(node: Node, indent: str) -> Iterator[str]:
    outputs = ", ".join(f"{_ref(v)}: {v.type}" for v in node.outputs)
    inputs = ", ".join("_" if v is None else _ref(v) for v in node.inputs)
    line = f"{indent}{outputs}{' = ' if outputs else ''}{_name(node.op)}({inputs})"
    if node.attrs:
        line += " {"
        for i, key in enumerate(sorted(node.attrs)):
            first, *more = _attribute(node.attrs[key], indent + "  ")
            line += f"{', ' if i else ''}{_name(key)} = {first}"
            for following in more:
                yield line
                line = following
        line += "}"
    if node.scope:
        line += f" scope {json.dumps(node.scope)}"
    if node.name:
        line += f" name {json.dumps(node.name)}"
    yield line


def _attribute(attr: Attribute, indent: str) -> list[str]:
    if isinstance(attr, Graph):
        return list(_graph_lines(attr, indent))
    if isinstance(attr, tuple) and attr and isinstance(attr[0], Graph):
        lines = ["["]
        for i, graph in enumerate(attr):
            assert isinstance(graph, Graph)
            first, *rest = _graph_lines(graph, indent)
            lines[-1] += ("" if i == 0 else ", ") + first
            lines.extend(rest)
        lines[-1] += "]"
        return lines
    if isinstance(attr, tuple):
        return [f"[{', '.join(_scalar(a) for a in attr)}]"]
    return [_scalar(attr)]


def _scalar(attr: object) -> str:
    if isinstance(attr, Encoding):
        return f"tensor {attr.type} {print_encoding(attr)}"
    if isinstance(attr, (TensorType, SequenceType, OptionalType, MapType, UnknownType)):
        return f"type {json.dumps(str(attr))}"
    if isinstance(attr, bytes):
        return f"bytes {json.dumps(attr.hex())}"
    if isinstance(attr, str):
        return json.dumps(attr)
    if isinstance(attr, (bool, np.bool_)):
        raise TypeError("an attribute cannot be a boolean: ONNX has 0 and 1")
    return print_number(attr)


def _name(name: str) -> str:
    return name if _WORD.match(name) else json.dumps(name)


def _ref(value: Value) -> str:
    name = value.name if _PLAIN.match(value.name) else json.dumps(value.name)
    return ("@" if value.is_constant else "%") + name


# -- parsing -------------------------------------------------------------------------------------


def parse(
    text: str, table: OpTable | None = None, weights: Mapping[str, Encoding] | None = None
) -> Graph:
    """Reads a graph from its text form.

    Types come from the text; ``table``, if given, checks attributes and fills in defaults.

    Raises:
        InvalidGraph: a syntax error (with its line), an undefined name, or a digest missing from
            ``weights``.
    """
    parser = _Parser(text, table, weights or {})
    try:
        return parser.parse()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise parser.error(str(error).splitlines()[0] if str(error) else repr(error)) from None
    except RecursionError:
        raise parser.error("graphs or lists are nested too deeply") from None


class _Parser(Tokens):
    def __init__(self, text: str, table: OpTable | None, weights: Mapping[str, Encoding]) -> None:
        super().__init__(text)
        self.table = table
        self.weights = weights
        self.values: dict[str, Value] = {}

    def parse(self) -> Graph:
        graph = self.graph(None)
        if self.peek()[1]:
            self.fail(f"unexpected {self.peek()[1]!r} after the graph")
        return graph

    def graph(self, outer: Graph | None) -> Graph:
        self.take("graph")
        graph = Graph(self.name(), self.table, outer)
        self.take("(")
        while not self.accept(")"):
            name = self.ref()
            self.take(":")
            self.values[name] = graph.add_input(name, self.type())  # type: ignore[arg-type]
            if self.values[name].name != name:
                self.fail(f"%{name} is defined twice")
            self.accept(",")
        self.take("->")
        self.take("(")
        returned: list[tuple[str, str]] = []
        while not self.accept(")"):
            output = self.name()
            self.take("=")
            returned.append((output, self.ref()))
            self.accept(",")
        self.take("{")
        while not self.accept("}"):
            self.statement(graph)
        graph.set_outputs([self.value(ref) for _, ref in returned], [name for name, _ in returned])
        return graph

    def value(self, name: str) -> Value:
        if name not in self.values:
            self.fail(f"%{name} is not defined")
        return self.values[name]

    def statement(self, graph: Graph) -> None:
        results: list[tuple[str, object]] = []
        constant = self.peek()[1].startswith("@")
        while self.peek()[0] == "ref":
            name = self.ref()
            self.take(":")
            results.append((name, self.type()))
            self.accept(",")
        if results:
            self.take("=")
        for name, _ in results:
            if name in self.values:
                self.fail(f"%{name} is defined twice")
        if constant:
            (name, type), *_ = results
            self.values[name] = graph.constant(read_encoding(self, type, self.weights), name)
            return
        self.node(graph, results)

    def node(self, graph: Graph, results: list[tuple[str, object]]) -> None:
        op = self.name()
        self.take("(")
        inputs: list[Value | None] = []
        while not self.accept(")"):
            inputs.append(None if self.accept("_") else self.value(self.ref()))
            self.accept(",")
        attrs: dict[str, Attribute] = {}
        if self.accept("{"):
            while not self.accept("}"):
                key = self.name()
                self.take("=")
                attrs[key] = self.attribute(graph)
                self.accept(",")
        scope = self.string() if self.accept("scope") else ""
        node_name = self.string() if self.accept("name") else ""
        node = graph.emit_node(
            op,
            inputs,
            attrs,
            names=[name for name, _ in results],
            types=[type for _, type in results],  # type: ignore[misc]
            scope=scope,
            node_name=node_name,
        )
        for value in node.outputs:
            self.values[value.name] = value
        # The text has types but no symbolic contents: those are inferred.
        if self.table is None or any(v.type == UnknownType() for v in node.outputs):
            return
        for value, (_, contents) in zip(node.outputs, self.table.infer(node), strict=True):
            value.contents = contents

    def attribute(self, graph: Graph) -> Attribute:
        kind, text, _ = self.peek()
        if text == "graph":
            return self.graph(graph)
        if text == "[":
            self.take()
            items = []
            while not self.accept("]"):
                items.append(self.attribute(graph))
                self.accept(",")
            return tuple(items)  # type: ignore[return-value]
        if text == "tensor":
            self.take()
            return read_encoding(self, self.type(), self.weights)
        if text == "type":
            self.take()
            return parse_type(self.string())
        if text == "bytes":
            self.take()
            return bytes.fromhex(self.string())
        if kind == "string":
            return self.string()
        if kind == "number":
            self.take()
            return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
        raise self.fail(f"expected an attribute, found {text!r}")
