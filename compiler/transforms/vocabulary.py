"""Cutting a vocabulary: rows of its tables, columns of projections onto it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.analysis.match import operand, producer_if
from tersor.analysis.vocabulary import Head, Vocabulary
from tersor.ir import Encoding, Graph, Node, Value

Cut = dict[tuple[object, ...], tuple[Encoding, int]]
"""(remaining matrix, cut axis) by the memory of the whole one, so that tied weights stay tied."""


def cut_tables(vocabulary: Vocabulary, kept: np.ndarray, cut: Cut | None = None) -> None:
    """Cuts the tables that the vocabulary's lookups read to the rows ``kept``; erases unused whole ones."""
    done = {} if cut is None else cut
    parts = {table: _part(table, kept, 0, done) for table in vocabulary.tables}
    for item in vocabulary.lookups:
        _set_operand(item.node, item.table, parts[operand(item.node, item.table)])


def cut_heads(heads: Sequence[Head], kept: np.ndarray, cut: Cut | None = None) -> None:
    """Keeps the columns ``kept`` of projections and of their biases, and reinfers the types of their results.

    ``cut``: the one filled by :func:`cut_tables`, for heads that are tied to tables.
    """
    done = {} if cut is None else cut
    parts: dict[Value, Value] = {}
    for head in heads:
        node, weight = head.node, operand(head.node, 1)
        if weight not in parts:
            parts[weight] = _part(weight, kept, 1, done)
        _set_operand(node, 1, parts[weight])
        if node.input(2) is not None:
            cut_last_axis(node, 2, kept)
        assert node.graph is not None
        node.graph.infer(node)


def cut_last_axis(node: Node, index: int, kept: np.ndarray) -> None:
    """Keeps the positions ``kept`` of the last axis of a constant operand."""
    constant = operand(node, index)
    axis = constant.tensor.rank - 1  # type: ignore[operator]
    _set_operand(node, index, _part(constant, kept, axis, {}))


def _part(whole: Value, kept: np.ndarray, axis: int, cut: Cut) -> Value:
    """The positions ``kept`` of an axis of a constant, or of the transpose of one, as a constant."""
    transpose = producer_if(whole, "Transpose")
    stored = whole if transpose is None else operand(transpose, 0)
    assert stored.encoding is not None
    encoding = stored.encoding if transpose is None else stored.encoding.permute((1, 0))
    square = len(set(encoding.type.shape)) == 1  # Its shape does not determine its layout.
    if square or encoding.place not in cut:
        cut[encoding.place] = encoding.take(kept, axis), axis
    part, along = cut[encoding.place]
    return stored.graph.constant(part if along == axis else part.permute((1, 0)), stored.name)


def _set_operand(node: Node, index: int, part: Value) -> None:
    """Sets operand ``index`` to ``part`` and erases the old one if it is now unused."""
    assert node.graph is not None
    old = operand(node, index)
    node.graph.set_input(node, index, part)
    if (transpose := old.producer) is not None and not old.uses:
        table = operand(transpose, 0)
        old.graph.erase(transpose)
        _erase_unread(table)
    _erase_unread(old)


def _erase_unread(constant: Value) -> None:
    if constant.is_constant and not constant.uses:
        constant.graph.erase_constant(constant)


def gather_rows(table: Value, ids: Value) -> Value:
    """``table[ids]``, emitted right after ``ids``."""
    graph = ids.graph
    with graph.at(node_after(graph, ids.producer)):
        return graph.emit("Gather", [table, ids], {"axis": 0}, scope="")


def node_after(graph: Graph, node: Node | None) -> Node | None:
    """The node after ``node``, None after the last; the first for None."""
    nodes = iter(graph.nodes)
    if node is not None:
        next(n for n in nodes if n is node)
    return next(nodes, None)
