"""Words of a passage in, scores of the modules out: convolutions of 3, 4 and 5 words, the largest of
each over the passage, a linear layer (Kim 2014)."""

from __future__ import annotations

from pathlib import Path

import torch

from tersor.models import training
from tersor.models.exporting import export_onnx as export
from tersor.models.text_cnn import data

OUTPUT = "logits"
DYNAMIC_SHAPES = {"input_ids": {0: "batch", 1: "sequence"}}
STEPS, BATCH = 600, 32


class TextCnn(torch.nn.Module):
    """input_ids: i64[batch, sequence], sequence at least 5, 0 where padded -> f32[batch, modules]."""

    def __init__(self, width: int = 64, channels: int = 64) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(data.VOCABULARY, width, padding_idx=0)
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv1d(width, channels, size) for size in (3, 4, 5)
        )
        self.dropout = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(3 * channels, len(data.MODULES))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids).transpose(1, 2)
        found = [torch.relu(convolution(x)).amax(-1) for convolution in self.convolutions]
        scores: torch.Tensor = self.head(self.dropout(torch.cat(found, 1)))
        return scores


def module() -> torch.nn.Module:
    """Before training: seeded weights."""
    return training.seeded(TextCnn)


def build() -> torch.nn.Module:
    """Trained, in evaluation mode."""
    return training.trained(__package__ or "", module(), _train)


def _train(cnn: torch.nn.Module) -> None:
    found = data.passages("train")
    rows = training.shuffled(len(found), BATCH)

    def loss(i: int) -> torch.Tensor:
        chosen = [found[r] for r in rows(i)]
        scores = cnn(torch.from_numpy(data.encode(chosen)["input_ids"]))
        return torch.nn.functional.cross_entropy(scores, torch.from_numpy(data.labels(chosen)))

    training.fit(cnn, loss, steps=STEPS, learning_rate=4e-3, what="text_cnn")


def example_inputs() -> dict[str, torch.Tensor]:
    """Inputs to trace the module with; sizes that no constant of the model has."""
    return {"input_ids": torch.full((2, 17), 7)}


def export_onnx(path: Path, model: torch.nn.Module | None = None) -> Path:
    """The trained module, or ``model``, as torch's own exporter writes it."""
    return export(
        model or build(), example_inputs(), path, dynamic_shapes=DYNAMIC_SHAPES, outputs=[OUTPUT]
    )
