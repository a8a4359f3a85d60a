"""Constant folding, within a budget for the growth of the file.

    Transpose(@w) -> @w'      ConstantOfShape([2]) of 1 -> [1, 1]

The type gives the size of a result and the op table its work before anything is computed, so a
ConstantOfShape([100000, 100000]) costs a line in the report and nothing else.

What numpy computes exactly is folded right away.  The rest is computed by the reference runtime in one run,
as the model itself would have done it; without a runtime it is not folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tersor.ir import Graph, Node, TensorType, Value
from tersor.ops import TABLE
from tersor.ops.fold import Deferred, fold_exactly
from tersor.pipeline import ROUNDING, Context, Pass, Skip, erase_dead, weight_bytes

MAX_WORK = 1 << 30  # Operations: some seconds in numpy.
SHARE = 100  # All constants together may grow by 1 / SHARE.
# Windowed ops allocate padded and dilated arrays that neither operands nor results bound.
_WINDOWED = ("dilations", "group", "kernel_shape")


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Options:

    byte_budget: by how much all constants together may grow over the whole pipeline, through ops that
        expand (Expand, Range, floats from integers …) or copy what other nodes still read. Growth by a
        hundredth is always allowed.
    """

    keeps = ROUNDING
    byte_budget: int = 1 << 12

    def run(self, graph: Graph, context: Context) -> None:
        allowed = max(self.byte_budget, context.given_bytes // SHARE)
        left = context.given_bytes + allowed - weight_bytes(graph)
        deferred = Deferred(context.evaluate) if context.evaluate is not None else None
        for node in graph.walk():
            owner = node.graph
            if owner is None or not _foldable(node, deferred):
                continue
            if not context.may_rewrite(after=len(deferred or ())):
                break
            with context.trying(node):
                freed = sum(_freed(v, node, deferred) for v in _operands(node))
                growth, room = _result_bytes(node) - freed, max(left, 0)
                if growth > room:
                    raise Skip(f"over the budget: {room} bytes are left", bytes=-growth)
                if (work := _work(node)) > MAX_WORK:
                    raise Skip(f"it takes {work} operations, more than {MAX_WORK}")
                constant = all(v is None or v.is_constant for v in node.inputs)
                arrays = fold_exactly(node) if constant else None
                if arrays is not None:
                    _replace(node, dict(zip(node.outputs, arrays, strict=True)), context)
                elif deferred is not None and deferred.accepts(node):
                    deferred.add(node)
                else:
                    continue
                left -= growth
        for node, results in deferred.results() if deferred is not None else ():
            _replace(node, results, context)


def _replace(node: Node, results: Mapping[Value, np.ndarray], context: Context) -> None:
    """Replaces results by constants. Results that are not in ``results`` are read by folded nodes only."""
    assert node.graph is not None
    for value, array in results.items():
        node.graph.replace(value, node.graph.constant(array, value.name))
    erase_dead([node])
    context.rewrote()


def _foldable(node: Node, deferred: Deferred | None) -> bool:
    row = TABLE.get(node.op)
    if node.subgraphs or row is None or not row.deterministic or not node.inputs:
        return False
    # A quantized constant is quantized on purpose.
    if node.op == "DequantizeLinear":
        return False
    if any(name in node.attrs for name in _WINDOWED):
        return False
    return all(
        v is None or v.is_constant or (deferred is not None and deferred.knows(v))
        for v in node.inputs
    )


def _work(node: Node) -> int:
    """The known part of its operations."""
    cost = TABLE.cost(node)
    return sum(n for n in (cost.macs, cost.elementwise) if isinstance(n, int))


def _operands(node: Node) -> list[Value]:
    """The distinct operands."""
    return list(dict.fromkeys(v for v in node.inputs if v is not None))


def _freed(value: Value, node: Node, deferred: Deferred | None) -> int:
    """Bytes of an operand that folding ``node`` frees. If all users can be folded (slices of one matrix), the
    last one frees it, and each counts a share; else none."""
    sizes: dict[Node, int] = {}
    for user in dict.fromkeys(use.user for use in value.uses):
        if not isinstance(user, Node) or not _foldable(user, deferred):
            return 0
        try:
            sizes[user] = _result_bytes(user)
        except Skip:
            return 0
    return _bytes(value) * sizes[node] // max(sum(sizes.values()), 1)


def _bytes(value: Value) -> int:
    """Of a constant, or of a value that will be folded into one."""
    if value.encoding is not None:
        return value.encoding.nbytes
    if not isinstance(value.type, TensorType) or not isinstance(value.type.numel, int):
        raise Skip("the size of its result is unknown")
    return value.type.numel * value.type.dtype.bits // 8


def _result_bytes(node: Node) -> int:
    return sum(map(_bytes, node.outputs))
