"""Letters of a word in, scores of negative and positive out, from the GRU's last state."""

from __future__ import annotations

from pathlib import Path

import torch

from tersor.models import training
from tersor.models.exporting import export_onnx as export
from tersor.models.gru_classifier import data

OUTPUT = "logits"
DYNAMIC_SHAPES = {"input_ids": {0: "batch", 1: "sequence"}}
OUTPUT_SHAPES = {OUTPUT: {0: "batch"}}
STEPS, BATCH = 800, 64


class Classifier(torch.nn.Module):
    """input_ids: i64[batch, sequence], padded with zeros on the left -> f32[batch, 2]."""

    def __init__(self, width: int = 32, hidden: int = 96) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(data.SYMBOLS, width, padding_idx=0)
        self.gru = torch.nn.GRU(width, hidden, batch_first=True)
        self.dropout = torch.nn.Dropout(0.3)
        self.head = torch.nn.Linear(hidden, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        _, last = self.gru(self.embedding(input_ids))
        scores: torch.Tensor = self.head(self.dropout(last[-1]))
        return scores


def module() -> torch.nn.Module:
    """Before training: seeded weights."""
    return training.seeded(Classifier)


def build() -> torch.nn.Module:
    """Trained, in evaluation mode."""
    return training.trained(__package__ or "", module(), _train)


def _train(classifier: torch.nn.Module) -> None:
    ids = torch.from_numpy(data.encode([text for text, _ in data.words("train")])["input_ids"])
    labels = torch.from_numpy(data.labels("train"))
    rows = training.shuffled(len(ids), BATCH)

    def loss(i: int) -> torch.Tensor:
        chosen = ids[rows(i)]
        longest = int((chosen > 0).sum(1).max())
        scores = classifier(chosen[:, -longest:])
        return torch.nn.functional.cross_entropy(scores, labels[rows(i)])

    training.fit(classifier, loss, steps=STEPS, learning_rate=4e-3, what="gru_classifier")


def example_inputs() -> dict[str, torch.Tensor]:
    """Inputs to trace the module with; sizes that no constant of the model has."""
    return {"input_ids": torch.full((3, 11), 5)}


def export_onnx(path: Path, model: torch.nn.Module | None = None) -> Path:
    """The trained module, or ``model``, as the older of torch's exporters writes it: the newer one
    unrolls the GRU."""
    return export(
        model or build(),
        example_inputs(),
        path,
        dynamic_shapes=DYNAMIC_SHAPES,
        outputs=[OUTPUT],
        output_shapes=OUTPUT_SHAPES,
        legacy=True,
    )
