"""If, Loop and Scan.

An If calls one of two functions.  Turns are made by a function that halves them:

    turns(n, state) = turns(n - n // 2, turns(n // 2, state))        turns(1, state) = body(state)

so that calls nest as deep as the logarithm of the turns: a Loop without a limit is one of 2^62 turns
that leaves off when its condition says so.  A Scan halves what it scans, and joins the rows it makes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule, dtype_of
from tersor.backends.tvm.ops._closure import (
    Closure,
    Outer,
    body,
    declare,
    function,
    outer_of,
    parameter,
)
from tersor.ir import Graph, Node, Value

_FLAG = relax.TensorType([], "bool")
_INDEX = relax.TensorType([], "int64")
_UNBOUNDED = 2**62


def _body_of(node: Node, name: str = "body") -> Graph:
    graph = node.attrs[name]
    assert isinstance(graph, Graph)
    return graph


def _number(value: int) -> Any:
    return relax.const(np.array(value, np.int64), "int64")


def _scalar(lowering: Lowering, expr: Any) -> Any:
    """A tensor of one element without axes."""
    return lowering.emit(relax.op.reshape(expr, relax.ShapeExpr([])))


def _types(lowering: Lowering, values: Sequence[Value]) -> list[Any]:
    return [lowering.loose_type(value) for value in values]


def _items(lowering: Lowering, made: Any, count: int) -> list[Any]:
    return [lowering.emit(relax.TupleGetItem(made, i)) for i in range(count)]


# -- If --------------------------------------------------------------------------------------------


def _if(lowering: Lowering, node: Node) -> Sequence[Any]:
    outer = outer_of(lowering, node)
    used = [i for i, value in enumerate(node.outputs) if value.uses]
    types = [_branch_type(lowering, node, i) for i in used]
    branches = []
    for name in ("then_branch", "else_branch"):
        graph = _body_of(node, name)

        def emit(graph: Graph = graph) -> Sequence[Any]:
            made = body(lowering, graph, [])
            return [made[i] for i in used]

        branches.append(function(lowering, name, outer, [], types, emit))
    flag = relax.Var("condition", _FLAG)

    def choose() -> Sequence[Any]:
        first, second = (branch(lowering, []) for branch in branches)
        return _items(lowering, lowering.emit(relax.If(flag, first, second)), len(types))

    chosen = function(lowering, "choose", outer, [flag], types, choose, branches=True)
    condition = _scalar(lowering, lowering[node.inputs[0]])
    made = _items(lowering, lowering.emit(chosen(lowering, [condition])), len(used))
    return [made[used.index(i)] if i in used else None for i in range(len(node.outputs))]


def _branch_type(lowering: Lowering, node: Node, index: int) -> Any:
    """What is known of a result before a branch is chosen. Of another rank than its readers take, a run
    fails when it is held against the result's type."""
    value = node.outputs[index]
    ranks = {branch.outputs[index].tensor.rank for branch in node.subgraphs}
    if ranks == {value.tensor.rank}:
        return lowering.loose_type(value)
    return relax.TensorType(dtype=dtype_of(value.type), ndim=-1)


# -- turns -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Signature:
    """Parameters of the functions that make turns, and types of their results.

    Attributes:
        length: of what a Scan scans.
    """

    own: list[relax.Var]
    types: list[Any]
    length: Any = None


@dataclass
class _Turns(ABC):
    """The functions that make a node's turns."""

    lowering: Lowering
    node: Node
    outer: Outer

    @abstractmethod
    def signature(self) -> _Signature:
        """With variables of its own at each call, as each function needs them."""

    @abstractmethod
    def is_over(self, s: _Signature) -> Any:
        """Whether there is no turn to make."""

    @abstractmethod
    def over(self, s: _Signature) -> Sequence[Any]:
        """The results then."""

    @abstractmethod
    def is_single(self, s: _Signature) -> Any:
        """Whether there is one turn to make."""

    @abstractmethod
    def single(self, s: _Signature) -> Sequence[Any]:
        """The results of one turn."""

    @abstractmethod
    def halves(self, s: _Signature, turns: Closure) -> Sequence[Any]:
        """The results of more."""

    def make(self) -> Closure:
        """The function that makes all turns."""
        one = self._function("turn", self.single)
        turns = self._declared(one.weights)
        split = self._function("halves", lambda s: self.halves(s, turns))
        some = self._choice(
            "some_turns", self.is_single, lambda s: one(self.lowering, s.own), split
        )
        self._choice(
            "turns", self.is_over, lambda s: relax.Tuple(list(self.over(s))), some, declared=turns
        )
        return turns

    def _function(
        self,
        name: str,
        results: Callable[[_Signature], Sequence[Any]],
        branches: bool = False,
        declared: Closure | None = None,
    ) -> Closure:
        s = self.signature()
        return function(
            self.lowering, name, self.outer, s.own, s.types, lambda: results(s),
            branches=branches, declared=declared,
        )  # fmt: skip

    def _declared(self, weights: Sequence[relax.Var]) -> Closure:
        s = self.signature()
        return declare(self.lowering, "turns", self.outer, s.own, s.types, weights)

    def _choice(
        self,
        name: str,
        condition: Callable[[_Signature], Any],
        then: Callable[[_Signature], Any],
        otherwise: Closure,
        declared: Closure | None = None,
    ) -> Closure:
        """A function that makes one of two calls."""

        def results(s: _Signature) -> Sequence[Any]:
            last = otherwise(self.lowering, s.own)
            made = self.lowering.emit(relax.If(condition(s), then(s), last))
            return _items(self.lowering, made, len(s.types))

        return self._function(name, results, True, declared)


def _as(lowering: Lowering, expr: Any, value: Value) -> Any:
    """What a body is passed, as the type that its input has: numbers without axes may have some."""
    if value.tensor.rank == 1 and expr.ty.ndim == 0:
        expr = relax.op.reshape(expr, relax.ShapeExpr([1]))
    return lowering.builder.match_cast(
        lowering.builder.normalize(expr), lowering.defining_type(value)
    )


# -- Loop ------------------------------------------------------------------------------------------


class _LoopTurns(_Turns):
    """Parameters: the index of the first turn, the number of turns, the condition, carried values; the
    results are the last two."""

    @property
    def _carried(self) -> Sequence[Value]:
        return self.node.outputs[: len(self.node.inputs) - 2]

    def signature(self) -> _Signature:
        carried = [parameter(self.lowering, value) for value in self._carried]
        numbers = [
            relax.Var("first", _INDEX),
            relax.Var("turns", _INDEX),
            relax.Var("going", _FLAG),
        ]
        return _Signature([*numbers, *carried], [_FLAG, *_types(self.lowering, self._carried)])

    def is_over(self, s: _Signature) -> Any:
        none = self.lowering.emit(relax.op.less(s.own[1], _number(1)))
        stopped = self.lowering.emit(relax.op.logical_not(s.own[2]))
        return self.lowering.emit(relax.op.logical_or(none, stopped))

    def over(self, s: _Signature) -> Sequence[Any]:
        return s.own[2:]

    def is_single(self, s: _Signature) -> Any:
        return self.lowering.emit(relax.op.equal(s.own[1], _number(1)))

    def single(self, s: _Signature) -> Sequence[Any]:
        graph = _body_of(self.node)
        first, _, *state = s.own
        pairs = zip((first, *state), graph.inputs, strict=True)
        flag, *made = body(self.lowering, graph, [_as(self.lowering, e, v) for e, v in pairs])
        return [_scalar(self.lowering, flag), *made[: len(self._carried)]]

    def halves(self, s: _Signature, turns: Closure) -> Sequence[Any]:
        emit, (first, number, *state) = self.lowering.emit, s.own
        half = emit(relax.op.floor_divide(number, _number(2)))
        middle = _items(
            self.lowering, emit(turns(self.lowering, [first, half, *state])), len(state)
        )
        rest = [emit(relax.op.add(first, half)), emit(relax.op.subtract(number, half))]
        return _items(self.lowering, emit(turns(self.lowering, [*rest, *middle])), len(state))


def _loop(lowering: Lowering, node: Node) -> Sequence[Any]:
    count = len(node.inputs) - 2
    if any(value.uses for value in node.outputs[count:]):
        raise Refused("rows of as many turns as a Loop makes, which is known at run time only")
    turns = _LoopTurns(lowering, node, outer_of(lowering, node)).make()
    most, going = node.input(0), node.input(1)
    begin = [
        _number(0),
        _number(_UNBOUNDED) if most is None else _scalar(lowering, lowering[most]),
        relax.const(np.array(True), "bool")
        if going is None
        else _scalar(lowering, lowering[going]),
        *(lowering[v] for v in node.inputs[2:]),
    ]
    return _items(lowering, lowering.emit(turns(lowering, begin)), 1 + count)[1:]


# -- Scan ------------------------------------------------------------------------------------------


class _ScanTurns(_Turns):
    """Parameters: what is scanned, along its first axis, then carried values; the results are these,
    then rows along the first axis."""

    @property
    def scans(self) -> int:
        count = self.node.attrs["num_scan_inputs"]
        assert isinstance(count, int)
        return count

    @property
    def count(self) -> int:
        """Carried values."""
        return len(self.node.inputs) - self.scans

    def signature(self) -> _Signature:
        length, graph = tirx.Var("length", "int64"), _body_of(self.node)

        def along(value: Value) -> relax.TensorType:
            type = self.lowering.relax_type(value.type)
            return relax.TensorType([length, *type.shape], type.dtype)

        scanned = [relax.Var(v.name, along(v)) for v in graph.inputs[self.count :]]
        carried = self.node.outputs[: self.count]
        own = [*scanned, *(parameter(self.lowering, value) for value in carried)]
        rows = [along(value) for value in graph.outputs[self.count :]]
        return _Signature(own, [*_types(self.lowering, carried), *rows], length)

    def _length_is(self, s: _Signature, number: int) -> Any:
        return self.lowering.te(
            lambda n: te.compute((), lambda: n[0] == number, name="is_length"), [s.length]
        )

    def is_over(self, s: _Signature) -> Any:
        return self._length_is(s, 0)

    def over(self, s: _Signature) -> Sequence[Any]:
        empty = [
            self.lowering.emit(relax.op.zeros(t.shape, t.dtype)) for t in s.types[self.count :]
        ]
        return [*s.own[self.scans :], *empty]

    def is_single(self, s: _Signature) -> Any:
        return self._length_is(s, 1)

    def single(self, s: _Signature) -> Sequence[Any]:
        graph = _body_of(self.node)
        scanned, carried = s.own[: self.scans], s.own[self.scans :]
        rows = [self.lowering.te(_row, x) for x in scanned]
        pairs = zip((*carried, *rows), graph.inputs, strict=True)
        made = body(self.lowering, graph, [_as(self.lowering, e, v) for e, v in pairs])
        added = [self.lowering.emit(relax.op.expand_dims(e, 0)) for e in made[self.count :]]
        return [*made[: self.count], *added]

    def halves(self, s: _Signature, turns: Closure) -> Sequence[Any]:
        half = tirx.floordiv(s.length, 2)
        parts: list[list[Any]] = []
        state: Sequence[Any] = s.own[self.scans :]
        for start, length in ((tirx.IntImm("int64", 0), half), (half, s.length - half)):
            own = [self.lowering.te(_part, x, [start, length]) for x in s.own[: self.scans]]
            made = self.lowering.emit(turns(self.lowering, [*own, *state]))
            items = _items(self.lowering, made, len(s.types))
            state = items[: self.count]
            parts.append(items[self.count :])
        rows = [self.lowering.emit(relax.op.concat(pair, 0)) for pair in zip(*parts, strict=True)]
        return [*state, *rows]


def _row(x: te.Tensor) -> te.Tensor:
    return te.compute(x.shape[1:], lambda *index: x(0, *index), name="row")


def _part(x: te.Tensor, span: Sequence[Any]) -> te.Tensor:
    start, length = span
    return te.compute((length, *x.shape[1:]), lambda t, *i: x(t + start, *i), name="part")


def _scan(lowering: Lowering, node: Node) -> Sequence[Any]:
    made = _ScanTurns(lowering, node, outer_of(lowering, node))
    scans, count = made.scans, made.count
    axes, back = (_entries(node, f"scan_input_{name}", scans) for name in ("axes", "directions"))
    scanned = [
        _turned(lowering, lowering[v], a, 0, b)
        for v, a, b in zip(node.inputs[count:], axes, back, strict=True)
    ]
    turns = made.make()
    carried = [lowering[v] for v in node.inputs[:count]]
    results = lowering.emit(turns(lowering, [*scanned, *carried]))
    items = _items(lowering, results, len(node.outputs))
    number = len(node.outputs) - count
    axes, back = (_entries(node, f"scan_output_{name}", number) for name in ("axes", "directions"))
    rows = [
        _turned(lowering, e, 0, a, b) for e, a, b in zip(items[count:], axes, back, strict=True)
    ]
    return [*items[:count], *rows]


def _entries(node: Node, name: str, count: int) -> list[int]:
    """An attribute with an entry for each value, 0 where it is left out."""
    stated: Any = node.attrs.get(name)
    return list(stated) if stated else [0] * count


def _turned(lowering: Lowering, expr: Any, source: int, to: int, backwards: int) -> Any:
    """An axis moved, and turned around where it runs ``backwards``."""
    rank = len(expr.ty.shape)
    source, to = source % rank, to % rank
    order = [axis for axis in range(rank) if axis != source]
    order.insert(to, source)
    if source != to:
        expr = lowering.emit(relax.op.permute_dims(expr, order))
    return lowering.emit(relax.op.flip(expr, to)) if backwards else expr


RULES: dict[str, Rule] = {"If": _if, "Loop": _loop, "Scan": _scan}
