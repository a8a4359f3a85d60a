"""The modules of sentence-transformers folders, as torch modules.

A module maps *features* to features: tensors by name. From ``token_embeddings`` h, f32[batch, sequence,
width], and ``attention_mask`` m, i64[batch, sequence], pooling computes f32[batch, width]:

    cls                   h at the first token where m is not 0
    lasttoken             h at the last one
    mean                  sum(m h) / max(sum(m), 1e-9)
    mean_sqrt_len_tokens  sum(m h) / sqrt(max(sum(m), 1e-9))
    weightedmean          as mean, weighted by position (1 at the first token where m is not 0)
    max                   max of h where m is not 0

or the concatenation of several. The results equal those of the package ``sentence-transformers`` 6.2.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidModel

Features = dict[str, Any]
TOKENS, SENTENCE, SCORES = "token_embeddings", "sentence_embedding", "scores"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MIN_WEIGHT = 1e-9  # Lower bound of a sum of weights.


def read(features: Features, name: str) -> Tensor:
    """A feature.

    Raises:
        InvalidModel: no previous module computes it.
    """
    if name not in features:
        raise InvalidModel(f"modules.json: {name} is read before any module computes it")
    feature: Tensor = features[name]
    return feature


class Encoder(nn.Module):
    """A transformers model: from ``input_ids``, ``attention_mask`` … to the element at ``path`` of its output
    (``("last_hidden_state",)``), as the feature ``output``."""

    def __init__(self, model: Any, path: Sequence[str | int], output: str) -> None:
        super().__init__()
        self.model, self.path, self.output = model, tuple(path), output
        self.parameter_names = set(inspect.signature(model.forward).parameters)

    def forward(self, features: Features) -> Features:
        arguments = {k: features[k] for k in INPUTS if k in self.parameter_names and k in features}
        if "hidden_states" in self.path:
            arguments["output_hidden_states"] = True
        result = self.model(**arguments, return_dict=True)
        if getattr(self.model.config, "output_hidden_states", False):
            features = {**features, "all_layer_embeddings": result["hidden_states"]}
        for key in self.path:
            result = result[key]
        return {**features, self.output: result}


class Table(nn.Module):
    """``token_embeddings`` as the rows of a table at ``input_ids``."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(weight)

    def forward(self, features: Features) -> Features:
        return {**features, TOKENS: self.embedding(features["input_ids"])}


class StaticEmbedding(Table):
    """The mean of a table's rows at the ids of a text; zeros for a text without ids."""

    def forward(self, features: Features) -> Features:
        mask = features["attention_mask"]
        rows = self.embedding(features["input_ids"])
        weights = mask.unsqueeze(-1).to(rows.dtype)
        return {**features, SENTENCE: (rows * weights).sum(1) / weights.sum(1).clamp(min=1)}


class WordWeights(nn.Module):
    """Token embeddings, multiplied by weights of the ids."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(weight)

    def forward(self, features: Features) -> Features:
        weights = self.embedding(features["input_ids"]).squeeze(-1)
        weights = weights * features["attention_mask"].float()
        weighted = read(features, TOKENS) * weights.unsqueeze(-1)
        return {**features, TOKENS: weighted, "token_weights_sum": weights.sum(1)}


class Convolutions(nn.Module):
    """Concatenated convolutions over the tokens, which keep the length of the text."""

    def __init__(self, width: int, channels: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(width, channels, size, padding=(size - 1) // 2) for size in kernels
        )

    def forward(self, features: Features) -> Features:
        channels_first = read(features, TOKENS).transpose(1, -1)
        joined = torch.cat([conv(channels_first) for conv in self.convs], 1)
        return {**features, TOKENS: joined.transpose(1, -1)}


class WeightedLayers(nn.Module):
    """Token embeddings as the weighted mean of those of all layers from ``start`` on."""

    def __init__(self, start: int, weights: Tensor) -> None:
        super().__init__()
        self.start = start
        self.layer_weights = nn.Parameter(weights)

    def forward(self, features: Features) -> Features:
        layers = features.get("all_layer_embeddings")
        if layers is None:  # The encoder's config does not request them.
            return features
        stacked = torch.stack(list(layers)[self.start :])
        weighted = (self.layer_weights.view(-1, 1, 1, 1) * stacked).sum(0)
        return {**features, TOKENS: weighted / self.layer_weights.sum()}


class Pooling(nn.Module):
    """One embedding per text from the token embeddings. ``include_prompt``: False leaves out the first
    ``prompt_length`` tokens."""

    def __init__(self, modes: Sequence[str], include_prompt: bool) -> None:
        super().__init__()
        self.modes, self.include_prompt = tuple(modes), include_prompt

    def forward(self, features: Features) -> Features:
        hidden, whole = read(features, TOKENS), features["attention_mask"]
        mask = whole if self.include_prompt else _without_prompt(whole, features["prompt_length"])
        total = features.get("token_weights_sum")
        pooled = [_POOLED[mode](hidden, mask, whole, total) for mode in self.modes]
        return {**features, SENTENCE: torch.cat(pooled, -1) if len(pooled) > 1 else pooled[0]}


def _without_prompt(mask: Tensor, length: Tensor) -> Tensor:
    positions = torch.arange(mask.shape[1], device=mask.device)
    return mask * (positions >= _first(mask).unsqueeze(1) + length).to(mask.dtype)


def _first(mask: Tensor) -> Tensor:
    """i64[batch]: the position of each text's first token, after padding on the left."""
    return mask.to(torch.int32).argmax(1)


def _last(mask: Tensor) -> Tensor:
    positions = torch.arange(mask.shape[1], device=mask.device)
    return (positions * (mask != 0)).amax(1)


def _at(rows: Tensor, index: Tensor) -> Tensor:
    """f32[batch, width]: each text's row at its index."""
    expanded = index.view(-1, 1, 1).expand(-1, 1, rows.shape[-1])
    return torch.gather(rows, 1, expanded).squeeze(1)


# Pooling functions of the token embeddings, the mask of the tokens to pool, the mask of all tokens, and
# the sum of the tokens' weights, if they have any.


def _cls(hidden: Tensor, mask: Tensor, whole: Tensor, total: Tensor | None) -> Tensor:
    return _at(hidden, _first(mask))


def _last_token(hidden: Tensor, mask: Tensor, whole: Tensor, total: Tensor | None) -> Tensor:
    return _at(hidden * mask.unsqueeze(-1).to(hidden.dtype), _last(mask))


def _max(hidden: Tensor, mask: Tensor, whole: Tensor, total: Tensor | None) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)


def _mean(hidden: Tensor, mask: Tensor, whole: Tensor, total: Tensor | None) -> Tensor:
    return _sum(hidden, mask) / _weight(hidden, mask, total)


def _mean_sqrt(hidden: Tensor, mask: Tensor, whole: Tensor, total: Tensor | None) -> Tensor:
    return _sum(hidden, mask) / _weight(hidden, mask, total).sqrt()


def _weighted_mean(hidden: Tensor, mask: Tensor, whole: Tensor, total: Tensor | None) -> Tensor:
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    weights = mask * (positions - _first(whole).unsqueeze(1))
    return _sum(hidden, weights) / _weight(hidden, weights, total)


def _sum(hidden: Tensor, weights: Tensor) -> Tensor:
    return (hidden * weights.unsqueeze(-1).to(hidden.dtype)).sum(1)


def _weight(hidden: Tensor, weights: Tensor, total: Tensor | None) -> Tensor:
    summed = weights.unsqueeze(-1).to(hidden.dtype).sum(1) if total is None else total.unsqueeze(-1)
    return summed.clamp(min=MIN_WEIGHT)


_POOLED = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last_token,
}
MODES = tuple(_POOLED)


class Splade(nn.Module):
    """From scores over the vocabulary h, f32[batch, sequence, V], to f32[batch, V]: the maximum or the sum
    over the tokens of log(1 + relu(m h)); with ``twice``, of log(1 + log(1 + relu(m h)))."""

    def __init__(self, sums: bool, twice: bool) -> None:
        super().__init__()
        self.sums, self.twice = sums, twice

    def forward(self, features: Features) -> Features:
        scores = read(features, TOKENS) * features["attention_mask"].unsqueeze(-1).to(
            read(features, TOKENS).dtype
        )
        scores = scores.relu().log1p()
        scores = scores.log1p() if self.twice else scores
        return {**features, SENTENCE: scores.sum(1) if self.sums else scores.amax(1)}


class OnFeature(nn.Module):
    """Applies a module of one tensor to the feature ``source``; the result is the feature ``target``."""

    def __init__(self, module: nn.Module, source: str = SENTENCE, target: str = SENTENCE) -> None:
        super().__init__()
        self.module, self.source, self.target = module, source, target

    def forward(self, features: Features) -> Features:
        return {**features, self.target: self.module(read(features, self.source))}


class Dense(nn.Module):
    """activation(x W + b), plus ``residual``(x) if given: x, or x R if the widths differ. Members have the
    names of the package's weights."""

    def __init__(
        self, linear: nn.Linear, activation: nn.Module, residual: nn.Module | None
    ) -> None:
        super().__init__()
        self.linear, self.activation_function, self.residual = linear, activation, residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation_function(self.linear(x))
        return y if self.residual is None else y + self.residual(x)


class LayerNorm(nn.Module):
    """torch's LayerNorm, with the names of the package's weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y


class Normalize(nn.Module):
    """x / max(|x|, 1e-12) along the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, p=2.0, dim=-1)
