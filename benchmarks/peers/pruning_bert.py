"""What the peers that prune MiniLM as a torch module share: where its heads and FFN neurons lie, and the
gradients of its weights on the sentences that calibrate."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from peers import pruning_share

from tersor.models.minilm import build

Feed = Mapping[str, np.ndarray]


def layers(module: torch.nn.Module) -> list[Any]:
    """The encoder's layers."""
    return list(module.encoder.encoder.layer)  # type: ignore[union-attr]


def run(module: torch.nn.Module, feed: Feed) -> torch.Tensor:
    """The embeddings, with a graph for gradients."""
    return module(**{name: torch.from_numpy(feed[name]) for name in build.INPUTS})


def copied(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of ``module`` that shares the embeddings, which no peer touches."""
    embeddings = module.encoder.embeddings.requires_grad_(False)  # type: ignore[union-attr]
    return copy.deepcopy(module, {id(embeddings): embeddings})


def macs(module: torch.nn.Module) -> int:
    """Multiply-adds at 8x128 of an encoder whose linears have the sizes that are left: a weight is used
    once a token; q.k and attention.v take length * width each."""
    tokens = pruning_share.SIZES["batch"] * pruning_share.SIZES["sequence"]
    total = 0
    for layer in layers(module):
        inner = layer.attention.self
        linears = (inner.query, inner.key, inner.value, layer.attention.output.dense)
        weights = [*linears, layer.intermediate.dense, layer.output.dense]
        total += tokens * sum(linear.weight.numel() for linear in weights)
        total += 2 * tokens * pruning_share.SIZES["sequence"] * inner.query.out_features
    return total
