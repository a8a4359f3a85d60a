"""Fusion: each layer as one op, in whatever form it was exported."""

from tersor.passes.fuse.attention_cache import AttentionCache
from tersor.passes.fuse.attention_to_hidden import AttentionToHidden
from tersor.passes.fuse.fuse_attention import FuseAttention
from tersor.passes.fuse.fuse_bias_activation import FuseBiasActivation
from tersor.passes.fuse.fuse_embedding_norm import FuseEmbeddingNorm
from tersor.passes.fuse.fuse_gelu import FuseGelu
from tersor.passes.fuse.fuse_layer_norm import FuseLayerNorm
from tersor.passes.fuse.fuse_rms_norm import FuseRmsNorm
from tersor.passes.fuse.fuse_skip_norm import FuseSkipNorm
from tersor.passes.fuse.roll_recurrence import RollRecurrence
from tersor.passes.fuse.unfold_heads import UnfoldHeads
from tersor.pipeline import Pass


def fusion() -> list[Pass]:
    """The passes, in order."""
    return [
        RollRecurrence(),
        FuseLayerNorm(),
        FuseRmsNorm(),
        FuseGelu(),
        UnfoldHeads(),
        FuseAttention(),
        FuseBiasActivation(),
        FuseEmbeddingNorm(),
        FuseSkipNorm(),
    ]


def attention_layout() -> list[Pass]:
    """After :func:`fusion` and another round of canonicalization: the layout of attention."""
    return [AttentionCache(), AttentionToHidden()]
