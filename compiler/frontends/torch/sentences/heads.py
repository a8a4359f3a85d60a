"""Builds the modules after the encoder from their configs and weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from tersor.errors import LONGEST, Unsupported, one_line
from tersor.frontends.torch.sentences.modules import (
    MODES,
    SENTENCE,
    Convolutions,
    Dense,
    LayerNorm,
    Normalize,
    OnFeature,
    Pooling,
    Splade,
    WeightedLayers,
    WordWeights,
)
from tersor.frontends.torch.sentences.part import Part, filled, read_weights

# Pooling modes in older folders, in the order in which their results are concatenated.
LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
WIDTHS = ("embedding_dimension", "word_embedding_dimension")  # Known from the weights.


def pooling(part: Part, remarks: list[str]) -> nn.Module:
    """Pooling, with the package's defaults for missing options."""
    part.read_config(["config.json"])
    part.drop(*WIDTHS)
    legacy = [mode for key, mode in LEGACY_MODES.items() if part.take(key, bool, False)]
    modes = part.config.pop("pooling_mode", legacy or ["mean"])
    modes = modes if isinstance(modes, list) else [modes]
    for mode in modes:
        if mode not in MODES:
            raise part.unknown(f"mode {one_line(mode, LONGEST)!r}")
    include = part.take("include_prompt", bool, True)
    part.done()
    return Pooling(modes, include)


def splade(part: Part, remarks: list[str]) -> nn.Module:
    """Pooling of scores over the vocabulary to one sparse vector."""
    part.read_config(["config.json"])
    part.drop(*WIDTHS, "chunk_size")
    strategy = part.take("pooling_strategy", str, "max")
    activation = part.take("activation_function", str, "relu")
    if strategy not in ("max", "sum"):
        raise part.unknown(f"strategy {one_line(strategy, LONGEST)!r}")
    if activation not in ("relu", "log1p_relu"):
        raise part.unknown(f"activation {one_line(activation, LONGEST)!r}")
    part.done()
    return Splade(strategy == "sum", activation == "log1p_relu")


def dense(part: Part, remarks: list[str]) -> nn.Module:
    """A linear layer with an activation."""
    part.read_config(["config.json"])
    inputs, outputs = part.take("in_features", int), part.take("out_features", int)
    linear = nn.Linear(inputs, outputs, bias=part.take("bias", bool, True))
    function = activation(part.take("activation_function", str, "torch.nn.Tanh"), part.label)
    residual: nn.Module | None = None
    if part.take("use_residual", bool, False):
        residual = nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs, bias=False)
    source, target = _features(part)
    part.done()
    return OnFeature(filled(Dense(linear, function, residual), part), source, target)


def normalize(part: Part, remarks: list[str]) -> nn.Module:
    """Scaling to unit length."""
    part.read_config(["config.json"])
    source, target = _features(part)
    part.done()
    return OnFeature(Normalize(), source, target)


def _features(part: Part) -> tuple[str, str]:
    source = part.take("module_input_name", str, SENTENCE)
    return source, part.config.pop("module_output_name", None) or source


def dropout(part: Part, remarks: list[str]) -> None:
    """Nothing: evaluation mode has no dropout."""


def layer_norm(part: Part, remarks: list[str]) -> nn.Module:
    """A LayerNorm with torch's defaults."""
    part.read_config(["config.json"])
    norm = LayerNorm(part.take("dimension", int))
    part.done()
    return OnFeature(filled(norm, part))


def weighted_layers(part: Part, remarks: list[str]) -> nn.Module:
    """A weighted mean over the encoder's layers."""
    part.read_config(["config.json"])
    part.drop(*WIDTHS, "num_hidden_layers")
    start = part.take("layer_start", int, 4)
    part.done()
    return WeightedLayers(start, read_weights(part)["layer_weights"])


def word_weights(part: Part, remarks: list[str]) -> nn.Module:
    """Weights of words. The config, a list of the words, is not needed."""
    return WordWeights(read_weights(part)["emb_layer.weight"])


def convolutions(part: Part, remarks: list[str]) -> nn.Module:
    """Convolutions that keep the length; after others, the package would pool over padding."""
    part.read_config(["cnn_config.json"])
    width = part.take(
        "in_embedding_dimension", int, part.config.pop("in_word_embedding_dimension", None)
    )
    kernels = part.take("kernel_sizes", list, [1, 3, 5])
    strides = part.config.pop("stride_sizes", None) or [1]
    if any(size % 2 == 0 for size in kernels) or set(strides) != {1}:
        raise Unsupported(
            f"{part.label}: even kernel sizes or strides, which change the length, are not supported"
        )
    module = Convolutions(width, part.take("out_channels", int, 256), kernels)
    part.done()
    return filled(module, part)


def activation(name: Any, label: str) -> nn.Module:
    """A module of torch.nn, by the full name of its class.

    Raises:
        Unsupported: it is something else, because that would run code that the folder names; or it needs
            arguments.
    """
    last = str(name).rpartition(".")[2]
    cls = getattr(nn, last, None) if str(name).startswith("torch.nn.") else None
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise Unsupported(f"{label}: activation {one_line(name, LONGEST)} is not in torch.nn")
    try:
        module: nn.Module = cls()
    except TypeError:
        raise Unsupported(
            f"{label}: activation {last} needs arguments, which the folder does not contain"
        ) from None
    return module
