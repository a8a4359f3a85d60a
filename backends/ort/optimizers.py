"""What ONNX Runtime's own optimizer is made of: names that sessions take as optimizers to leave out.

Those that may change what float numbers come out, in rounding or by more; it ignores names that it does not
know, as of other versions than 1.31.
"""

from __future__ import annotations

OPTIMIZERS = (
    "AttentionFusion", "BiasGeluFusion", "BiasSkipLayerNormFusion", "BiasSoftmaxFusion",
    "CastChainElimination", "CommonSubexpressionElimination", "ConstantFolding", "ConvActivationFusion",
    "ConvAddActivationFusion", "ConvAddFusion", "ConvBNFusion", "ConvMulFusion", "DQMatMulNBitsFusion",
    "DivMulFusion", "DynamicQuantizeMatMulFusion", "EmbedLayerNormFusion", "FastGeluFusion",
    "GatherToSliceFusion", "GeluFusionL1", "GeluFusionL2", "GemmActivationFusion", "GemmSumFusion",
    "GemmTransposeFusion", "GroupQueryAttentionFusion", "GroupQueryAttentionPreNormFusion",
    "LayerNormFusionL1", "LayerNormFusionL2", "MatMulActivationFusion", "MatMulAddFusion",
    "MatMulIntegerToFloatFusion", "MatMulNBitsMlpFusion", "MatMulNBitsQkvFusion", "MatMulScaleFusion",
    "MatMul_BatchNormalization_Fusion", "MatmulTransposeFusion", "NchwcTransformer", "NhwcTransformer",
    "Pad_Fusion", "QDQFinalCleanupTransformer", "QDQPropagationTransformer", "QDQS8ToU8Transformer",
    "QDQSelectorActionTransformer", "QuickGeluFusion", "RemoveDuplicateCastTransformer", "ReshapeFusion",
    "SimplifiedLayerNormFusion", "SkipLayerNormFusion", "SwiGluFusion", "TransposeOptimizer",
)  # fmt: skip
