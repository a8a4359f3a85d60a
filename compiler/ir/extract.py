"""Parts of a graph: what lies between some of its values and others.

graph main(%x) -> (y = %y) { %a = Relu(%x)  %b = Exp(%a)  %y = Neg(%b) }

extract(graph, ["a"], ["b"])     graph main(%a) -> (b = %b) { %b = Exp(%a) }
extract(graph, None, ["b"])      graph main(%x) -> (b = %b) { %a = Relu(%x)  %b = Exp(%a) }
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tersor.errors import InvalidOption, suggest
from tersor.ir.copy import Copy
from tersor.ir.graph import Graph
from tersor.ir.node import Node, Value


def extract(
    graph: Graph, inputs: Sequence[Value | str] | None, outputs: Sequence[Value | str]
) -> Graph:
    """A graph of its own that computes ``outputs`` from ``inputs``, with no more than that takes. All keep
    their names, and encodings are shared.

    Args:
        inputs: values of the outermost level, constants too; None: the graph's own, all of them.
        outputs: values of the outermost level. What is named twice is there once.

    Raises:
        InvalidOption: a value that is not there, or is in a subgraph; or one that the outputs need, and that
            does not follow from the inputs.
    """
    if graph.parent is not None:
        raise InvalidOption(
            f"{graph.parent.label} runs {graph!r}: a part of that is no graph alone"
        )
    given = graph.inputs if inputs is None else _values(graph, inputs)
    wanted = _values(graph, outputs)
    copy = Copy(only=_needed(graph, given, wanted))
    result = copy.empty(graph, None)
    for value in given:
        taken = copy.value(value, result)
        taken.encoding, taken.index = None, 0
        if not value.is_input:  # What its elements are follows from what is not here.
            taken.contents = None
        result.inputs.append(taken)
    copy.fill(result, graph, None)
    result.set_outputs([copy.values[v] for v in wanted])
    return result


def reads(node: Node) -> list[Value | None]:
    """Operands of a node and of everything in its subgraphs."""
    found = list(node.inputs)
    for sub in node.subgraphs:
        for inner in sub.all_graphs():
            found += inner.outputs
            for reader in inner.nodes:
                found += reader.inputs
    return found


def _values(graph: Graph, wanted: Sequence[Value | str]) -> list[Value]:
    names = {value.name: value for value in graph.values()}
    values: dict[Value, None] = {}
    for item in wanted:
        name = item.name if isinstance(item, Value) else item
        value = names.get(name)
        if value is None:
            raise InvalidOption(_why_not(graph, name, names))
        if isinstance(item, Value) and item is not value:
            raise InvalidOption(f"%{name} belongs to another graph than {graph.name}")
        values[value] = None
    return list(values)


def _why_not(graph: Graph, name: str, names: Mapping[str, Value]) -> str:
    for node in graph.nodes:
        for sub in node.subgraphs:
            if any(v.name == name for inner in sub.all_graphs() for v in inner.values()):
                return f"%{name} is inside {node.label}, and exists only while that runs"
    return f"graph {graph.name} has no value %{name}{suggest(name, names)}"


def _needed(graph: Graph, given: Sequence[Value], wanted: Sequence[Value]) -> set[Node | Value]:
    """Nodes and constants outside subgraphs that ``wanted`` depends on."""
    needed: set[Node | Value] = set()
    seen = set(given)
    work: list[tuple[Value, str]] = [(value, "an output") for value in wanted]
    while work:
        value, reader = work.pop()
        if value in seen or value.graph is not graph:
            continue
        seen.add(value)
        if value.is_constant:
            needed.add(value)
        elif value.producer is None:
            raise InvalidOption(
                f"%{value.name} is needed for {reader}, but is not among the inputs"
            )
        elif value.producer not in needed:
            node = value.producer
            needed.add(node)
            work += [(v, node.label) for v in reads(node) if v is not None]
    return needed
