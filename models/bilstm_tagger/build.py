"""Characters of a line of Python in, for each of them the scores of what it belongs to out.

Whether ``#`` begins a comment, or a letter a keyword, follows from what is left and right of it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tersor.models import training
from tersor.models.bilstm_tagger import data
from tersor.models.exporting import export_onnx as export

OUTPUT = "logits"
DYNAMIC_SHAPES = {"input_ids": {0: "batch", 1: "sequence"}}
OUTPUT_SHAPES = {OUTPUT: {0: "batch", 1: "sequence"}}
STEPS, BATCH = 280, 32


class Tagger(torch.nn.Module):
    """input_ids: i64[batch, sequence], 0 where padded -> f32[batch, sequence, tags]."""

    def __init__(self, width: int = 48, hidden: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(data.SYMBOLS, width, padding_idx=0)
        self.lstm = torch.nn.LSTM(width, hidden, layers, batch_first=True, bidirectional=True)
        self.head = torch.nn.Linear(2 * hidden, len(data.TAGS))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.embedding(input_ids))
        scores: torch.Tensor = self.head(states)
        return scores


def module() -> torch.nn.Module:
    """Before training: seeded weights."""
    return training.seeded(Tagger)


def build() -> torch.nn.Module:
    """Trained, in evaluation mode."""
    return training.trained(__package__ or "", module(), _train)


def _train(tagger: torch.nn.Module) -> None:
    found = data.lines("train")
    rows = training.shuffled(len(found), BATCH)

    def loss(i: int) -> torch.Tensor:
        chosen = [found[r] for r in rows(i)]
        ids = torch.from_numpy(data.encode([text for text, _ in chosen])["input_ids"])
        tags = torch.from_numpy(data.labels(chosen))
        real = ids > 0
        return torch.nn.functional.cross_entropy(tagger(ids)[real], tags[real])

    training.fit(tagger, loss, steps=STEPS, learning_rate=1e-2, what="bilstm_tagger")


def example_inputs() -> dict[str, torch.Tensor]:
    """Inputs to trace the module with; sizes that no constant of the model has."""
    return {"input_ids": torch.full((3, 11), 42)}


def export_onnx(path: Path, model: torch.nn.Module | None = None) -> Path:
    """The trained module, or ``model``, as the older of torch's exporters writes it: the newer one
    unrolls the LSTM."""
    return export(
        model or build(),
        example_inputs(),
        path,
        dynamic_shapes=DYNAMIC_SHAPES,
        outputs=[OUTPUT],
        output_shapes=OUTPUT_SHAPES,
        legacy=True,
    )
