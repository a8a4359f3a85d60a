"""Cutting a vocabulary: rows of its tables, columns of the projections onto it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tersor.analysis.match import operand, producer_if
from tersor.analysis.vocabulary import Head, Vocabulary
from tersor.ir import Encoding, Graph, Node, Value

Cut = dict[tuple[object, ...], tuple[Encoding, int]]
"""What is left of matrices by the memory that held them, and the axis that was cut: what is tied to one
reads the same."""


def cut_tables(vocabulary: Vocabulary, kept: np.ndarray, cut: Cut | None = None) -> None:
    """The lookups read tables of the rows ``kept``; whole tables go, where nothing else reads them."""
    done = {} if cut is None else cut
    parts = {table: _part(table, kept, 0, done) for table in vocabulary.tables}
    for item in vocabulary.lookups:
        _read(item.node, item.table, parts[operand(item.node, item.table)])


def cut_heads(heads: Sequence[Head], kept: np.ndarray, cut: Cut | None = None) -> None:
    """Leaves the columns ``kept`` of projections and of their biases, and types their results anew.

    ``cut``: what :func:`cut_tables` left, for heads that are tied to tables.
    """
    done = {} if cut is None else cut
    parts: dict[Value, Value] = {}
    for head in heads:
        node, weight = head.node, operand(head.node, 1)
        if weight not in parts:
            parts[weight] = _part(weight, kept, 1, done)
        _read(node, 1, parts[weight])
        if node.input(2) is not None:
            cut_last_axis(node, 2, kept)
        assert node.graph is not None
        node.graph.infer(node)


def cut_last_axis(node: Node, index: int, kept: np.ndarray) -> None:
    """Leaves the positions ``kept`` of the last axis of a constant operand."""
    constant = operand(node, index)
    axis = constant.tensor.rank - 1  # type: ignore[operator]
    _read(node, index, _part(constant, kept, axis, {}))


def _part(whole: Value, kept: np.ndarray, axis: int, cut: Cut) -> Value:
    """A constant of the positions ``kept`` of an axis of a constant or of the transpose of one."""
    transpose = producer_if(whole, "Transpose")
    held = whole if transpose is None else operand(transpose, 0)
    assert held.encoding is not None
    encoding = held.encoding if transpose is None else held.encoding.permute((1, 0))
    square = len(set(encoding.type.shape)) == 1  # Which does not tell which way it lies.
    if square or encoding.place not in cut:
        cut[encoding.place] = encoding.take(kept, axis), axis
    part, along = cut[encoding.place]
    return held.graph.constant(part if along == axis else part.permute((1, 0)), held.name)


def _read(node: Node, index: int, part: Value) -> None:
    """Operand ``index`` becomes ``part``; what it was goes, if nothing else reads it."""
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
    """``table``[ids], made where ``ids`` are."""
    graph = ids.graph
    with graph.at(node_after(graph, ids.producer)):
        return graph.emit("Gather", [table, ids], {"axis": 0}, scope="")


def node_after(graph: Graph, node: Node | None) -> Node | None:
    """The node after ``node``; None where that is the last. The first, where ``node`` is None."""
    nodes = iter(graph.nodes)
    if node is not None:
        next(n for n in nodes if n is node)
    return next(nodes, None)
