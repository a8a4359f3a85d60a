"""Real inputs: English sentences from Python's own documentation, as token ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pydoc_data.topics import topics

import numpy as np
from tokenizers import Tokenizer

from tersor.models.minilm.build import directory

CALIBRATION, TEST = slice(0, 64), slice(500, 1000)
MAX_LENGTH = 128
Feed = dict[str, np.ndarray]


@cache
def sentences() -> tuple[str, ...]:
    """All sentences of 30 to 300 characters, in the order of the topics' names."""
    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    found = re.split(r"(?<=[.!?])\s+", text)
    return tuple(s for s in found if 30 <= len(s) <= 300)


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(directory() / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.no_padding()
    return tokenizer


def encode(texts: Sequence[str]) -> Feed:
    """``input_ids`` and ``attention_mask``, i64[len(texts), longest], padded with zeros."""
    rows = [e.ids for e in _tokenizer().encode_batch(list(texts))]
    longest = max(map(len, rows))
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def batches(texts: Sequence[str], size: int = 32) -> list[Feed]:
    """``texts`` in their order, ``size`` at a time."""
    return [encode(texts[i : i + size]) for i in range(0, len(texts), size)]


def calibration() -> list[Feed]:
    """The first 64 sentences, in batches of 8."""
    return batches(sentences()[CALIBRATION], 8)


def much_calibration() -> list[Feed]:
    """1,500 sentences that are not tested on, without padding: up to 32 of one length in a batch."""
    texts = [*sentences()[: TEST.start], *sentences()[TEST.stop : TEST.stop + 1000]]
    by_length: dict[int, list[list[int]]] = {}
    for encoded in _tokenizer().encode_batch(texts):
        by_length.setdefault(len(encoded.ids), []).append(encoded.ids)
    made = []
    for _, rows in sorted(by_length.items()):
        for i in range(0, len(rows), 32):
            ids = np.array(rows[i : i + 32], np.int64)
            made.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return made


def test_feeds() -> list[Feed]:
    """The 500 sentences that fidelity is measured on."""
    return batches(sentences()[TEST])


def full(batch: int, length: int) -> Feed:
    """Ids without padding, i64[batch, length]: real tokens, laid end to end. For timing."""
    ids = np.concatenate(
        [np.array(e.ids) for e in _tokenizer().encode_batch(list(sentences()[TEST]))]
    )
    shape = (batch, length)
    return {"input_ids": np.resize(ids, shape), "attention_mask": np.ones(shape, np.int64)}
