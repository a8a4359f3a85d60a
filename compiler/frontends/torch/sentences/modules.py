"""What follows an encoder in a sentence-transformers folder, as torch modules.

A module takes and gives *features*: tensors by name. With h ``token_embeddings`` f32[batch, sequence,
width] and m ``attention_mask`` i64[batch, sequence], pooling makes f32[batch, width] of them:

    cls                   h at the first token that m has
    lasttoken             h at the last one
    mean                  sum(m h) / max(sum(m), 1e-9)
    mean_sqrt_len_tokens  sum(m h) / sqrt(max(sum(m), 1e-9))
    weightedmean          as mean, the tokens' positions (1 for the first that m has) for their weights
    max                   max of h where m is not 0

several of them beside each other. The numbers are those of the package ``sentence-transformers`` 6.2.
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
SMALLEST = 1e-9  # What a sum of weights is at least.


def read(features: Features, name: str) -> Tensor:
    """A feature.

    Raises:
        InvalidModel: no module before makes it.
    """
    if name not in features:
        raise InvalidModel(f"modules.json: no module makes {name} before it is read")
    found: Tensor = features[name]
    return found


class Encoder(nn.Module):
    """A model of transformers: ``input_ids``, ``attention_mask`` … to what ``path`` leads to in its output
    (``("last_hidden_state",)``), under the name ``output``."""

    def __init__(self, model: Any, path: Sequence[str | int], output: str) -> None:
        super().__init__()
        self.model, self.path, self.output = model, tuple(path), output
        self.taken = inspect.signature(model.forward).parameters

    def forward(self, features: Features) -> Features:
        taken = {k: features[k] for k in INPUTS if k in self.taken and k in features}
        if "hidden_states" in self.path:
            taken["output_hidden_states"] = True
        made = self.model(**taken, return_dict=True)
        if getattr(self.model.config, "output_hidden_states", False):
            features = {**features, "all_layer_embeddings": made["hidden_states"]}
        for key in self.path:
            made = made[key]
        return {**features, self.output: made}


class Table(nn.Module):
    """``input_ids`` to rows of a table, under ``token_embeddings``."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(weight)

    def forward(self, features: Features) -> Features:
        return {**features, TOKENS: self.embedding(features["input_ids"])}


class StaticEmbedding(Table):
    """The mean of the rows of a table that a text's ids pick; zeros for a text without ids."""

    def forward(self, features: Features) -> Features:
        mask = features["attention_mask"]
        rows = self.embedding(features["input_ids"])
        weights = mask.unsqueeze(-1).to(rows.dtype)
        return {**features, SENTENCE: (rows * weights).sum(1) / weights.sum(1).clamp(min=1)}


class WordWeights(nn.Module):
    """Token embeddings, each by the weight of its id."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(weight)

    def forward(self, features: Features) -> Features:
        weights = self.embedding(features["input_ids"]).squeeze(-1)
        weights = weights * features["attention_mask"].float()
        made = read(features, TOKENS) * weights.unsqueeze(-1)
        return {**features, TOKENS: made, "token_weights_sum": weights.sum(1)}


class Convolutions(nn.Module):
    """Convolutions over the tokens beside each other, their lengths all that of the text."""

    def __init__(self, width: int, channels: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(width, channels, size, padding=(size - 1) // 2) for size in kernels
        )

    def forward(self, features: Features) -> Features:
        turned = read(features, TOKENS).transpose(1, -1)
        made = torch.cat([conv(turned) for conv in self.convs], 1)
        return {**features, TOKENS: made.transpose(1, -1)}


class WeightedLayers(nn.Module):
    """Token embeddings as the weighted mean of those of the layers from ``start`` on."""

    def __init__(self, start: int, weights: Tensor) -> None:
        super().__init__()
        self.start = start
        self.layer_weights = nn.Parameter(weights)

    def forward(self, features: Features) -> Features:
        layers = features.get("all_layer_embeddings")
        if layers is None:  # The encoder's config does not ask for them.
            return features
        stacked = torch.stack(list(layers)[self.start :])
        weighted = (self.layer_weights.view(-1, 1, 1, 1) * stacked).sum(0)
        return {**features, TOKENS: weighted / self.layer_weights.sum()}


class Pooling(nn.Module):
    """Token embeddings to one embedding a text. ``include_prompt``: False keeps the first
    ``prompt_length`` tokens out."""

    def __init__(self, modes: Sequence[str], include_prompt: bool) -> None:
        super().__init__()
        self.modes, self.include_prompt = tuple(modes), include_prompt

    def forward(self, features: Features) -> Features:
        hidden, whole = read(features, TOKENS), features["attention_mask"]
        mask = whole if self.include_prompt else _without_prompt(whole, features["prompt_length"])
        told = features.get("token_weights_sum")
        made = [_POOLED[mode](hidden, mask, whole, told) for mode in self.modes]
        return {**features, SENTENCE: torch.cat(made, -1) if len(made) > 1 else made[0]}


def _without_prompt(mask: Tensor, length: Tensor) -> Tensor:
    positions = torch.arange(mask.shape[1], device=mask.device)
    return mask * (positions >= _first(mask).unsqueeze(1) + length).to(mask.dtype)


def _first(mask: Tensor) -> Tensor:
    """i64[batch]: where the first token of each text is, behind padding on its left."""
    return mask.to(torch.int32).argmax(1)


def _last(mask: Tensor) -> Tensor:
    positions = torch.arange(mask.shape[1], device=mask.device)
    return (positions * (mask != 0)).amax(1)


def _at(rows: Tensor, index: Tensor) -> Tensor:
    """f32[batch, width]: of each text the row at its index."""
    wide = index.view(-1, 1, 1).expand(-1, 1, rows.shape[-1])
    return torch.gather(rows, 1, wide).squeeze(1)


def _cls(hidden: Tensor, mask: Tensor, whole: Tensor, told: Tensor | None) -> Tensor:
    return _at(hidden, _first(mask))


def _last_token(hidden: Tensor, mask: Tensor, whole: Tensor, told: Tensor | None) -> Tensor:
    return _at(hidden * mask.unsqueeze(-1).to(hidden.dtype), _last(mask))


def _max(hidden: Tensor, mask: Tensor, whole: Tensor, told: Tensor | None) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)


def _mean(hidden: Tensor, mask: Tensor, whole: Tensor, told: Tensor | None) -> Tensor:
    return _sum(hidden, mask) / _weight(hidden, mask, told)


def _mean_sqrt(hidden: Tensor, mask: Tensor, whole: Tensor, told: Tensor | None) -> Tensor:
    return _sum(hidden, mask) / _weight(hidden, mask, told).sqrt()


def _weighted_mean(hidden: Tensor, mask: Tensor, whole: Tensor, told: Tensor | None) -> Tensor:
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    weights = mask * (positions - _first(whole).unsqueeze(1))
    return _sum(hidden, weights) / _weight(hidden, weights, told)


def _sum(hidden: Tensor, weights: Tensor) -> Tensor:
    return (hidden * weights.unsqueeze(-1).to(hidden.dtype)).sum(1)


def _weight(hidden: Tensor, weights: Tensor, told: Tensor | None) -> Tensor:
    summed = weights.unsqueeze(-1).to(hidden.dtype).sum(1) if told is None else told.unsqueeze(-1)
    return summed.clamp(min=SMALLEST)


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
    """Scores of the vocabulary f32[batch, sequence, V] to f32[batch, V]: log(1 + relu(h)) where m is not 0,
    its maximum or sum over the tokens; ``twice``: of log(1 + that)."""

    def __init__(self, sums: bool, twice: bool) -> None:
        super().__init__()
        self.sums, self.twice = sums, twice

    def forward(self, features: Features) -> Features:
        scores = read(features, TOKENS) * features["attention_mask"].unsqueeze(-1).to(
            read(features, TOKENS).dtype
        )
        made = scores.relu().log1p()
        made = made.log1p() if self.twice else made
        return {**features, SENTENCE: made.sum(1) if self.sums else made.amax(1)}


class OnFeature(nn.Module):
    """A module of one tensor on the feature ``source``, its result under ``target``."""

    def __init__(self, module: nn.Module, source: str = SENTENCE, target: str = SENTENCE) -> None:
        super().__init__()
        self.module, self.source, self.target = module, source, target

    def forward(self, features: Features) -> Features:
        return {**features, self.target: self.module(read(features, self.source))}


class Dense(nn.Module):
    """activation(x W + b), plus x (or x R, where the widths differ) with ``residual``; members are
    called as the package calls its weights."""

    def __init__(
        self, linear: nn.Linear, activation: nn.Module, residual: nn.Module | None
    ) -> None:
        super().__init__()
        self.linear, self.activation_function, self.residual = linear, activation, residual

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.activation_function(self.linear(x))
        return made if self.residual is None else made + self.residual(x)


class LayerNorm(nn.Module):
    """torch's, under the name of the package's weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.norm(x)
        return made


class Normalize(nn.Module):
    """x / max(|x|, 1e-12) along the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, p=2.0, dim=-1)
