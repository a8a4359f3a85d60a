"""Rules of lowering, one file a family of the op table."""

from tersor.backends.tvm.lowering import Rule
from tersor.backends.tvm.ops import elementwise

RULES: dict[str, Rule] = {**elementwise.RULES}
