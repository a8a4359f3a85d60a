"""Rules of lowering, one file a family of the op table."""

from tersor.backends.tvm.lowering import Rule
from tersor.backends.tvm.ops import (
    bitwise,
    casting,
    convolution,
    einsum,
    elementwise,
    indexing,
    layout,
    matmul,
    movement,
    norm,
    pooling,
    quantization,
    random,
    reduce,
    reshape,
    resize,
    selection,
    shape,
)

RULES: dict[str, Rule] = {
    **bitwise.RULES,
    **casting.RULES,
    **convolution.RULES,
    **einsum.RULES,
    **elementwise.RULES,
    **indexing.RULES,
    **layout.RULES,
    **matmul.RULES,
    **movement.RULES,
    **norm.RULES,
    **pooling.RULES,
    **quantization.RULES,
    **random.RULES,
    **reduce.RULES,
    **reshape.RULES,
    **resize.RULES,
    **selection.RULES,
    **shape.RULES,
}
