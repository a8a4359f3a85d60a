"""What is in a graph, as plain data: interface, ops, parameters, work, weights, modules."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tersor.analysis.match import has_trait
from tersor.ir import DType, Encoding, Graph, Node, Value
from tersor.ir.dims import KnownDim, TooComplex

LABELS = "id2label"  # Key of the metadata that tells them, as JSON of label by number.
MAX_SCOPE_DEPTH = 8  # Modules below this count in the one they lie in.
# Integers of these widths are shapes, indices and ids, not learned numbers.
_NOT_LEARNED = {DType.I64, DType.I32, DType.U64, DType.U32, DType.BOOL, DType.STRING}


@dataclass(frozen=True)
class Weight:
    """A constant: its shape, how it is held (``f32``, ``affine(i8, axis=1)``), bytes so."""

    name: str
    shape: tuple[int, ...]
    held: str
    bytes: int


@dataclass(frozen=True)
class Scope:
    """A module and all below it: numbers of the weights that its nodes are the first to read."""

    path: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """A graph in numbers, subgraphs included.

    Attributes:
        inputs, outputs: (name, type) in order.
        nodes: how many.
        ops: how many nodes of each op, most first.
        parameters: elements of all constants but shapes, indices and masks.
        weight_bytes: bytes of all constants as encoded.
        macs: multiply-adds of one run, in the inputs' open dims, of the nodes where they are known.
        unknown_macs: how many nodes of each op do work that nobody knows; ``macs`` is without them.
        largest: constants, largest first.
        scopes: modules in the order of the graph.
        labels: what the columns of its scores are called, by number, where its metadata tells.
    """

    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    nodes: int
    ops: dict[str, int]
    parameters: int
    weight_bytes: int
    macs: KnownDim
    unknown_macs: dict[str, int] = field(default_factory=dict)
    largest: list[Weight] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)


def summarize(graph: Graph) -> Summary:
    """The numbers of ``graph``; weights that are held twice count twice, as they do in a file."""
    inputs, outputs = graph.signature()
    ops = Counter(node.op for node in graph.walk())
    constants = [(v, v.encoding) for v in _constants(graph) if v.encoding is not None]
    macs, unknown = _macs(graph)
    largest = [_weight(value, encoding) for value, encoding in constants]
    return Summary(
        inputs=[(name, str(type)) for name, type in inputs],
        outputs=[(name, str(type)) for name, type in outputs],
        nodes=ops.total(),
        ops=_most_first(ops),
        parameters=sum(_parameters(e) for _, e in constants),
        weight_bytes=sum(e.nbytes for _, e in constants),
        macs=macs,
        unknown_macs=_most_first(unknown),
        largest=sorted(largest, key=lambda w: (-w.bytes, w.name)),
        scopes=_scopes(graph),
        labels=_labels(graph),
    )


def _labels(graph: Graph) -> dict[str, str]:
    try:
        found = json.loads(graph.metadata.get(LABELS, "{}"))
        return {str(number): str(label) for number, label in found.items()}
    except (ValueError, AttributeError, RecursionError):  # The file may be anyone's.
        return {}


def _most_first(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _constants(graph: Graph) -> Iterator[Value]:
    for inner in graph.all_graphs():
        yield from inner.constants.values()


def _parameters(encoding: Encoding) -> int:
    type = encoding.type
    count = type.numel
    assert isinstance(count, int), "a constant's shape is known"
    return 0 if type.dtype in _NOT_LEARNED else count


def _weight(value: Value, encoding: Encoding) -> Weight:
    described = encoding.describe()
    held = encoding.type.dtype.value if described == "dense" else described
    return Weight(value.name, encoding.type.shape, held, encoding.nbytes)


def _macs(graph: Graph) -> tuple[KnownDim, Counter[str]]:
    """Multiply-adds that are known, and the ops of nodes where they are not."""
    from tersor.ops import TABLE  # Loads onnx's schemas, which `import tersor` does without.

    known: KnownDim = 0
    unknown: Counter[str] = Counter()
    for node in graph.walk():
        macs = TABLE.cost(node).macs
        # A loop's body runs as often as only the run itself tells.
        if macs is None or (_repeats(node) and macs != 0):
            unknown[node.op] += 1
            continue
        try:
            known = known + macs
        except TooComplex:
            unknown[node.op] += 1
    return known, unknown


def _repeats(node: Node) -> bool:
    graph = node.graph
    while graph is not None and graph.parent is not None:
        if has_trait(graph.parent, "loop"):
            return True
        graph = graph.outer
    return False


def _scopes(graph: Graph) -> list[Scope]:
    parameters: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for node in graph.walk():
        for path in _prefixes(node.scope):
            parameters.setdefault(path, 0)
            sizes.setdefault(path, 0)
    for value in _constants(graph):
        readers = [use.user.scope for use in value.uses if isinstance(use.user, Node)]
        if value.encoding is None or not readers:
            continue
        for path in _prefixes(readers[0]):
            parameters[path] += _parameters(value.encoding)
            sizes[path] += value.encoding.nbytes
    return [Scope(path, count, sizes[path]) for path, count in parameters.items()]


def _prefixes(scope: str) -> list[str]:
    """``a.b.c`` is in a, a.b and a.b.c; no scope is a module of its own, called by the empty name."""
    if not scope:
        return [""]
    parts = scope.split(".", MAX_SCOPE_DEPTH)[:MAX_SCOPE_DEPTH]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
