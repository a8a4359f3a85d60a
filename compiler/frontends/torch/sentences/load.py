"""Loads a folder's modules as one module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidModel
from tersor.frontends.naming import Names
from tersor.frontends.torch.pretrained import BATCH, SEQUENCE, Loaded, read_object, text_inputs
from tersor.frontends.torch.sentences import encoders, heads
from tersor.frontends.torch.sentences.modules import (
    SCORES,
    SENTENCE,
    TOKENS,
    Encoder,
    Features,
    OnFeature,
    Pooling,
    Table,
)
from tersor.frontends.torch.sentences.part import NAME, Part, read_parts

CONFIG = "config_sentence_transformers.json"
BUILDERS: dict[str, Callable[[Part, list[str]], nn.Module | None]] = {
    "Transformer": encoders.transformer,
    "MLMTransformer": encoders.masked_lm,
    "WordEmbeddings": encoders.word_embeddings,
    "StaticEmbedding": encoders.static_embedding,
    "Pooling": heads.pooling,
    "SpladePooling": heads.splade,
    "Normalize": heads.normalize,
    "Dense": heads.dense,
    "Dropout": heads.dropout,
    "LayerNorm": heads.layer_norm,
    "WeightedLayerPooling": heads.weighted_layers,
    "WordWeights": heads.word_weights,
    "CNN": heads.convolutions,
}
WHY_NOT = {
    "BoW": "its tokenizer computes its vectors of counts, so there is nothing to compile",
    "LSTM": "it runs on packed sequences, which cannot be traced",
    "Router": "it has a route for each task: save the modules of one route",
    "Asym": "it has a route for each kind of text: save the modules of one route",
    "CLIPModel": "it takes images",
}


class Sentences(nn.Module):
    """From a text's ids and mask to its embedding, or a pair's to its scores.

    ``keep``: the number of dims to which embeddings are truncated; None: all.
    """

    def __init__(self, parts: dict[str, nn.Module], keep: int | None) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.keep = keep

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        prompt_length: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``sentence_embedding`` f32[batch, width], ``scores`` f32[batch, labels], or without pooling
        ``token_embeddings`` f32[batch, sequence, width].

        ``input_ids``, ``attention_mask``, ``token_type_ids``: i64[batch, sequence]; ``prompt_length``:
        i64[1], the number of tokens at the beginning that pooling leaves out.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "prompt_length": prompt_length,
        }
        features: Features = {k: v for k, v in given.items() if v is not None}
        for part in self.children():
            features = part(features)
        name = next(n for n in (SENTENCE, SCORES, TOKENS) if n in features)
        result: Tensor = features[name]
        return {name: result[..., : self.keep] if name == SENTENCE else result}


def load_sentences(directory: Path, *, trust: bool = False) -> Loaded:
    """The modules of a folder as one. Its ``sentence_embedding`` equals the result of the package's
    ``encode``, with truncation; for a CrossEncoder, its ``scores`` equal that of ``predict``.

    If pooling leaves out the prompt, the number of its tokens is an input, ``prompt_length`` i64[1].

    Args:
        directory: the model folder.
        trust: also read pickled weights.

    Raises:
        InvalidModel: a damaged config, or weights that are missing or do not match.
        Unsupported: a module that is not supported, or pickled weights that are not trusted.
    """
    path = directory / CONFIG
    config = read_object(path) if path.is_file() else {}
    keep = config.get("truncate_dim")
    if keep is not None and not (type(keep) is int and keep > 0):
        raise InvalidModel(f"{path}: truncate_dim must be a positive integer")
    remarks: list[str] = []
    names = Names()
    modules: dict[str, nn.Module] = {}
    for part in read_parts(directory, list(BUILDERS), WHY_NOT):
        part.trust = trust
        module = BUILDERS[part.kind](part, remarks)
        if module is not None:
            modules[names.unique(part.kind.lower())] = module
    chain = list(modules.values())
    _check_order(chain, directory)
    last, function = chain[-1], config.get("activation_fn")
    if function and isinstance(last, Encoder) and last.output == SCORES:
        activation = heads.activation(function, str(path))
        modules["activation"] = OnFeature(activation, SCORES, SCORES)
    examples, shapes = _inputs(chain)
    return Loaded(Sentences(modules, keep).eval(), examples, shapes, remarks)


def _check_order(modules: list[nn.Module], directory: Path) -> None:
    """Raises:
    InvalidModel: the first module does not take token ids, or the next one does too.
    """
    takes_ids = [isinstance(module, (Encoder, Table)) for module in modules[:2]]
    if takes_ids not in ([True], [True, False]):
        raise InvalidModel(
            f"{directory / NAME}: the first module, and no other, must take token ids"
        )


def _inputs(parts: list[nn.Module]) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    """Example inputs for modules, and their dynamic shapes."""
    names = ["input_ids", "attention_mask"]
    encoder = parts[0]
    if isinstance(encoder, Encoder):
        examples, _ = text_inputs(encoder.model, pairs=encoder.output == SCORES)
        names += [name for name in examples if name == "token_type_ids"]
    examples = {n: torch.ones((BATCH, SEQUENCE), dtype=torch.long) for n in names}
    shapes = {n: {0: "batch", 1: "sequence"} for n in names}
    if any(isinstance(p, Pooling) and not p.include_prompt for p in parts):
        examples["prompt_length"] = torch.ones(1, dtype=torch.long)
        shapes["prompt_length"] = {}
    return examples, shapes
