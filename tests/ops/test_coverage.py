"""The table has a row for every op that the exports of the model families we take are made of."""

import pytest

from tersor.ops import TABLE
from tersor.ops.onnx_schema import schema

FAMILIES = {
    "arithmetic": "Add Sub Mul Div Mod Pow Neg Abs Sqrt Reciprocal Exp Log Erf Floor Ceil Round Sign Min Max "
    "Sum Mean Sin Cos Tan Tanh Clip",
    "logic": "And Or Xor Not Equal Less LessOrEqual Greater GreaterOrEqual Where IsNaN IsInf BitwiseAnd "
    "BitwiseOr BitwiseXor BitwiseNot BitShift",
    "activations": "Relu LeakyRelu PRelu Elu Celu Selu Gelu Sigmoid HardSigmoid HardSwish Softplus Softsign "
    "Mish Swish ThresholdedRelu Softmax LogSoftmax Hardmax Dropout Identity Cast CastLike",
    "products": "MatMul Gemm Einsum Conv ConvTranspose MatMulInteger QLinearMatMul",
    "normalization": "LayerNormalization RMSNormalization BatchNormalization InstanceNormalization "
    "GroupNormalization LpNormalization",
    "reductions": "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare "
    "ReduceLogSum ReduceLogSumExp ArgMax ArgMin TopK CumSum",
    "pooling": "MaxPool AveragePool LpPool GlobalMaxPool GlobalAveragePool GlobalLpPool Resize",
    "shapes": "Shape Size Reshape Flatten Squeeze Unsqueeze Expand Tile Transpose Concat Split Slice Pad "
    "ConstantOfShape Range EyeLike Trilu DepthToSpace SpaceToDepth ReverseSequence",
    "indexing": "Gather GatherElements GatherND ScatterElements ScatterND TensorScatter OneHot NonZero "
    "Compress Unique",
    "attention": "Attention RotaryEmbedding",
    "recurrent": "LSTM GRU RNN",
    "control": "If Loop Scan",
    "quantization": "QuantizeLinear DequantizeLinear DynamicQuantizeLinear "
    "tersor.DynamicQuantizeRows",
    "fused": "tersor.Linear tersor.AddLayerNormalization tersor.AddRMSNormalization "
    "tersor.EmbeddingLayerNormalization",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_op_of_a_family_has_a_row_that_evaluates(family: str) -> None:
    rows = {op: TABLE.get(op) for op in FAMILIES[family].split()}
    assert [op for op, row in rows.items() if row is None or row.torch is None] == []


def test_the_table_covers_some_120_standard_ops_and_the_fused_ones() -> None:
    standard = [row.op for row in TABLE if "." not in row.op]
    assert len(standard) >= 120
    assert [op for op in standard if schema(op) is None] == []


def test_an_op_without_a_row_or_a_schema_is_opaque() -> None:
    assert TABLE.is_opaque("com.example.Unheard")
    assert not TABLE.is_opaque("Det")  # no row, but ONNX types it
