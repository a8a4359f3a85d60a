"""Products on [batch * heads, length, d], as bmm takes them, to products on [batch, heads, length, d].

    split(merge(q) merge(k)^T * c + merge(bias))  =  q k^T * c + bias
    merge: [b, h, s, t] -> [b*h, s, t],   split: its inverse

A Reshape that splits them moves up through ops that treat batch and heads alike, until it cancels out with
the Reshape that merged them (BART, OPT and BLOOM; torch's own attention merges them as the second axis,
behind the length).  A bias that was not merged, as in DeBERTa, is split where it is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import dims, has_one_use, has_trait, operand, producer_if, rank
from tersor.ir import Dim, Graph, Node, Value
from tersor.ir.dims import product
from tersor.ir.node import Attribute
from tersor.pipeline import EXACT, Pass, Rewrite
from tersor.transforms.reshapes import reshaped
from tersor.transforms.sizes import size_from_inputs

# Emits the split value; called only if all its operands can be split.
Emit = Callable[[], Value]


@dataclass(frozen=True)
class UnfoldHeads(Pass):
    """No options."""

    keeps = EXACT

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op == "MatMul":
            return _product(graph, node)
        if node.op != "Reshape":
            return None
        whole = operand(node, 0)
        merged, parts = dims(whole), dims(node.output)
        if merged is None or parts is None or len(merged) != 3 or len(parts) != 4:
            return None
        for axis in (0, 1):
            pair = parts[axis], parts[axis + 1]
            rest = merged[:axis] + merged[axis + 1 :] == parts[:axis] + parts[axis + 2 :]
            if rest and None not in parts and merged[axis] == product(pair):
                emit = _Split(graph, pair).of(whole, axis)
                return None if emit is None else emit()
        return None


def _product(graph: Graph, node: Node) -> Rewrite:
    """Attention weights times values that no Reshape splits: torch's attention merges its heads in one
    step."""
    weights, values = operand(node, 0), operand(node, 1)
    swap, have = producer_if(values, "Transpose"), dims(node.output)
    if producer_if(weights, "Softmax") is None or swap is None or have is None or len(have) != 3:
        return None
    merged = producer_if(operand(swap, 0), "Reshape")
    before = dims(operand(merged, 0)) if merged is not None else None
    if before is None or len(before) != 3 or None in have:
        return None
    width, size = before[2], have[2]
    if not isinstance(width, int) or not isinstance(size, int) or not size or width % size:
        return None
    pair = before[1], width // size
    split = _Split(graph, pair)
    operands = [split.of(value, 0) for value in (weights, values)]
    if have[0] != product(pair) or not all(operands):
        return None
    shape = graph.emit("Shape", [values], {"start": 0, "end": 1})
    heads = graph.emit("MatMul", [emit() for emit in operands if emit])
    rest = graph.emit("Shape", [heads], {"start": 2, "end": 4})
    return graph.emit("Reshape", [heads, graph.emit("Concat", [shape, rest], {"axis": 0})])


@dataclass(frozen=True)
class _Split:
    """Splits an axis of rank-3 values into the two dims ``pair``."""

    graph: Graph
    pair: tuple[Dim, Dim]

    def of(self, value: Value, axis: int) -> Emit | None:
        """``value`` with ``axis`` split; None if it was not merged from them."""
        node, have = value.producer, dims(value)
        if node is None or have is None or len(have) != 3 or have[axis] != product(self.pair):
            return None
        if node.op == "Reshape":
            before = operand(node, 0)
            parts = (*have[:axis], *self.pair, *have[axis + 1 :])
            if dims(before) == parts:
                return lambda: before
            (batch, heads), size = self.pair, have[2]
            if axis != 1 or not isinstance(heads, int) or not isinstance(size, int):
                return None
            if dims(before) != (have[0], batch, heads * size):
                return None
            return lambda: reshaped(self.graph, before, [0, 0, heads, size])
        if not has_one_use(value):
            return None
        if node.op == "Transpose":
            return self._transpose(node, axis)
        if node.op == "Softmax":
            last = node.attrs["axis"] in (-1, 2) and axis < 2
            x = self.of(operand(node, 0), axis) if last else None
            return self._like(node, [x], {**node.attrs, "axis": 3}) if x else None
        if node.op == "MatMul":
            both = [self.of(operand(node, i), axis) for i in (0, 1)]
            return self._like(node, both, {}) if all(both) and axis == 0 else None
        if not has_trait(node, "elementwise") or None in node.inputs or len(node.outputs) > 1:
            return None
        return self._elementwise(node, axis)

    def _transpose(self, node: Node, axis: int) -> Emit | None:
        written = node.attrs.get("perm")
        if not isinstance(written, tuple):
            return None
        perm = [int(p) for p in written if isinstance(p, int)]
        at = perm[axis]
        x = self.of(operand(node, 0), at)
        if x is None:
            return None
        wide = [p + (p > at) for p in perm]
        wide.insert(axis + 1, at + 1)
        return self._like(node, [x], {"perm": tuple(wide)})

    def _elementwise(self, node: Node, axis: int) -> Emit | None:
        """At least one operand must have been merged; the others are split by a Reshape."""
        strict = [self.of(operand(node, i), axis) for i in range(len(node.inputs))]
        if not any(strict):
            return None
        operands = [emit or self._reshaped(operand(node, i), axis) for i, emit in enumerate(strict)]
        return self._like(node, operands, node.attrs) if all(operands) else None

    def _reshaped(self, value: Value, axis: int) -> Emit | None:
        """``value`` with the axis split by a Reshape, unless it broadcasts along it."""
        have, size = dims(value), rank(value)
        if have is None or size is None:
            return None
        if size < 3 - axis:
            return lambda: value
        at = axis - (3 - size)
        if have[at] == 1:
            axes = np.array([at])
            return lambda: self.graph.emit("Unsqueeze", [value, self._constant(axes)])
        known = [self._size(dim) for dim in self.pair]
        if have[at] != product(self.pair) or None in known:
            return None

        def emit() -> Value:
            sizes = [size() for size in known if size is not None]
            ends = ((0, at), (at + 1, size))
            before, behind = (
                [self.graph.emit("Shape", [value], {"start": a, "end": b})] if a < b else []
                for a, b in ends
            )
            target = self.graph.emit("Concat", [*before, *sizes, *behind], {"axis": 0})
            return self.graph.emit("Reshape", [value, target])

        return emit

    def _size(self, dim: Dim) -> Emit | None:
        if isinstance(dim, int):
            return lambda: self._constant(np.array([dim]))
        size = size_from_inputs(self.graph, dim)
        return None if size is None else lambda: size

    def _constant(self, numbers: np.ndarray) -> Value:
        return self.graph.constant(numbers, "sizes")

    def _like(
        self, node: Node, operands: Sequence[Emit | None], attrs: Mapping[str, Attribute]
    ) -> Emit:
        return lambda: self.graph.emit(
            node.op, [emit() for emit in operands if emit], attrs, scope=node.scope
        )
