"""GPT-2 of 2 layers, 128 wide, over bytes: transformers' own module, its cache as inputs and outputs.

One graph serves both ways to run it: a prefill has an empty past and many bytes, a step has a past and
one byte.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from tersor.models import exporting, training
from tersor.models.gpt2_tiny import data, shape

STEPS, BATCH, LEARNING_RATE = 700, 8, 4e-3
SHORT = 64  # Windows in training; every fourth is as long as those of the test.


class Decoder(torch.nn.Module):
    """input_ids: i64[batch, sequence]; attention_mask: i64[batch, past + sequence]; for each layer
    past_key, past_value: f32[batch, heads, past, head_dim] -> logits: f32[batch, sequence, 256]; for each
    layer present_key, present_value: f32[batch, heads, past + sequence, head_dim]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past_key_0: torch.Tensor,
        past_value_0: torch.Tensor,
        past_key_1: torch.Tensor,
        past_value_1: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        import transformers

        cache = transformers.DynamicCache([(past_key_0, past_value_0), (past_key_1, past_value_1)])
        # Padding, which is on the left, has no position of its own.
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, past_key_0.shape[2] :]
        logits = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits
        present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (logits, *present)


def module() -> torch.nn.Module:
    """Before training: seeded weights."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=shape.BYTES,
        n_positions=shape.POSITIONS,
        n_embd=shape.WIDTH,
        n_layer=shape.LAYERS,
        n_head=shape.HEADS,
        bos_token_id=0,
        eos_token_id=0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )

    def make() -> torch.nn.Module:
        model = transformers.GPT2LMHeadModel(config)
        with torch.no_grad():
            _begin(model.transformer.wte.weight, model.transformer.wpe.weight)
        return Decoder(model)

    return training.seeded(make)


def _begin(letters: torch.Tensor, positions: torch.Tensor) -> None:
    """Embeddings to begin with. In the little time that there is, heads learn to look some places back
    only if positions are waves from the start; noise of GPT-2's 0.02 takes them thousands of steps."""
    count, width = positions.shape
    frequencies = torch.exp(torch.arange(0, width, 2) / width * -math.log(1000.0))
    angles = torch.arange(count)[:, None] * frequencies
    positions.copy_(0.5 * torch.cat([angles.sin(), angles.cos()], dim=1))
    letters.normal_(0, 0.1)


def build() -> torch.nn.Module:
    """Trained, in evaluation mode."""
    return training.trained(__package__ or "", module(), _train)


def _train(decoder: torch.nn.Module) -> None:
    text = torch.from_numpy(data.training_text())
    starts = torch.randint(len(text) - data.WINDOW, (STEPS, BATCH, 1))

    def loss(step: int) -> torch.Tensor:
        length = SHORT if step % 4 else data.WINDOW
        rows = text[starts[step] + torch.arange(length + 1)]
        # Without a past and a mask, transformers' own model sees all bytes up to each.
        logits = decoder.model(input_ids=rows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.reshape(-1, shape.BYTES), rows[:, 1:].reshape(-1)
        )

    training.fit(decoder, loss, steps=STEPS, learning_rate=LEARNING_RATE, what="gpt2_tiny")


def example_inputs() -> dict[str, torch.Tensor]:
    """Inputs to trace the module with; sizes that no constant of the model has."""
    batch, sequence, past = 3, 5, 11
    kept = {name: torch.zeros(batch, shape.HEADS, past, shape.HEAD_DIM) for name in shape.PAST}
    return {
        "input_ids": torch.full((batch, sequence), ord("e")),
        "attention_mask": torch.ones(batch, past + sequence, dtype=torch.long),
        **kept,
    }


def export_onnx(path: Path, model: torch.nn.Module | None = None) -> Path:
    """The trained module, or ``model``, as torch's own exporter writes it."""
    return exporting.export_onnx(
        model or build(),
        example_inputs(),
        path,
        dynamic_shapes=shape.DYNAMIC_SHAPES,
        outputs=shape.OUTPUTS,
    )
