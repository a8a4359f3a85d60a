"""Folds the dequantization of constants into their encoding, so that they stay in few bits.

    Mul(Cast(@q: i8[k, n]), @scale[n])  ->  @w: f32[k, n] = affine(i8, axis=1)
    Transpose(@w)                       ->  @w' in the same encoding; of a dense one, a view of its memory

``tersor.transforms.dequantization`` lists all forms that are recognized.  ``fold-constants`` folds the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tersor.ir import Graph, Node
from tersor.ops.families.quantization import is_part_of_quantized_op
from tersor.pipeline import ROUNDING, Pass, Rewrite, Skip
from tersor.transforms.dequantization import encoded_result


@dataclass(frozen=True)
class FoldDequantization(Pass):
    """Options:

    min_elements: smaller constants are left for constant folding, as floats.
    """

    keeps = ROUNDING
    min_elements: int = 1024

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        encoding = encoded_result(node)
        if encoding is None or math.prod(encoding.type.shape) < self.min_elements:
            return None
        if node.op == "DequantizeLinear" and is_part_of_quantized_op(node):
            raise Skip("its users also read dequantized activations: a product of integers")
        return graph.constant(encoding, node.output.name)
