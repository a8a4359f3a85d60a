"""Fuses a sum of embeddings with its layer normalization.

    LayerNormalization(word[ids] + position[places] + row)
      ->  EmbeddingLayerNormalization(ids, word, places, position + row)

Tables are sorted by size, largest first; a constant row (the token type of single sentences) is added to
every row of the smallest table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import dims, operand, producer_if, rank
from tersor.ir import Graph, Node, Value
from tersor.pipeline import ROUNDING, Pass, Rewrite, Skip


@dataclass(frozen=True)
class FuseEmbeddingNorm(Pass):
    """No options."""

    keeps = ROUNDING

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op != "LayerNormalization" or len(node.inputs) < 3:
            return None
        lookups, rows = _terms(operand(node, 0))
        if len(lookups) < 2 or node.attrs["axis"] not in (-1, (rank(node.output) or 0) - 1):
            return None
        if any(v.uses for v in node.outputs[1:]):
            raise Skip("its mean or deviation is used")
        pairs = sorted(
            ((operand(n, 1), operand(n, 0)) for n in lookups), key=lambda p: -p[1].tensor.shape[0]
        )
        _check(node, pairs, rows)
        ids, table = pairs[-1]
        if rows:
            total = table.numpy() + sum(r.numpy().reshape(-1) for r in rows)
            pairs[-1] = (ids, graph.constant(total.astype(table.numpy().dtype), table.name))
        operands = [operand(node, 1), operand(node, 2), *(v for pair in pairs for v in pair)]
        attrs = {"epsilon": node.attrs["epsilon"]}
        name = node.output.name
        return graph.emit("tersor.EmbeddingLayerNormalization", operands, attrs, name=name)


def _check(node: Node, pairs: list[tuple[Value, Value]], rows: list[Value]) -> None:
    size = pairs[0][1].tensor.shape[1]
    if any(table.tensor.shape[1] != size for _, table in pairs):
        raise Skip("its tables have different widths")
    if any(v is None or dims(v) != (size,) for v in node.inputs[1:]):
        raise Skip("its scale or bias is not a vector of the last axis")
    if any(row.tensor.shape[-1] not in (1, size) for row in rows):
        raise Skip("a constant row is not as wide as the tables")
    ranks = [rank(ids) for ids, _ in pairs]
    if None in ranks or rank(node.output) != 1 + max(r or 0 for r in ranks):
        raise Skip("the sum has more axes than the lookups")


def _terms(value: Value) -> tuple[list[Node], list[Value]]:
    """The lookups and constant rows that add up to ``value``; empty if there are other addends."""
    lookups: list[Node] = []
    rows: list[Value] = []
    work = [value]
    while work:
        term = work.pop()
        add = producer_if(term, "Add")
        gather = producer_if(term, "Gather")
        if add is not None and not term.is_output and len(term.uses) == 1:
            work += [operand(add, 1), operand(add, 0)]
        elif gather is not None and _is_lookup(gather):
            lookups.append(gather)
        elif term.is_constant and _is_row(term):
            rows.append(term)
        else:
            return [], []
    return lookups, rows


def _is_lookup(gather: Node) -> bool:
    table = operand(gather, 0)
    return table.is_constant and table.tensor.rank == 2 and gather.attrs["axis"] == 0


def _is_row(value: Value) -> bool:
    shape = value.tensor.shape
    return bool(shape) and int(np.prod(shape[:-1])) == 1
