"""A summary of a graph as plain data: interface, ops, parameters, work, weights, modules."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tersor.analysis.match import has_trait
from tersor.ir import DType, Encoding, Graph, Node, Value
from tersor.ir.dims import KnownDim, TooComplex

LABELS = "id2label"  # Metadata key: a JSON object of labels by index.
MAX_SCOPE_DEPTH = 8  # Deeper modules count in their ancestor at this depth.
# Constants of these types are shapes, indices and ids, not parameters.
_NOT_LEARNED = {DType.I64, DType.I32, DType.U64, DType.U32, DType.BOOL, DType.STRING}


@dataclass(frozen=True)
class Weight:
    """A constant: its shape, encoding (``f32``, ``affine(i8, axis=1)``) and encoded bytes."""

    name: str
    shape: tuple[int, ...]
    form: str
    bytes: int


@dataclass(frozen=True)
class Scope:
    """A module with its submodules. A shared weight counts where it is first used."""

    path: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """A graph in numbers, subgraphs included.

    Attributes:
        inputs, outputs: (name, type) in order.
        nodes: their number.
        ops: number of nodes of each op, most frequent first.
        parameters: elements of all constants but shapes, indices and masks.
        weight_bytes: encoded bytes of all constants.
        macs: multiply-adds of one run as an expression of the open dims, without ``unknown_macs``.
        unknown_macs: number of nodes of each op whose work is unknown.
        largest: constants, largest first.
        scopes: modules in graph order.
        labels: names of the output classes by index, from the metadata.
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
    """Summarizes ``graph``; a weight stored twice counts twice, as it does in a file."""
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
        labels = json.loads(graph.metadata.get(LABELS, "{}"))
        return {str(index): str(label) for index, label in labels.items()}
    except (ValueError, AttributeError, RecursionError):  # Metadata is untrusted.
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
    form = encoding.type.dtype.value if described == "dense" else described
    return Weight(value.name, encoding.type.shape, form, encoding.nbytes)


def _macs(graph: Graph) -> tuple[KnownDim, Counter[str]]:
    """The known multiply-adds, and the ops of nodes where they are unknown."""
    from tersor.ops import TABLE  # Loads onnx's schemas, which `import tersor` does without.

    known: KnownDim = 0
    unknown: Counter[str] = Counter()
    for node in graph.walk():
        macs = TABLE.cost(node).macs
        # The trip count of a loop is unknown.
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
    """``a.b.c`` -> a, a.b, a.b.c; nodes without a scope are in a module with an empty name."""
    if not scope:
        return [""]
    parts = scope.split(".", MAX_SCOPE_DEPTH)[:MAX_SCOPE_DEPTH]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
