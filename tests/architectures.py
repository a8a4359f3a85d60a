"""Architectures as people have them, small and seeded, as torch modules: what frontends, passes and
structure are tested on. Each is traced or exported with its batch (and length) open."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tersor.frontends.torch import import_module
from tersor.ir import Graph

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 32}  # fmt: skip
PIXELS = 16


class Encoder(torch.nn.Module):
    """A transformers model as a function of token ids and a padding mask."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        made = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return made.logits if "logits" in made else made.last_hidden_state


class Recurrent(torch.nn.Module):
    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.layers = layers(16, 24, 2, batch_first=True, bidirectional=True)
        self.head = torch.nn.Linear(48, 5)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(input_ids))[0])  # type: ignore[no-any-return]


def _convolution(channels: int, out: int, size: int = 3, **options: Any) -> torch.nn.Sequential:
    """Conv and BatchNorm."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(channels, out, size, padding=size // 2, bias=False, **options),
        torch.nn.BatchNorm2d(out),
    )


class Residual(torch.nn.Module):
    """ResNet's basic block; where the shape changes a projection is the shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels, out, stride=stride)
        self.second = _convolution(out, out)
        same = stride == 1 and channels == out
        self.shortcut = (
            torch.nn.Identity() if same else _convolution(channels, out, 1, stride=stride)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class ResNet(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            _convolution(3, 8), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
            Residual(8, 8, 1), Residual(8, 16, 2), Residual(16, 16, 1),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 5),
        )  # fmt: skip


class Grouped(torch.nn.Sequential):
    """ResNeXt's bottleneck, of groups that are no single channels, and VGG's way to its head: maps are
    flattened, each channel is a block of positions."""

    def __init__(self) -> None:
        super().__init__(
            _convolution(3, 24, 1), torch.nn.ReLU(),
            _convolution(24, 32, groups=4, stride=2), torch.nn.ReLU(), _convolution(32, 12, 1),
            torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
            torch.nn.Linear(12 * (PIXELS // 4) ** 2, 20), torch.nn.ReLU(), torch.nn.Linear(20, 5),
        )  # fmt: skip


class Branches(torch.nn.Module):
    """Inception's concatenation of branches, of which halves go different ways (as in ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = _convolution(3, 8, 1), _convolution(3, 16, 5)
        self.changed, self.head = _convolution(12, 12), torch.nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.relu(torch.cat([self.narrow(x), self.wide(x)], 1))
        kept, other = both.chunk(2, 1)
        joined = torch.cat([kept, torch.relu(self.changed(other))], 1)
        return self.head(joined.mean((2, 3)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Architecture:
    """
    Attributes:
        build: the seeded module in evaluation mode; of what implementation its attention is.
        inputs: what it takes.
        onnx: whether torch's exporter can write it.
    """

    build: Callable[[str], torch.nn.Module]
    inputs: str = "masked ids"
    onnx: bool = True

    @property
    def masked(self) -> bool:
        return self.inputs == "masked ids"


def hugging_face(model: str, config: str, **options: Any) -> Callable[[str], torch.nn.Module]:
    def build(attention: str) -> torch.nn.Module:
        torch.manual_seed(0)
        configured = getattr(transformers, config)(**options, attn_implementation=attention)
        made = getattr(transformers, model)(configured)
        _shake(made)
        return Encoder(made).eval()

    return build


def plain(module: Callable[[], torch.nn.Module]) -> Callable[[str], torch.nn.Module]:
    def build(attention: str) -> torch.nn.Module:
        torch.manual_seed(0)
        made = module()
        if not isinstance(made, Recurrent):
            _shake(made)
        return made.eval()

    return build


def _shake(module: torch.nn.Module) -> None:
    """Scales of 1 and biases of 0 would fold away."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 32,
         "use_cache": False, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
ARCHITECTURES = {
    "bert": Architecture(hugging_face("BertModel", "BertConfig", **SMALL)),
    "distilbert": Architecture(
        hugging_face("DistilBertModel", "DistilBertConfig", dim=32, n_layers=2, n_heads=4,
                     hidden_dim=64, vocab_size=50, max_position_embeddings=32),
    ),
    "albert": Architecture(
        hugging_face("AlbertModel", "AlbertConfig", **SMALL, embedding_size=16)
    ),
    "gpt2": Architecture(hugging_face("GPT2Model", "GPT2Config", **_GPT2)),
    "gpt2-lm": Architecture(hugging_face("GPT2LMHeadModel", "GPT2Config", **_GPT2)),
    "llama": Architecture(
        hugging_face("LlamaModel", "LlamaConfig", **SMALL, num_key_value_heads=2, use_cache=False)
    ),
    "t5": Architecture(
        hugging_face("T5EncoderModel", "T5Config", d_model=32, d_kv=8, d_ff=64, num_layers=2,
                     num_heads=4, vocab_size=50),
        onnx=False,
    ),
    "lstm": Architecture(plain(lambda: Recurrent(torch.nn.LSTM)), "ids"),
    "gru": Architecture(plain(lambda: Recurrent(torch.nn.GRU)), "ids"),
    "resnet": Architecture(plain(ResNet), "pictures"),
    "grouped": Architecture(plain(Grouped), "pictures"),
    "branches": Architecture(plain(Branches), "pictures"),
}  # fmt: skip


def batch(case: Architecture, rows: int, length: int) -> dict[str, np.ndarray]:
    """Random ids, of which the first row is padded a little, the last by half; or pictures."""
    rng = np.random.default_rng(rows)
    if case.inputs == "pictures":
        return {"x": rng.standard_normal((rows, 3, PIXELS, PIXELS), np.float32)}
    ids = rng.integers(2, 50, (rows, length))
    if not case.masked:
        return {"input_ids": ids}
    mask = np.ones_like(ids)
    mask[0, length - 2 :] = 0
    mask[-1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def examples(case: Architecture) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in batch(case, 3, 13).items()}


def dynamic(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {0: "batch"} if value.ndim == 4 else {0: "batch", 1: "length"}
        for name, value in inputs.items()
    }


def traced(case: Architecture, module: torch.nn.Module) -> Graph:
    if case.inputs == "pictures":
        module = _Named(module)
    inputs = examples(case)
    return import_module(module, inputs, dynamic_shapes=dynamic(inputs), output_names=["states"])


def exported(case: Architecture, module: torch.nn.Module, path: Path) -> Path:
    """An ONNX file by torch's own exporter."""
    if case.inputs == "pictures":
        module = _Named(module)
    inputs = examples(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The exporter's own deprecations.
        torch.onnx.export(
            module, kwargs=inputs, f=str(path), dynamic_shapes=dynamic(inputs), dynamo=True,
            external_data=False, verbose=False, input_names=list(inputs), output_names=["states"],
        )  # fmt: skip
    return path


class _Named(torch.nn.Module):
    """What torch.nn.Sequential calls its operand is not x."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)  # type: ignore[no-any-return]
