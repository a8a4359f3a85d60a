"""A picture in, scores of the ten digits out: inverted residual blocks, as MobileNetV2 has them."""

from __future__ import annotations

from pathlib import Path

import torch

from tersor.models import training
from tersor.models.exporting import export_onnx as export
from tersor.models.mobilenet_digits import data

OUTPUT = "logits"
DYNAMIC_SHAPES = {"image": {0: "batch"}}
STEPS, BATCH = 250, 48


def _convolution(
    channels: int, out: int, size: int = 1, stride: int = 1, groups: int = 1, bounded: bool = True
) -> torch.nn.Sequential:
    """Conv, BatchNorm and, where ``bounded``, ReLU6."""
    layers: list[torch.nn.Module] = [
        torch.nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False),
        torch.nn.BatchNorm2d(out),
    ]
    return torch.nn.Sequential(*layers, *([torch.nn.ReLU6()] if bounded else []))


class InvertedResidual(torch.nn.Module):
    """f32[batch, channels, h, w] -> f32[batch, out, h / stride, w / stride]: wider by 1x1, each channel
    for itself by 3x3, narrower by 1x1; what came in is added where it fits."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.residual = stride == 1 and channels == out
        self.layers = torch.nn.Sequential(
            _convolution(channels, wide),
            _convolution(wide, wide, 3, stride, groups=wide),
            _convolution(wide, out, bounded=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNet(torch.nn.Module):
    """image: f32[batch, 1, 8, 8] within 0 .. 1 -> f32[batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(1, 16, 3)
        self.blocks = torch.nn.Sequential(
            InvertedResidual(16, 16, 1, 2),
            InvertedResidual(16, 24, 2, 4),
            InvertedResidual(24, 24, 1, 4),
            InvertedResidual(24, 32, 2, 4),
            InvertedResidual(32, 32, 1, 4),
        )
        self.tail = _convolution(32, 96)
        self.pool = torch.nn.AdaptiveAvgPool2d(1)
        self.head = torch.nn.Linear(96, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.tail(self.blocks(self.stem(image)))
        scores: torch.Tensor = self.head(self.pool(features).flatten(1))
        return scores


def module() -> torch.nn.Module:
    """Before training: seeded weights."""
    return training.seeded(MobileNet)


def build() -> torch.nn.Module:
    """Trained, in evaluation mode."""
    return training.trained(__package__ or "", module(), _train)


def _train(net: torch.nn.Module) -> None:
    pictures, labels = (torch.from_numpy(a) for a in data.digits("train"))
    rows = training.shuffled(len(pictures), BATCH)

    def loss(i: int) -> torch.Tensor:
        scores = net(pictures[rows(i)])
        return torch.nn.functional.cross_entropy(scores, labels[rows(i)])

    training.fit(net, loss, steps=STEPS, learning_rate=1e-2, what="mobilenet_digits")


def example_inputs() -> dict[str, torch.Tensor]:
    """Inputs to trace the module with; a batch that no constant of the model is."""
    return {"image": torch.full((3, 1, 8, 8), 0.5)}


def export_onnx(path: Path, model: torch.nn.Module | None = None) -> Path:
    """The trained module, or ``model``, as torch's own exporter writes it."""
    return export(
        model or build(), example_inputs(), path, dynamic_shapes=DYNAMIC_SHAPES, outputs=[OUTPUT]
    )
