"""Canonicalization: one form for each meaning, so that fusion and later passes match only that."""

from tersor.passes.canonicalize.common_subexpressions import CommonSubexpressions
from tersor.passes.canonicalize.dead_code import DeadCode
from tersor.passes.canonicalize.drop_kept_dims import DropKeptDims
from tersor.passes.canonicalize.einsum_to_matmul import EinsumToMatMul
from tersor.passes.canonicalize.eliminate_identity import EliminateIdentity
from tersor.passes.canonicalize.fold_batch_norm import FoldBatchNorm
from tersor.passes.canonicalize.fold_constants import FoldConstants
from tersor.passes.canonicalize.fold_conv_bias import FoldConvBias
from tersor.passes.canonicalize.fold_dequantization import FoldDequantization
from tersor.passes.canonicalize.inline_branches import InlineBranches
from tersor.passes.canonicalize.matmul_to_linear import MatMulToLinear
from tersor.passes.canonicalize.normalize_axes import NormalizeAxes
from tersor.passes.canonicalize.shape_arithmetic import ShapeArithmetic
from tersor.passes.canonicalize.simplify_masks import SimplifyMasks
from tersor.passes.canonicalize.simplify_transpose import SimplifyTranspose
from tersor.passes.canonicalize.slices_to_split import SlicesToSplit
from tersor.passes.canonicalize.zero_states import ZeroStates
from tersor.pipeline import Repeat


def canonicalization() -> Repeat:
    """The passes, in order. They repeat until nothing changes, so a pass may enable an earlier one."""
    return Repeat(
        [
            ShapeArithmetic(),
            FoldDequantization(),
            EinsumToMatMul(),
            FoldConstants(),
            InlineBranches(),
            NormalizeAxes(),
            EliminateIdentity(),
            SimplifyTranspose(),
            SimplifyMasks(),
            ZeroStates(),
            DropKeptDims(),
            CommonSubexpressions(),
            DeadCode(),
            MatMulToLinear(),
            FoldConvBias(),
            FoldBatchNorm(),
            SlicesToSplit(),
        ]
    )
