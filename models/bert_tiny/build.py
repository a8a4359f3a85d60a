"""BERT of 2 layers, 128 wide, with a classifier on its pooled first token: transformers' own module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tersor.models import exporting, training
from tersor.models.bert_tiny import data
from tersor.models.minilm.data import encode

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "logits"
DYNAMIC_SHAPES = {name: {0: "batch", 1: "sequence"} for name in INPUTS}
STEPS, BATCH, LEARNING_RATE = 240, 32, 2e-3
LENGTH = 40  # Of paragraphs in training: their first sentence mostly tells.


class Classifier(torch.nn.Module):
    """input_ids, attention_mask: i64[batch, sequence] -> f32[batch, subjects]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return made


def module() -> torch.nn.Module:
    """Before training: seeded weights."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=30522,  # That of the tokenizer.
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=128,
        num_labels=len(data.SUBJECTS),
    )
    return training.seeded(lambda: Classifier(transformers.BertForSequenceClassification(config)))


def build() -> torch.nn.Module:
    """Trained, in evaluation mode."""
    return training.trained(__package__ or "", module(), _train)


def _train(classifier: torch.nn.Module) -> None:
    examples = data.examples()[0]
    labels = torch.tensor(examples.labels)
    rows = training.shuffled(len(examples), BATCH)

    def loss(step: int) -> torch.Tensor:
        chosen = rows(step)
        feed = encode([examples.texts[i] for i in chosen])
        logits = classifier(**{name: torch.from_numpy(feed[name][:, :LENGTH]) for name in INPUTS})
        return torch.nn.functional.cross_entropy(logits, labels[list(chosen)])

    training.fit(classifier, loss, steps=STEPS, learning_rate=LEARNING_RATE, what="bert_tiny")


def example_inputs() -> dict[str, torch.Tensor]:
    """Inputs to trace the module with; sizes that no constant of the model has."""
    shape = (3, 17)
    return {
        "input_ids": torch.full(shape, 1996),
        "attention_mask": torch.ones(shape, dtype=torch.long),
    }


def export_onnx(path: Path, model: torch.nn.Module | None = None) -> Path:
    """The trained module, or ``model``, as torch's own exporter writes it."""
    return exporting.export_onnx(
        model or build(), example_inputs(), path, dynamic_shapes=DYNAMIC_SHAPES, outputs=(OUTPUT,)
    )
