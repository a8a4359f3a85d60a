"""The op table: what every op means, one row an op, one file a family."""

from tersor.ops import families
from tersor.ops.contents import contents_of
from tersor.ops.onnx_schema import IR_OPSET
from tersor.ops.opdef import Bias, Cost, Cut, Follow, Member, OpDef, Quantizer, Sample, Tie, Weight
from tersor.ops.table import Table
from tersor.ops.window import Window, window

TABLE = Table(families.rows())

__all__ = [
    "IR_OPSET", "TABLE", "Bias", "Cost", "Cut", "Follow", "Member", "OpDef", "Quantizer", "Sample", "Table",
    "Tie", "Weight", "Window", "contents_of", "window",
]  # fmt: skip
