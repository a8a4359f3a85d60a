"""Shape arithmetic, also on dynamic dims.

1. An integer value whose elements all follow from the inputs' shapes as numbers becomes a constant.
2. A Reshape's target becomes a constant if its dims are numbers, equal to the operand's dim at the same
   position (0), or the only remaining one (-1):
       x: [batch, seq, 384],  Reshape(x, [batch, seq, 12, 32])  ->  Reshape(x, [0, 0, 12, 32])
   Not so a new -1 next to a copied dim that may be 0: it would be ambiguous. A matrix of merged dims is a
   Flatten instead:
       x: [n, a, 4],  Reshape(x, [n, 4*a])  ->  Flatten(x) {axis = 1}
   If several dims are symbols, a Reshape that only inserts dims of 1, possibly after other views, becomes
   an Unsqueeze.
3. An Expand to the operand's own shape is removed.
4. Unknown dims of results are inferred again, as operands may have become constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import dims, operand, same_type
from tersor.ir import Dim, Graph, Node, TensorType, Value
from tersor.ops import TABLE, contents_of
from tersor.pipeline import EXACT, Pass, Rewrite
from tersor.transforms.refine_types import refine_types
from tersor.transforms.reshapes import flattened, reshape_target, reshaped


@dataclass(frozen=True)
class ShapeArithmetic(Pass):
    """No options."""

    keeps = EXACT

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        refine_types(graph, node)
        if node.op == "Reshape":
            return _reshape(graph, node)
        if node.op == "Expand" and same_type(operand(node, 0), node.output):
            return operand(node, 0)
        if node.subgraphs or len(node.outputs) != 1 or not node.inputs:
            return None
        return _constant(graph, node.output)


def _constant(graph: Graph, value: Value) -> Value | None:
    contents = value.contents
    if contents is None or not isinstance(value.type, TensorType):
        return None
    items = list(contents.reshape(-1))
    if not all(isinstance(i, int) for i in items):
        return None
    wide = np.array(items, object).reshape(contents.shape)
    try:
        data = wide.astype(value.type.dtype.numpy)
    except OverflowError:
        return None  # How overflow wraps is up to the runtime.
    return graph.constant(data, value.name)


def _reshape(graph: Graph, node: Node) -> Rewrite:
    x, target = operand(node, 0), operand(node, 1)
    have, out = dims(x), dims(node.output)
    if have is None or out is None:
        return None
    if same_type(x, node.output):
        return x
    contents = contents_of(target)
    written = list(contents) if contents is not None else []
    wanted = reshape_target(have, out, written)
    if wanted is None:
        return _unsqueezed(graph, x, out) or (
            None if target.is_constant else flattened(graph, x, out)
        )
    if target.is_constant and written == wanted and not node.attrs["allowzero"]:
        return None
    return reshaped(graph, x, wanted)


def _unsqueezed(graph: Graph, x: Value, out: tuple[Dim, ...]) -> Value | None:
    """Rule 2: an Unsqueeze of ``x``, or of what it is a view of."""
    while x.producer is not None and TABLE.has(x.producer.op, "view"):
        x = operand(x.producer, 0)
    have = x.tensor.dims
    if have is None or None in have or 1 in have or have != tuple(d for d in out if d != 1):
        return None
    axes = np.array([i for i, d in enumerate(out) if d == 1], np.int64)
    return graph.emit("Unsqueeze", [x, graph.constant(axes, "axes")]) if axes.size else x
