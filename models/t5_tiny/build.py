"""T5 of 2 + 2 layers, 64 wide, over letters: transformers' own module, with its relative position bias
in self-attention, none in cross-attention, RMSNorm and no biases.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tersor.models import exporting, training
from tersor.models.t5_tiny import data

OUTPUT = "logits"
DYNAMIC_SHAPES = {
    "input_ids": {0: "batch", 1: "source"},
    "attention_mask": {0: "batch", 1: "source"},
    "decoder_input_ids": {0: "batch", 1: "target"},
}
STEPS, BATCH, LEARNING_RATE = 600, 64, 4e-3


class EncoderDecoder(torch.nn.Module):
    """input_ids, attention_mask: i64[batch, source]; decoder_input_ids: i64[batch, target] -> logits:
    f32[batch, target, letters]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
    ) -> torch.Tensor:
        logits: torch.Tensor = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            use_cache=False,
        ).logits
        return logits


def module() -> torch.nn.Module:
    """Before training: seeded weights."""
    import transformers

    config = transformers.T5Config(
        vocab_size=len(data.ALPHABET),
        d_model=64,
        d_kv=16,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=data.PAD,
        eos_token_id=data.END,
        decoder_start_token_id=data.PAD,
    )
    return training.seeded(lambda: EncoderDecoder(transformers.T5ForConditionalGeneration(config)))


def build() -> torch.nn.Module:
    """Trained, in evaluation mode."""
    return training.trained(__package__ or "", module(), _train)


def _train(model: torch.nn.Module) -> None:
    names = data.to_learn()
    rows = training.shuffled(len(names), BATCH)

    def loss(step: int) -> torch.Tensor:
        batch = [names[i] for i in rows(step)]
        logits = model(**{k: torch.from_numpy(v) for k, v in data.encode(batch).items()})
        wanted = torch.from_numpy(data.labels(batch))
        return torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1), ignore_index=data.PAD
        )

    training.fit(model, loss, steps=STEPS, learning_rate=LEARNING_RATE, what="t5_tiny")


def example_inputs() -> dict[str, torch.Tensor]:
    """Inputs to trace the module with; sizes that no constant of the model has."""
    batch, source, target = 3, 13, 7
    return {
        "input_ids": torch.full((batch, source), 5),
        "attention_mask": torch.ones(batch, source, dtype=torch.long),
        "decoder_input_ids": torch.full((batch, target), 5),
    }


def export_onnx(path: Path, model: torch.nn.Module | None = None) -> Path:
    """The trained module, or ``model``, as torch's TorchScript exporter writes it: the newer one cannot
    decompose T5 with open lengths."""
    return exporting.export_onnx(
        model or build(),
        example_inputs(),
        path,
        dynamic_shapes=DYNAMIC_SHAPES,
        outputs=(OUTPUT,),
        output_shapes={OUTPUT: {0: "batch", 1: "target"}},
        legacy=True,
    )
