"""Nodes whose operands are all constants become constants, as far as a byte budget allows.

    Transpose(@w) -> @w'      ConstantOfShape([2]) of 1 -> [1, 1]

The size of a result is known from its type, and the work from the op table, before anything is
computed, so that a ConstantOfShape([100000, 100000]) costs nothing but a line in the report.
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.ir import Dense, Graph, Node, TensorType, Value
from tersor.ops import TABLE
from tersor.ops.fold import fold_node
from tersor.pipeline import ROUNDING, Context, Pass, Skip, replace_node

MAX_WORK = 1 << 30  # Operations; some seconds, as numpy does them.
# Attributes of windows. The reference implementation takes arrays that neither operands nor results bound
# (padded ones, of kernels spread out by their dilations), and adds up a ConvTranspose's groups wrongly.
_WINDOWED = ("dilations", "group", "kernel_shape")


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Options:

    byte_budget: how much larger all constants together may become, by what makes much from little
        (Expand, Range, the sum of a row and a column …). What others still read may be copied
        once (a transposed table beside the table).
    """

    keeps = ROUNDING
    byte_budget: int = 16 << 20

    def run(self, graph: Graph, context: Context) -> None:
        left = self.byte_budget
        copied: set[Value] = set()
        for node in graph.walk():
            owner = node.graph
            if owner is None or not _foldable(node):
                continue
            if not context.may_rewrite():
                return
            try:
                # What others still read stays beside the result; each such operand is let off once.
                staying = {v for v in _operands(node) if any(u.user is not node for u in v.uses)}
                credit = sum(_bytes(v) for v in _operands(node) if v not in copied)
                growth = max(0, _result_bytes(node) - credit)
                if growth > left:
                    raise Skip(f"its {growth} bytes more are over the budget: {left} are left")
                if (work := _work(node)) > MAX_WORK:
                    raise Skip(f"its {work} operations are more than {MAX_WORK}")
                left -= growth
                copied |= staying
                arrays = fold_node(node)
            except Skip as reason:
                context.skip(node, str(reason))
                continue
            if arrays is None:
                continue
            values: list[Value] = [
                owner.constant(a, v.name) for a, v in zip(arrays, node.outputs, strict=True)
            ]
            replace_node(node, values)
            context.rewrote()


def _foldable(node: Node) -> bool:
    row = TABLE.get(node.op)
    if node.subgraphs or row is None or not row.deterministic or not node.inputs:
        return False
    # A quantized constant followed by DequantizeLinear is a model that was quantized on purpose.
    if node.op == "DequantizeLinear":
        return False
    if any(name in node.attrs for name in _WINDOWED):
        return False
    # What is held in fewer bits stays so.
    return all(v is None or isinstance(v.encoding, Dense) for v in node.inputs)


def _work(node: Node) -> int:
    """Operations as far as they are known."""
    cost = TABLE.cost(node)
    return sum(n for n in (cost.macs, cost.elementwise) if isinstance(n, int))


def _operands(node: Node) -> list[Value]:
    """Each once."""
    return list(dict.fromkeys(v for v in node.inputs if v is not None))


def _bytes(value: Value) -> int:
    return value.encoding.nbytes if value.encoding is not None else 0


def _result_bytes(node: Node) -> int:
    total = 0
    for value in node.outputs:
        if not isinstance(value.type, TensorType) or not isinstance(value.type.numel, int):
            raise Skip("the size of its result is not known")
        total += value.type.numel * value.type.dtype.bits // 8
    return total
