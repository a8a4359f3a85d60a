"""Einsum: operands are contracted pairwise; labels that no later operand needs are summed early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tersor.backends.tvm.lowering import Lowering, Refused, Rule
from tersor.backends.tvm.ops._agreement import check_equal
from tersor.backends.tvm.ops.broadcast import Operand
from tersor.backends.tvm.ops.contraction import (
    accumulated,
    common_sizes,
    contract,
    whole,
)
from tersor.backends.tvm.ops.matmul import operands_of
from tersor.ir import Node, TensorType
from tersor.ops.families.einsum import equation_of


def _einsum(lowering: Lowering, node: Node) -> Sequence[Any]:
    equation = equation_of(node)
    if equation is None:
        raise Refused("a rank is known at run time only")
    rest = [whole(lowering, v) for v in operands_of(node, len(node.inputs))]
    labels = list(equation.operands)
    for operand, own in zip(rest, labels, strict=True):
        first = dict(zip(reversed(own), reversed(operand.dims), strict=True))
        # Only of different operands do sizes of one label broadcast.
        check_equal(lowering, [(first[n], dim) for n, dim in zip(own, operand.dims, strict=True)])
    type = node.output.tensor
    while len(rest) > 2:
        needed = {*equation.result, *(label for own in labels[2:] for label in own)}
        kept = [n for n in dict.fromkeys([*labels[0], *labels[1]]) if n in needed]
        sizes = common_sizes(rest[:2], labels[:2])
        dims = tuple(sizes[n] for n in kept)
        if None in dims:  # What has no name yet cannot be of a partial result: all at once.
            break
        part = accumulated(TensorType(type.dtype, dims))
        made = contract(lowering, "einsum", rest[:2], labels[:2], kept, part)
        rest[:2], labels[:2] = [Operand(made, dims)], [tuple(kept)]
    return [contract(lowering, "einsum", rest, labels, equation.result, type)]


RULES: dict[str, Rule] = {"Einsum": _einsum}
