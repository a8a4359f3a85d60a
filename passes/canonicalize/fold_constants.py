"""Nodes whose operands are all constants become constants, where the file grows by no more than a little.

    Transpose(@w) -> @w'      ConstantOfShape([2]) of 1 -> [1, 1]

The size of a result is known from its type, and the work from the op table, before anything is
computed, so that a ConstantOfShape([100000, 100000]) costs nothing but a line in the report.

What numpy computes exactly is computed there; the rest by the reference runtime, as the model would have
done it, all of it in one run.  Without a runtime the rest stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tersor.ir import Graph, Node, TensorType, Value
from tersor.ops import TABLE
from tersor.ops.fold import Waiting, fold_exactly
from tersor.pipeline import ROUNDING, Context, Pass, Skip, erase_dead, weight_bytes

MAX_WORK = 1 << 30  # Operations; some seconds, as numpy does them.
SHARE = 100  # All constants together may become larger by one part in as many.
# Attributes of windows: arrays that neither operands nor results bound (padded ones, of kernels spread out
# by their dilations).
_WINDOWED = ("dilations", "group", "kernel_shape")


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Options:

    byte_budget: how much larger all constants together may become than they were when the pipeline
        began, by what makes much from little (Expand, Range, floats from integers …) and by what copies
        what others still read. A hundredth of them may be added anyway.
    """

    keeps = ROUNDING
    byte_budget: int = 1 << 12

    def run(self, graph: Graph, context: Context) -> None:
        allowed = max(self.byte_budget, context.given_bytes // SHARE)
        left = context.given_bytes + allowed - weight_bytes(graph)
        waiting = Waiting(context.evaluate) if context.evaluate is not None else None
        for node in graph.walk():
            owner = node.graph
            if owner is None or not _foldable(node, waiting):
                continue
            if not context.may_rewrite(after=len(waiting or ())):
                break
            with context.trying(node):
                freed = sum(_freed(v, node, waiting) for v in _operands(node))
                growth, room = _result_bytes(node) - freed, max(left, 0)
                if growth > room:
                    raise Skip(f"over the budget: {room} bytes are left", bytes=-growth)
                if (work := _work(node)) > MAX_WORK:
                    raise Skip(f"its {work} operations are more than {MAX_WORK}")
                constant = all(v is None or v.is_constant for v in node.inputs)
                arrays = fold_exactly(node) if constant else None
                if arrays is not None:
                    _replace(node, dict(zip(node.outputs, arrays, strict=True)), context)
                elif waiting is not None and waiting.takes(node):
                    waiting.add(node)
                else:
                    continue
                left -= growth
        for node, made in waiting.computed() if waiting is not None else ():
            _replace(node, made, context)


def _replace(node: Node, made: Mapping[Value, np.ndarray], context: Context) -> None:
    """Readers of a node's results read constants. What else it makes, only nodes that go too read."""
    assert node.graph is not None
    for value, array in made.items():
        node.graph.replace(value, node.graph.constant(array, value.name))
    erase_dead([node])
    context.rewrote()


def _foldable(node: Node, waiting: Waiting | None) -> bool:
    row = TABLE.get(node.op)
    if node.subgraphs or row is None or not row.deterministic or not node.inputs:
        return False
    # A quantized constant followed by DequantizeLinear is a model that was quantized on purpose.
    if node.op == "DequantizeLinear":
        return False
    if any(name in node.attrs for name in _WINDOWED):
        return False
    return all(
        v is None or v.is_constant or (waiting is not None and waiting.knows(v))
        for v in node.inputs
    )


def _work(node: Node) -> int:
    """Operations as far as they are known."""
    cost = TABLE.cost(node)
    return sum(n for n in (cost.macs, cost.elementwise) if isinstance(n, int))


def _operands(node: Node) -> list[Value]:
    """Each once."""
    return list(dict.fromkeys(v for v in node.inputs if v is not None))


def _freed(value: Value, node: Node, waiting: Waiting | None) -> int:
    """Bytes of an operand that are no longer needed when ``node`` is folded. What other nodes read that
    can be folded too (slices of one matrix) goes with the last of them: each counts its part."""
    made: dict[Node, int] = {}
    for user in dict.fromkeys(use.user for use in value.uses):
        if not isinstance(user, Node) or not _foldable(user, waiting):
            return 0
        try:
            made[user] = _result_bytes(user)
        except Skip:
            return 0
    return _bytes(value) * made[node] // max(sum(made.values()), 1)


def _bytes(value: Value) -> int:
    """Of a constant, or of what will be one."""
    if value.encoding is not None:
        return value.encoding.nbytes
    if not isinstance(value.type, TensorType) or not isinstance(value.type.numel, int):
        raise Skip("the size of its result is not known")
    return value.type.numel * value.type.dtype.bits // 8


def _result_bytes(node: Node) -> int:
    return sum(map(_bytes, node.outputs))
