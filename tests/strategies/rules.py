"""What ops do with rounding: which results carry none, and which jump where it falls on an edge.

A lossless pass may reorder float arithmetic. Where the last bit then decides (a comparison, an index, a
rounding to integers), outputs differ by much, and nobody is to blame: random graphs do not ask for it.
"""

from __future__ import annotations

# Results are operands' numbers, moved or picked, or follow from them without rounding.
_EXACT = frozenset(
    [
        "Identity",
        "Neg",
        "Abs",
        "Relu",
        "Max",
        "Min",
        "Clip",
        "Sign",
        "Floor",
        "Ceil",
        "Round",
        "Where",
        "Not",
        "And",
        "Or",
        "Xor",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "IsNaN",
        "IsInf",
        "Dropout",
        "Transpose",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "Tile",
        "Concat",
        "Split",
        "Slice",
        "Gather",
        "GatherElements",
        "GatherND",
        "Pad",
        "Trilu",
        "DepthToSpace",
        "SpaceToDepth",
        "ReverseSequence",
        "MaxPool",
        "GlobalMaxPool",
        "ReduceMax",
        "ReduceMin",
        "ArgMax",
        "ArgMin",
        "TopK",
        "Hardmax",
        "OneHot",
        "NonZero",
        "Compress",
        "Unique",
        "Shape",
        "Size",
        "ConstantOfShape",
        "EyeLike",
        "SequenceConstruct",
        "SequenceAt",
        "SequenceInsert",
        "SequenceErase",
        "ConcatFromSequence",
        "SplitToSequence",
        "Optional",
        "OptionalGetElement",
        "TensorScatter",
    ]
)

# A small difference of an operand may make a large one of a result. Casts are looked at one by one.
DISCONTINUOUS = frozenset(
    [
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "IsNaN",
        "IsInf",
        "ArgMax",
        "ArgMin",
        "TopK",
        "Hardmax",
        "NonZero",
        "Unique",
        "Mod",
        "QuantizeLinear",
        "DynamicQuantizeLinear",
        "tersor.DynamicQuantizeRows",
        "ThresholdedRelu",
        "OneHot",
        "Range",
        "QLinearMatMul",
        "MaxPool",
        "Resize",
    ]
)


def is_exact(op: str) -> bool:
    """Whether results are exact where the operands are."""
    return op in _EXACT
