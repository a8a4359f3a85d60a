"""Functions of a module that read values, weights and sizes of the calling function.

A dataflow block of Relax may call functions but contain no branches, and a function has no access to
another's variables.  So what a body reads from outside becomes parameters after its own: the outer
values, then the weights that it uses, then one shape of all named sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx
from tvm.relax.utils import copy_with_new_vars

from tersor.backends.tvm.lowering import Lowering, Refused
from tersor.errors import one_line
from tersor.ir import Graph, Node, TensorType, Value
from tersor.ir.dims import symbols

Emit = Callable[[], Sequence[Any]]


@dataclass(frozen=True)
class Outer:
    """What the functions of one node read from outside.

    Attributes:
        values: other than constants.
        sizes: symbols that are defined before the node.
    """

    values: tuple[Value, ...]
    sizes: tuple[str, ...]


@dataclass(frozen=True)
class Closure:
    """A function of the module, and the arguments that follow its own."""

    function: Any
    outer: Outer
    weights: tuple[relax.Var, ...]

    def __call__(self, lowering: Lowering, own: Sequence[Any]) -> Any:
        """A call, within a function that has the same outer values."""
        sizes = relax.ShapeExpr([lowering.symbol(name) for name in self.outer.sizes])
        values = [lowering[value] for value in self.outer.values]
        return relax.Call(self.function, [*own, *values, *self.weights, sizes])


def outer_of(lowering: Lowering, node: Node) -> Outer:
    """What the bodies of ``node`` read from outside."""
    inside: set[Value] = set()
    read: list[Value] = []
    for graph in _graphs(node):
        inside |= set(graph.values())
    for graph in _graphs(node):
        read += [v for n in graph.nodes for v in n.inputs if v is not None]
        read += graph.outputs
    values = dict.fromkeys(v for v in read if v not in inside and not v.is_constant)
    named = _symbols([*inside, *values, *(v for v in node.inputs if v is not None), *node.outputs])
    return Outer(tuple(values), tuple(sorted(named & lowering.known)))


def _graphs(node: Node) -> list[Graph]:
    return [graph for sub in node.subgraphs for graph in sub.all_graphs()]


def _symbols(values: Iterable[Value]) -> set[str]:
    types = [v.type for v in values]
    dims = [d for t in types if isinstance(t, TensorType) for d in t.dims or ()]
    return set().union(*(symbols(d) for d in dims))


def parameter(lowering: Lowering, value: Value) -> relax.Var:
    """A parameter of a value's type, as far as that is known."""
    return relax.Var(value.name, lowering.loose_type(value))


def body(lowering: Lowering, graph: Graph, own: Sequence[Any]) -> list[Any]:
    """Emits the nodes of a body whose inputs are ``own``; returns the expressions of its outputs.

    Raises:
        Refused: one of them has no lowering.
    """
    lowering.exprs.update(zip(graph.inputs, own, strict=True))
    for node in graph.nodes:
        try:
            lowering.node(node)
        except Refused as error:
            raise Refused(f"in its body, {node.label} ({node.op}): {one_line(error)}") from None
    return [lowering[value] for value in graph.outputs]


def function(
    lowering: Lowering,
    name: str,
    outer: Outer,
    own: Sequence[relax.Var],
    types: Sequence[Any],
    emit: Emit,
    *,
    branches: bool = False,
    declared: Closure | None = None,
) -> Closure:
    """A new function that returns the tuple of the expressions of ``emit``, cast to ``types``.

    Args:
        branches: whether it contains an If, and so no dataflow block.
        declared: the result of :func:`declare` for it.
    """
    builder = lowering.builder
    values, sizes = _parameters(lowering, outer)
    before = {v: lowering.exprs[v] for v in outer.values}
    lowering.exprs.update(zip(outer.values, values, strict=True))
    known, lowering.known = lowering.known, set(outer.sizes)
    joins, lowering.joins = lowering.joins, dict(lowering.joins)
    equal, lowering.equal = lowering.equal, set(lowering.equal)
    # A TVM variable belongs to one function: sizes defined within get new ones.
    named = lowering.symbols
    lowering.symbols = {name: named[name] for name in outer.sizes if name in named}
    builder.begin_scope([*own, *values, sizes])
    try:
        _begin = builder._begin_binding_block if branches else builder._begin_dataflow_block
        _begin()
        try:
            outputs = relax.Tuple(
                [_typed(lowering, e, t) for e, t in zip(emit(), types, strict=True)]
            )
            result = builder.emit(outputs) if branches else builder.emit_output(outputs)
        finally:
            block = builder._end_block()
    finally:
        builder.end_scope()
        lowering.exprs.update(before)
        lowering.known, lowering.symbols = known, named
        lowering.joins, lowering.equal = joins, equal
    sequence = builder.normalize(relax.SeqExpr([block], result))
    parameters = {var for var, _ in lowering.parameters}
    weights = tuple(var for var in relax.analysis.free_vars(sequence) if var in parameters)
    if declared is not None:
        assert set(weights) <= set(declared.weights)
        weights = declared.weights
    created = copy_with_new_vars(
        relax.Function([*own, *values, *weights, sizes], sequence, relax.TupleType(list(types)))
    )
    if declared is not None:
        builder.update_func(declared.function, created)
        return declared
    return Closure(builder.add_func(created, name), outer, weights)


def declare(
    lowering: Lowering,
    name: str,
    outer: Outer,
    own: Sequence[relax.Var],
    types: Sequence[Any],
    weights: Sequence[relax.Var],
) -> Closure:
    """Declares a function that calls itself, before it is defined."""
    values, sizes = _parameters(lowering, outer)
    empty = relax.Function.create_empty(
        [*own, *values, *weights, sizes], relax.TupleType(list(types))
    )
    return Closure(lowering.builder.add_func(empty, name), outer, tuple(weights))


def _parameters(lowering: Lowering, outer: Outer) -> tuple[list[relax.Var], relax.Var]:
    sizes: list[tirx.Var] = [lowering.symbol(name) for name in outer.sizes]
    return [parameter(lowering, v) for v in outer.values], relax.Var(
        "sizes", relax.ShapeType(sizes)
    )


def _typed(lowering: Lowering, expr: Any, type: Any) -> Any:
    return lowering.builder.match_cast(lowering.builder.normalize(expr), type)
