"""Constants that a model stores in few bits stay so.

    Mul(Cast(@q: i8[k, n]), @scale[n])  ->  @w: f32[k, n] = affine(i8, axis=1)
    Transpose(@w)                       ->  @w' in the same form: of a dense one, a view of its memory

Every spelling that is taken in is in ``tersor.transforms.dequantization``.  What is left to
``fold-constants`` is what becomes no larger by that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tersor.ir import Graph, Node
from tersor.pipeline import ROUNDING, Pass, Rewrite, Skip
from tersor.transforms.dequantization import encoded_result, is_part_of_quantized_op


@dataclass(frozen=True)
class FoldDequantization(Pass):
    """Options:

    min_elements: smaller constants are left to be folded into floats.
    """

    keeps = ROUNDING
    min_elements: int = 1024

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        held = encoded_result(node)
        if held is None or math.prod(held.type.shape) < self.min_elements:
            return None
        if node.op == "DequantizeLinear" and is_part_of_quantized_op(node):
            raise Skip("it is read beside dequantized activations: a product of integers")
        return graph.constant(held, node.output.name)
