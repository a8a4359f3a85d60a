"""Draws operands and emits nodes; what all steps are written with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from strategies.rules import DISCONTINUOUS, is_exact
from tersor.errors import InvalidGraph
from tersor.ir import DType, Graph, Node, TensorType, Value, print_graph
from tersor.ops import TABLE

SIZES = {"batch": 2, "seq": 3}
LARGEST = 512  # elements of what a step may read, so that graphs stay small


class Rejected(Exception):
    """A step gives it up: what it would make is no good for judging by."""


@dataclass(frozen=True)
class Case:
    """A graph, and inputs for it; the first are at ``SIZES``."""

    graph: Graph
    feeds: list[dict[str, np.ndarray]]

    @property
    def feed(self) -> dict[str, np.ndarray]:
        return self.feeds[0]

    def __repr__(self) -> str:
        return print_graph(self.graph)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How hypothesis shows it."""
        printer.text(repr(self))


@dataclass
class Shared:
    """What the builders of a graph and of its subgraphs have in common.

    Attributes:
        dtype: of the graph's floats.
        ranks: the most axes of what a step reads.
        judge: says of a new node whether it can stay, or raises Rejected.
        exact: values that no rounding is in, so that passes cannot shift it (only if tracked).
        arrays: numbers for inputs that steps made, of one size.
        first: numbers for all inputs at SIZES.
    """

    dtype: DType = DType.F64
    ranks: int = 4
    judge: Callable[[Node], None] | None = None
    exact: set[Value] = field(default_factory=set)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    first: dict[str, np.ndarray] = field(default_factory=dict)


class Builder:
    """Draws operands and emits steps."""

    def __init__(
        self,
        draw: Callable[..., object],
        graph: Graph,
        shared: Shared | None = None,
        outer: Builder | None = None,
    ) -> None:
        self.draw = draw
        self.graph = graph
        self.outer = outer
        self.common = shared or (outer.common if outer else Shared())
        self.rng = outer.rng if outer else np.random.default_rng(self.integer(0, 2**16))
        self.weights: dict[tuple[int, ...], Value] = {}

    @property
    def dtype(self) -> DType:
        return self.common.dtype

    @property
    def root(self) -> Builder:
        return self.outer.root if self.outer else self

    # drawing

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))  # type: ignore[call-overload]

    def pick(self, items: list) -> object:  # type: ignore[type-arg]
        return items[self.integer(0, len(items) - 1)]

    def everything(self) -> Iterator[Value]:
        """What may be read here: outer values too, these first."""
        if self.outer is not None:
            yield from self.outer.everything()
        yield from self.graph.values()

    def values(self, dtype: DType | None, rank: int | None = None) -> list[Value]:
        """What may be read: known dims, not too many axes, so that graphs stay small."""
        return [
            v
            for v in self.everything()
            if isinstance(v.type, TensorType)
            and (dtype is None or v.type.dtype is dtype)
            and v.type.dims is not None
            and None not in v.type.dims
            and len(v.type.dims) <= self.common.ranks
            and (rank is None or len(v.type.dims) == rank)
            and self._fits(v)
        ]

    def _fits(self, value: Value) -> bool:
        try:
            return bool(np.prod(value.tensor.at(SIZES)) <= LARGEST)
        except (KeyError, ZeroDivisionError):  # a size that only the data tells
            return False

    def latest(self, found: list[Value]) -> Value:
        """One of ``found``, the latest ones more often."""
        back = min(self.integer(0, len(found) - 1), self.integer(0, len(found) - 1))
        return found[-1 - back]

    def float(self, least: int = 0) -> Value:
        """A float result or input of at least ``least`` axes."""
        found = [
            v
            for v in self.values(self.dtype)
            if not v.is_constant and len(v.tensor.dims or ()) >= least
        ]
        if not found and len(self.root.graph.inputs[0].tensor.dims or ()) < least:
            raise Rejected("nothing has so many axes")
        return self.latest(found or [self.root.graph.inputs[0]])

    def bool_like(self, x: Value) -> Value:
        found = [v for v in self.values(DType.BOOL) if v.type.dims == x.type.dims]  # type: ignore[union-attr]
        return (
            self.pick(found)
            if found and self.integer(0, 1)
            else self.emit("Greater", x, self.number(0.1))
        )  # type: ignore[return-value]

    # constants and inputs

    def weight(self, *shape: int) -> Value:
        """A constant of normal numbers; now and then one that another step holds already."""
        if shape in self.weights and self.integer(0, 1):
            return self.weights[shape]
        data = self.rng.standard_normal(shape)
        if self.weights and self.integer(0, 5) == 0:
            data = np.ones(shape)
        self.weights[shape] = self.graph.constant(data.astype(self.dtype.numpy), "w")
        return self.weights[shape]

    def number(self, value: float, axes: int = 0) -> Value:
        return self.graph.constant(np.full((1,) * axes, value, self.dtype.numpy), "c")

    def ints(self, *items: int) -> Value:
        return self.graph.constant(np.array(items, np.int64), "i")

    def given(self, array: np.ndarray) -> Value:
        """An input of the outermost graph, fed with ``array``."""
        graph = self.root.graph
        value = graph.add_input("x", TensorType(DType.of(array), array.shape))
        self.common.arrays[value.name] = self.common.first[value.name] = array
        self.common.exact.add(value)
        return value

    # emitting

    def emit(self, op: str, *operands: Value | None, **attrs: object) -> Value:
        return self.node(op, list(operands), attrs).outputs[0]

    def node(
        self,
        op: str,
        operands: list[Value | None],
        attrs: dict[str, object] | None = None,
        outputs: int = 1,
    ) -> Node:
        node = self.graph.emit_node(op, operands, attrs or {}, names=[""] * outputs)  # type: ignore[arg-type]
        if self.common.judge is None:
            return node
        exact = self.common.exact
        exact.update(v for v in operands if v is not None and v.is_constant)
        floats = [v for v in operands if v is not None and _is_float(v)]
        steady = all(v in exact for v in floats)
        if not steady and (op in DISCONTINUOUS or _rounds_to_integers(node)):
            raise Rejected("what rounding decides is no pass's fault")
        if is_exact(op) and steady:
            exact.update(node.outputs)
        exact.update(v for v in node.outputs if not _is_float(v))
        self.common.judge(node)
        return node

    def inner(self, name: str) -> Builder:
        """A builder of a subgraph that is going to be in this graph."""
        return Builder(self.draw, TABLE.graph(name, self.graph), outer=self)

    def shape_of(self, x: Value) -> tuple[int, ...]:
        return x.tensor.at(SIZES)

    def attempt(self, step: Callable[[Builder], None]) -> None:
        """Takes a step; one that is refused or rejected leaves nothing but unread constants and
        inputs."""
        before = set(self.graph.nodes)
        try:
            step(self)
        except (Rejected, InvalidGraph):
            for node in reversed([n for n in self.graph.nodes if n not in before]):
                self.graph.erase(node)


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype.is_float


def _rounds_to_integers(node: Node) -> bool:
    made = node.output.type
    return node.op in ("Cast", "CastLike") and not (
        isinstance(made, TensorType) and made.dtype.is_float
    )
