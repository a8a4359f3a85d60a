"""The modules of a folder as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidModel
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

OF_ALL = "config_sentence_transformers.json"
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
    "BoW": "its vectors are counts that its tokenizer makes, and there is nothing to compile",
    "LSTM": "it runs over packed sequences, which have no counterpart",
    "Router": "it goes another way for each task: save the modules of one way",
    "Asym": "it goes another way for each text: save the modules of one way",
    "CLIPModel": "it takes images",
}


class Sentences(nn.Module):
    """A text's ids and mask to its embedding, a pair's to its scores.

    ``keep``: how many numbers of an embedding are given, the first ones; None for all.
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
        """``sentence_embedding`` f32[batch, width], ``scores`` f32[batch, labels], or, where nothing pools
        them, ``token_embeddings`` f32[batch, sequence, width].

        ``input_ids``, ``attention_mask``, ``token_type_ids``: i64[batch, sequence]; ``prompt_length``:
        i64[1], how many tokens at the beginning are a prompt that pooling leaves out.
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
        made: Tensor = features[name]
        return {name: made[..., : self.keep] if name == SENTENCE else made}


def load_sentences(directory: Path, *, trust: bool = False) -> Loaded:
    """The modules of a folder as one, whose ``sentence_embedding`` is what the package's ``encode`` gives,
    its truncation included; for a CrossEncoder ``scores``, as ``predict`` gives them.

    Where pooling leaves out the prompt, its number of tokens is an input, ``prompt_length`` i64[1].

    Args:
        trust: read pickled weights too.

    Raises:
        InvalidModel: a broken config, weights that are missing or do not fit.
        Unsupported: a module that is not known here, by name; pickled weights that are not trusted.
    """
    of_all = read_object(directory / OF_ALL) if (directory / OF_ALL).is_file() else {}
    keep = of_all.get("truncate_dim")
    if keep is not None and not (type(keep) is int and keep > 0):
        raise InvalidModel(f"{directory / OF_ALL}: its truncate_dim is no number of dims")
    remarks: list[str] = []
    built: dict[str, nn.Module] = {}
    for part in read_parts(directory, list(BUILDERS), WHY_NOT):
        part.trust = trust
        module = BUILDERS[part.kind](part, remarks)
        if module is not None:
            built[_free_name(part.kind.lower(), built)] = module
    parts = list(built.values())
    _check_order(parts, directory)
    if (
        of_all.get("activation_fn")
        and isinstance(parts[-1], Encoder)
        and parts[-1].output == SCORES
    ):
        function = heads.activation(of_all["activation_fn"], str(directory / OF_ALL))
        built["activation"] = OnFeature(function, SCORES, SCORES)
    examples, shapes = _inputs(parts)
    return Loaded(Sentences(built, keep).eval(), examples, shapes, remarks)


def _free_name(name: str, taken: dict[str, Any]) -> str:
    """``dense``, ``dense_1`` …"""
    names = [name, *(f"{name}_{i}" for i in range(1, len(taken) + 1))]
    return next(n for n in names if n not in taken)


def _check_order(parts: list[nn.Module], directory: Path) -> None:
    """Raises:
    InvalidModel: what takes ids of tokens is not the first module, and no other.
    """
    if [isinstance(part, (Encoder, Table)) for part in parts[:2]] not in ([True], [True, False]):
        raise InvalidModel(f"{directory / NAME}: its first module alone has to take ids of tokens")


def _inputs(parts: list[nn.Module]) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    """Example inputs of these modules, and their dynamic shapes."""
    names = ["input_ids", "attention_mask"]
    encoder = parts[0]
    if isinstance(encoder, Encoder):
        told, _ = text_inputs(encoder.model, pairs=encoder.output == SCORES)
        names += [name for name in told if name == "token_type_ids"]
    examples = {n: torch.ones((BATCH, SEQUENCE), dtype=torch.long) for n in names}
    shapes = {n: {0: "batch", 1: "sequence"} for n in names}
    if any(isinstance(p, Pooling) and not p.include_prompt for p in parts):
        examples["prompt_length"] = torch.ones(1, dtype=torch.long)
        shapes["prompt_length"] = {}
    return examples, shapes
