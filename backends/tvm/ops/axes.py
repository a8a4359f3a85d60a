"""Axes given by an operand: known at compile time, or selected at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from tvm import te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule
from tersor.backends.tvm.ops._elements import element, from_end
from tersor.backends.tvm.ops.broadcast import dims_of
from tersor.ir import Node, Value
from tersor.ops.families.reduce import reduced_axes


def by_axes(reduce: Callable[[Lowering, Node, Sequence[int]], Any]) -> Rule:
    """A rule for a reduction, from its computation for given axes. Where these are known at run time only,
    every choice of axes that fits the result's dims (one, with keepdims) is computed, and one is selected at
    run time."""

    def rule(lowering: Lowering, node: Node) -> Sequence[Any]:
        value = node.inputs[0]
        assert value is not None
        axes = reduced_axes(node, len(dims_of(value)))
        if axes is not None:
            return [reduce(lowering, node, axes)]
        named = node.inputs[1]
        assert named is not None
        return [
            chosen(
                lowering,
                named,
                value,
                _choices(node, value, named),
                lambda choice: reduce(lowering, node, choice),
            )
        ]

    return rule


def _choices(node: Node, value: Value, named: Value) -> list[list[int]]:
    have, out, rank = dims_of(value), dims_of(node.output), len(dims_of(value))
    if dims_of(named) == (0,):
        return [[] if node.attrs.get("noop_with_empty_axes") else list(range(rank))]
    if node.attrs["keepdims"]:
        return [[a for a in range(rank) if out[a] == 1]]
    sets = map(list, combinations(range(rank), rank - len(out)))
    return [s for s in sets if tuple(d for a, d in enumerate(have) if a not in s) == out]


def chosen(
    lowering: Lowering,
    named: Value,
    value: Value,
    choices: Sequence[Sequence[int]],
    make: Callable[[Sequence[int]], Any],
) -> Any:
    """The result of ``make`` for the choice of axes of ``value`` that ``named`` holds at run time.

    Raises:
        Refused: there is no choice, or the number of axes is known at run time only.
    """
    rank, count = len(dims_of(value)), named.tensor.numel
    if not choices or not isinstance(count, int):
        raise Refused("the axes are known at run time only")
    results = [make(choice) for choice in choices]
    if len(results) == 1:
        return results[0]

    def compute(axes: te.Tensor, *made: te.Tensor) -> te.Tensor:
        places = [from_end(element(axes, i), rank) for i in range(count)]

        def one(*index: Any) -> Any:
            number = made[-1](*index)
            for choice, other in zip(choices[:-1], made[:-1], strict=True):
                fits = [
                    tirx.any(*(tirx.EQ(place, tirx.IntImm("int64", axis)) for place in places))
                    for axis in choice
                ]
                number = tirx.Select(tirx.all(*fits), other(*index), number)
            return number

        return te.compute(made[0].shape, one, name="chosen")

    return lowering.te(compute, lowering[named], *results, primfunc_name_hint="chosen")
