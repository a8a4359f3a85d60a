"""Rules of lowering, one file a family of the op table."""

from tersor.backends.tvm.lowering import Rule
from tersor.backends.tvm.ops import (
    convolution,
    elementwise,
    indexing,
    layout,
    movement,
    pooling,
    reshape,
    shape,
)

RULES: dict[str, Rule] = {
    **convolution.RULES,
    **elementwise.RULES,
    **indexing.RULES,
    **layout.RULES,
    **movement.RULES,
    **pooling.RULES,
    **reshape.RULES,
    **shape.RULES,
}
