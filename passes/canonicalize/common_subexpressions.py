"""Merges equal nodes with equal operands, and equal constants."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tersor.analysis.insertion import enclosing_graphs
from tersor.ir import Encoding, Graph, Node, Value
from tersor.ops import TABLE
from tersor.pipeline import EXACT, Context, Pass, replace_node

SAMPLE = 16  # Numbers of a constant to compare before all of it is read.
SHARED_BYTES = 1024  # Smaller constants (axes, shapes) are not shared across subgraphs.


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """No options. Nodes are merged within each (sub)graph only. Weights that are equal in several branches
    move to the innermost graph around these."""

    keeps = EXACT

    def run(self, graph: Graph, context: Context) -> None:
        for owner in list(graph.all_graphs()):
            self._constants(owner, context)
            seen: dict[tuple[object, ...], Node] = {}
            for node in owner.nodes:
                key = _key(node)
                if key is None:
                    continue
                first = seen.setdefault(key, node)
                if first is not node:
                    if not context.may_rewrite():
                        return
                    replace_node(node, first.outputs)
                    context.rewrote()
        self._weights(graph, context)

    def _weights(self, graph: Graph, context: Context) -> None:
        graphs = list(graph.all_graphs())
        if len(graphs) < 2:
            return
        large = [c for g in graphs for c in g.constants.values() if _bytes(c) >= SHARED_BYTES]
        samples = Counter(map(_sample, large))
        equal: dict[tuple[object, ...], list[Value]] = {}
        for constant in large:
            if constant.encoding is not None and samples[_sample(constant)] > 1:
                key = (str(constant.type), constant.encoding.digest)
                equal.setdefault(key, []).append(constant)
        for constants in equal.values():
            if len(constants) > 1 and context.may_rewrite():
                _share(constants)
                context.rewrote()

    def _constants(self, graph: Graph, context: Context) -> None:
        seen: dict[tuple[object, ...], str] = {}
        samples = Counter(_sample(c) for c in graph.constants.values())
        for constant in list(graph.constants.values()):
            encoding = constant.encoding
            assert encoding is not None
            if (
                samples[_sample(constant)] < 2
            ):  # Differs from all others already: no need to read the rest.
                continue
            key = (str(constant.type), encoding.digest)
            first = seen.setdefault(key, constant.name)
            if first != constant.name and context.may_rewrite():
                graph.replace(constant, graph.constants[first])
                graph.erase_constant(constant)
                context.rewrote()


def _share(constants: list[Value]) -> None:
    """Replaces equal constants of different graphs by one in the innermost graph that encloses them all."""
    around = [enclosing_graphs(c.graph) for c in constants]
    common = next(g for g in around[0] if all(g in graphs for graphs in around))
    shared = next((c for c in constants if c.graph is common), None)
    if shared is None:
        assert constants[0].encoding is not None
        shared = common.constant(constants[0].encoding, constants[0].name)
    for constant in constants:
        if constant is not shared:
            constant.graph.replace(constant, shared)
            constant.graph.erase_constant(constant)


def _bytes(constant: Value) -> int:
    return constant.encoding.nbytes if constant.encoding is not None else 0


def _sample(constant: Value) -> tuple[str, str]:
    """A cheap key that equal constants share: the type and the first few numbers."""
    few = constant.numpy().flat[:SAMPLE].tolist() if constant.is_dense else []
    return str(constant.type), repr(few)


def _key(node: Node) -> tuple[object, ...] | None:
    row = TABLE.get(node.op)
    if row is None or not row.deterministic or node.subgraphs:
        return None
    inputs = [0 if v is None else id(v) for v in node.inputs]
    if row.commutative and len(inputs) == 2:
        inputs.sort()
    attrs = tuple(
        (k, a.digest if isinstance(a, Encoding) else repr(a)) for k, a in sorted(node.attrs.items())
    )
    return node.op, tuple(inputs), attrs, len(node.outputs)
