"""Small folders as sentence-transformers saves them, with random weights, and the package's own output."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    *SPECIAL,
    *[
        "the",
        "a",
        "cat",
        "dog",
        "sat",
        "ran",
        "on",
        "mat",
        "tree",
        "house",
        "over",
        "red",
        "blue",
        "query",
        "passage",
        ":",
        ".",
    ],
]
WIDTH, VOCABULARY = 16, 40
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
}
TEXTS = ["the cat sat on the mat.", "a dog ran", "query: red house over the blue tree"]
# Sums of some tens of float32 of magnitude 1, in another order.
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def words(count: int = VOCABULARY) -> Tokenizer:
    """A tokenizer of whole words, with BERT's special tokens."""
    listed = [*WORDS, *(f"w{i}" for i in range(count - len(WORDS)))]
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(listed)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made


def save_tokenizer(path: Path, **options: Any) -> None:
    """Transformers' files of :func:`words`."""
    names = dict(
        zip(
            ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True
        )
    )
    wrapped = transformers.BertTokenizerFast(tokenizer_object=words(), **names, **options)
    wrapped.save_pretrained(path)


def save_model(path: Path, name: str = "BertModel", **options: Any) -> Any:
    """A model of transformers with random weights, and its tokenizer; gives the model."""
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    made = cls(cls.config_class(**{**SHAPE, **options})).eval()
    made.save_pretrained(path)
    save_tokenizer(path)
    return made


@cache
def batch(left: bool = False) -> dict[str, np.ndarray]:
    """Ids and mask of three texts of several lengths, padded right or left."""
    made = words()
    made.enable_padding(direction="left" if left else "right")
    encoded = made.encode_batch(TEXTS)
    return {
        "input_ids": np.array([e.ids for e in encoded]),
        "attention_mask": np.array([e.attention_mask for e in encoded]),
    }


def package(
    path: Path, feeds: dict[str, np.ndarray], name: str = "sentence_embedding"
) -> np.ndarray:
    """What the package's modules make of ids, and ``encode`` of the result."""
    model = SentenceTransformer(str(path), device="cpu").eval()
    features: dict[str, Any] = {k: torch.from_numpy(v) for k, v in feeds.items()}
    if "prompt_length" in features:
        features["prompt_length"] = int(feeds["prompt_length"][0])
    with torch.inference_mode():
        made = model(features)[name]
    return np.asarray(made[..., : model.truncate_dim].numpy())
