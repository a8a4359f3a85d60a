"""Vocabularies of model folders: configs beside the model follow, prompts and lower case are thought of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from sentence_folders import CLOSE, TEXTS, WIDTH, save_model, words
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as theirs

import tersor
from tersor.ops.evaluate import evaluate
from tersor.trimming import model_files
from tersor.trimming.tokenizers import lowercased

CORPUS = TEXTS[:2]  # Without "query", ":", "red" …
PROMPTS = {"query": "query: ", "document": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder with prompts, whose texts are put in lower case."""
    path = tmp_path_factory.mktemp("folders")
    save_model(path / "bert")
    encoder = theirs.Transformer(str(path / "bert"), do_lower_case=True)
    parts = [encoder, theirs.Pooling(WIDTH), theirs.Normalize()]
    SentenceTransformer(modules=parts, device="cpu", prompts=PROMPTS).save(str(path / "st"))
    told = path / "st/sentence_bert_config.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), "do_lower_case": True}))
    # A tokenizer that leaves letters as they are, so that the folder's option counts.
    plain = words()
    plain.normalizer = None
    plain.save(str(path / "st/tokenizer.json"))
    vocabulary = plain.get_vocab()
    (path / "st/vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)))
    return path / "st"


@pytest.fixture(scope="module")
def small(folder: Path) -> Any:
    return tersor.trim_vocabulary(folder, [t.upper() for t in CORPUS])


def ids(data: bytes, texts: list[str]) -> dict[str, np.ndarray]:
    made = tokenizers.Tokenizer.from_buffer(data)
    made.enable_padding()
    encoded = made.encode_batch(texts)
    return {
        "input_ids": np.array([e.ids for e in encoded]),
        "attention_mask": np.array([e.attention_mask for e in encoded]),
    }


@pytest.mark.parametrize("prompt", ["", "query: "])
def test_embeddings_of_the_corpus_and_behind_prompts_stay(
    folder: Path, small: Any, prompt: str
) -> None:
    before = tersor.frontends.load_model(folder).graph
    old = ids(lowercased((folder / "tokenizer.json").read_bytes()), [prompt + t for t in CORPUS])
    new = ids(small.files["tokenizer.json"], [prompt + t.upper() for t in CORPUS])
    assert new["input_ids"].max() < 25 < 40
    assert 1 not in old["input_ids"]  # Nothing is unknown.
    wanted = evaluate(before, old)["sentence_embedding"]
    np.testing.assert_allclose(evaluate(small.graph, new)["sentence_embedding"], wanted, **CLOSE)


def test_files_beside_count_anew(folder: Path, small: Any) -> None:
    config = json.loads(small.files["config.json"])
    kept = tokenizers.Tokenizer.from_buffer(small.files["tokenizer.json"])
    assert config["vocab_size"] == kept.get_vocab_size() < 40
    assert config["pad_token_id"] == kept.token_to_id("[PAD]")
    assert "vocab.txt" not in small.files  # In old numbers.
    for name in ("1_Pooling/config.json", "modules.json", "config_sentence_transformers.json"):
        assert small.files[name] == (folder / name).read_bytes()


def test_an_older_folder_has_its_tokenizer_with_the_encoder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "st")
    inside = tmp_path / "st/0_Transformer"
    inside.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"):
        (tmp_path / "st" / name).rename(inside / name)
    listed = json.loads((tmp_path / "st/modules.json").read_text())
    listed[0]["path"] = inside.name
    (tmp_path / "st/modules.json").write_text(json.dumps(listed))
    made = tersor.trim_vocabulary(tmp_path / "st", CORPUS)
    assert "tokenizer.json" not in made.files
    trimmed = tokenizers.Tokenizer.from_buffer(made.files["0_Transformer/tokenizer.json"])
    assert trimmed.get_vocab_size() < 40


def test_ids_of_configs_stay_and_follow() -> None:
    config = {
        "vocab_size": 9,
        "pad_token_id": 8,
        "eos_token_id": [2, 5],
        "bos_token_id": None,
        "num_labels": 3,
        "text_config": {"vocab_size": 9, "forced_bos_token_id": 2},
    }
    generation = {"suppress_tokens": [5, 8, -1], "bad_words_ids": [[2, 5]], "max_length": 8}
    tokens = {"added_tokens_decoder": {"2": {"content": "a"}, "7": {"content": "b"}}, "x": 5}
    files = {
        "config.json": json.dumps(config).encode(),
        "0_Transformer/generation_config.json": json.dumps(generation).encode(),
        "tokenizer_config.json": json.dumps(tokens).encode(),
        "1_Pooling/config.json": b'{"pooling_mode": "mean"}',
        "merges.txt": b"a b",
        "notes.json": b"{ not read",
    }
    assert model_files.named_ids(files) == {2, 5, 8}
    made = model_files.renumbered(files, [2, 5, 8], 9)
    assert json.loads(made["config.json"]) == {
        "vocab_size": 3,
        "pad_token_id": 2,
        "eos_token_id": [0, 1],
        "bos_token_id": None,
        "num_labels": 3,
        "text_config": {"vocab_size": 3, "forced_bos_token_id": 0},
    }
    assert json.loads(made["0_Transformer/generation_config.json"]) == {
        "suppress_tokens": [1, 2, -1], "bad_words_ids": [[0, 1]], "max_length": 8,
    }  # fmt: skip
    assert json.loads(made["tokenizer_config.json"]) == {
        "added_tokens_decoder": {"0": {"content": "a"}}, "x": 5,
    }  # fmt: skip
    assert made.keys() == files.keys() - {"merges.txt"}
    assert made["notes.json"] == files["notes.json"]
