"""The op table: rows by op, and the queries of graphs, passes and analyses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from tersor.errors import InvalidGraph, first_line, suggest
from tersor.ir import Attribute, Dim, Graph, Node, TensorType, UnknownType, Value, ValueType
from tersor.ir.dims import LARGEST, KnownDim, TooComplex, ceil_div, dim_array
from tersor.ops import onnx_schema
from tersor.ops.opdef import Cost, Cut, Follow, OpDef, Quantizer, Tie, Trait, Weight

# What a row's functions may raise on invalid operands: they assume what the schema guarantees, which is
# less than what an op requires.
_MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


class Table:
    """Rows by op name. An op without a row or a schema is opaque: it passes through unchanged."""

    def __init__(self, rows: list[OpDef]) -> None:
        self._rows: dict[str, OpDef] = {}
        for row in rows:
            if row.op in self._rows:
                raise ValueError(f"two rows for {row.op}")
            self._rows[row.op] = row

    def __iter__(self) -> Iterator[OpDef]:
        return iter(self._rows.values())

    def __contains__(self, op: str) -> bool:
        return op in self._rows

    def get(self, op: str) -> OpDef | None:
        """The row of ``op``; None for ops without one."""
        return self._rows.get(op)

    def has(self, op: str, trait: Trait) -> bool:
        """Whether the row of ``op`` has the trait."""
        row = self._rows.get(op)
        return row is not None and trait in row.traits

    def is_opaque(self, op: str) -> bool:
        """Whether ``op`` has neither a row nor an ONNX schema."""
        return op not in self._rows and onnx_schema.schema(op) is None

    # -- for ir.Graph ------------------------------------------------------------------------------

    def complete(self, op: str, attrs: Mapping[str, Attribute]) -> dict[str, Attribute]:
        """``attrs`` with defaults filled in and numbers rounded as by :func:`onnx_schema.as_written`.

        Raises:
            InvalidGraph: an unknown or missing attribute.
        """
        row = self._rows.get(op)
        attrs = {k: onnx_schema.as_written(v) for k, v in attrs.items()}
        if row is None or not op.startswith("tersor."):
            onnx_schema.check_attributes(op, attrs)
            return {**onnx_schema.defaults(op), **attrs}
        for name in attrs:
            if name not in row.attrs:
                raise InvalidGraph(f"{op} has no attribute {name!r}{suggest(name, row.attrs)}")
        for name, default in row.attrs.items():
            if isinstance(default, type) and name not in attrs:
                raise InvalidGraph(f"{op} needs the attribute {name!r}")
        given = {k: v for k, v in row.attrs.items() if not isinstance(v, type)}
        return {**given, **attrs}

    def infer(self, node: Node) -> list[tuple[ValueType, np.ndarray | None]]:
        """Type and symbolic contents of each output.

        Raises:
            InvalidGraph: invalid operands or attributes.
        """
        onnx_schema.check_operands(node)
        try:
            return self._infer(node)
        except _MISFITS as error:
            raise InvalidGraph(
                f"{node.label}: {node.op} does not take these operands and attributes "
                f"({first_line(error)})"
            ) from error

    def _infer(self, node: Node) -> list[tuple[ValueType, np.ndarray | None]]:
        row = self._rows.get(node.op)
        types = _infer(node, row)
        contents = _contents(node, row, len(types))
        pairs = zip(types, contents, strict=True)
        refined = [(_refined(type, known), known) for type, known in pairs]
        for type, _ in refined:
            _check_dims(node, type)
        return refined

    # -- for passes and analyses -------------------------------------------------------------------

    def cost(self, node: Node) -> Cost:
        """The work of a node; unknown if its row has no cost, or needs the dims of a value that is not
        known to be a tensor (an opaque op's result, a sequence)."""
        row = self._rows.get(node.op)
        if row is None or row.cost is None:
            return Cost(None, None)
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        known = all(isinstance(v.type, TensorType) for v in values)
        try:
            cost = row.cost(node)
        except TooComplex:
            return Cost(None, None)
        except TypeError:  # From Value.tensor.
            if known:
                raise
            return Cost(None, None)
        moved = 0 if "view" in row.traits else _bytes(values) if known else None
        return replace(cost, bytes=moved)

    def ties(self, node: Node) -> list[Tie] | None:
        """Axes tied by a node; None if unknown (also if the rank of an operand or result is), so that all
        are pinned."""
        row = self._rows.get(node.op)
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        if row is None or row.ties is None or not all(map(_has_rank, values)):
            return None
        with suppress(TooComplex):
            return row.ties(node)
        return None

    def weights(self, node: Node) -> Sequence[Weight]:
        """The operands that are the node's weights if they are constants."""
        row = self._rows.get(node.op)
        return row.weights(node) if row is not None and row.weights is not None else ()

    def quantizers(self, node: Node) -> list[Quantizer]:
        """The operands that quantizers may stand before: the weights, along the axes of their matrices, and
        then the others. Nothing is summed of a table, whose rows are picked."""
        row = self._rows.get(node.op)
        others = row.quantizers(node) if row is not None and row.quantizers is not None else ()
        weights = [
            Quantizer(form.operand, () if form.looked_up else form.inputs)
            for form in self.weights(node)
        ]
        return [*weights, *others]

    def bound(self, node: Node) -> list[tuple[tuple[Value, int], ...]]:
        """Axes of values that are the same inside and outside the node's subgraphs."""
        row = self._rows.get(node.op)
        return row.bound(node) if row is not None and row.bound is not None else []

    def follow(self, node: Node, cut: Cut) -> Follow:
        """What else of a node changes when positions are cut.

        Raises:
            Unsupported: a size is stated by an operand that is not constant.
        """
        row = self._rows.get(node.op)
        return row.follow(node, cut) if row is not None and row.follow is not None else Follow()

    def straight_through(self, node: Node) -> Graph | None:
        """What stands in for the node's first result where gradients are taken: a graph of its operands and
        then its results, without those that are left out. None: its own gradient serves.

        Raises:
            Unsupported: there is none for these operands; says why.
        """
        row = self._rows.get(node.op)
        if row is None or row.straight_through is None:
            return None
        graph = self.graph("straight_through")
        operands = [
            None if v is None else graph.add_input(f"x{i}", v.type)
            for i, v in enumerate(node.inputs)
        ]
        results = [graph.add_input(f"y{i}", v.type) for i, v in enumerate(node.outputs)]
        found = row.straight_through(node, graph, operands, results)
        if found is None:
            return None
        graph.set_outputs([found])
        return graph

    def graph(self, name: str = "main", outer: Graph | None = None) -> Graph:
        """An empty graph over this table."""
        return Graph(name, self, outer)


def _has_rank(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dims is not None


def _infer(node: Node, row: OpDef | None) -> list[ValueType]:
    if row is None or row.infer is None:
        return onnx_schema.infer(node)
    if _reads_unknown(node):
        return [UnknownType() for _ in node.outputs]
    try:
        types = list(row.infer(node))
    except TooComplex:
        return onnx_schema.infer(node)
    return types + [UnknownType() for _ in node.outputs[len(types) :]]


def _reads_unknown(node: Node) -> bool:
    """Whether an operand is an opaque op's result, of which rows know nothing."""
    return any(v is not None and isinstance(v.type, UnknownType) for v in node.inputs)


def _bytes(values: Sequence[Value]) -> Dim:
    """The bytes of all values, each read or written once; of constants as encoded."""
    total: KnownDim = 0
    with suppress(TooComplex):
        for value in values:
            count = value.tensor.numel
            if count is None:
                return None
            size = count * value.tensor.dtype.bits
            total = total + (size if value.encoding is None else value.encoding.nbytes * 8)
        return ceil_div(total, 8)
    return None


def _contents(node: Node, row: OpDef | None, count: int) -> list[np.ndarray | None]:
    """The contents by the row; unknown if that fails, because nothing requires them."""
    if row is None or row.contents is None or _reads_unknown(node):
        return [None] * count
    try:
        return [_bounded(contents) for contents in row.contents(node)]
    except _MISFITS:
        return [None] * count


def _bounded(contents: np.ndarray | None) -> np.ndarray | None:
    """Integers of more than 64 bits become unknown: runtimes differ in overflow, and a chain of products
    would double their length at every step."""
    if contents is None:
        return None

    def bounded(item: Dim) -> Dim:
        return None if isinstance(item, int) and not -LARGEST - 1 <= item <= LARGEST else item

    return dim_array([bounded(item) for item in contents.flat], contents.shape)


def _check_dims(node: Node, type: ValueType) -> None:
    dims = type.dims if isinstance(type, TensorType) else None
    if any(isinstance(d, int) and d > LARGEST for d in dims or ()):
        raise InvalidGraph(f"{node.label}: a dim of its result is over {LARGEST}")


def _refined(type: ValueType, contents: np.ndarray | None) -> ValueType:
    """The contents' shape is exact: it fills in unknown dims."""
    if contents is None or not isinstance(type, TensorType):
        return type
    return type.with_dims(tuple(contents.shape))
