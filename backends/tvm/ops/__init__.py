"""Rules of lowering, one file a family of the op table."""

from tersor.backends.tvm.lowering import Rule
from tersor.backends.tvm.ops import (
    bitwise,
    casting,
    convolution,
    elementwise,
    indexing,
    layout,
    movement,
    pooling,
    reshape,
    resize,
    shape,
)

RULES: dict[str, Rule] = {
    **bitwise.RULES,
    **casting.RULES,
    **convolution.RULES,
    **elementwise.RULES,
    **indexing.RULES,
    **layout.RULES,
    **movement.RULES,
    **pooling.RULES,
    **reshape.RULES,
    **resize.RULES,
    **shape.RULES,
}
