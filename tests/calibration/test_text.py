"""Texts as token ids: what goes to which input, how long, padded how, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tersor.calibration.sources import open_calibration
from tersor.calibration.text import read_texts
from tersor.errors import InvalidOption
from tersor.ir import Graph, parse
from tersor.ops import TABLE

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "sat", "the", "red"]
BERT = """graph main(%input_ids: i64[b, n], %attention_mask: i64[b, n], %token_type_ids: i32[b, n]) -> (y = %y) {
  @w: f32[9, 4] = dense normal(0)
  %y: f32[b, n, 4] = Gather(@w, %input_ids)
}"""


def graph(text: str = BERT) -> Graph:
    return parse(text, TABLE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder's tokenizer: [CLS] text [SEP], padded by 0 on the right."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    made = tmp_path / "model"
    made.mkdir()
    tokenizer.save(str(made / "tokenizer.json"))
    return made


def written(tmp_path: Path, text: str, name: str = "t.txt") -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def config(folder: Path, name: str, **values: Any) -> None:
    (folder / name).write_text(json.dumps(values))


def test_tokens_go_to_the_inputs_by_their_names(folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path, "a cat\n\n  the red cat sat \na dog\n")
    first, second = open_calibration(path, graph(), model=folder, batch=2)
    assert first["input_ids"].tolist() == [[2, 4, 5, 3, 0, 0], [2, 7, 8, 5, 6, 3]]
    assert first["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert first["token_type_ids"].dtype == np.int32 and not first["token_type_ids"].any()
    assert second["input_ids"].tolist() == [[2, 4, 1, 3]]
    (whole,) = open_calibration(path, graph(), model=folder)
    assert whole["input_ids"].shape == (3, 6)


def test_lines_of_json(folder: Path, tmp_path: Path) -> None:
    lines = [
        '"a cat"',
        '{"text": "sat", "label": 1}',
        '["a", "cat"]',
        '{"text": "a", "text_pair": "cat"}',
    ]
    path = written(tmp_path, "\n".join(lines), "t.jsonl")
    assert list(read_texts(path)) == ["a cat", "sat", ("a", "cat"), ("a", "cat")]
    (found,) = open_calibration(path, graph(), model=folder)
    assert found["input_ids"].tolist()[2] == [2, 4, 3, 5, 3]
    assert found["token_type_ids"].tolist()[2] == [0, 0, 0, 1, 1]
    for line in ("{}", "[1]", "3", "{'text': 1}", "[" * 100_000, '["a", "b", "c"]'):
        with pytest.raises(InvalidOption, match=r"t.jsonl, line 2: "):
            list(read_texts(written(tmp_path, f'"a"\n{line}\n', "t.jsonl")))


@pytest.mark.parametrize(
    ("write", "length"),
    [
        (lambda f: None, 7),
        (lambda f: config(f, "tokenizer_config.json", model_max_length=5), 5),
        (lambda f: config(f, "tokenizer_config.json", model_max_length=10**30), 7),
        (lambda f: config(f, "config.json", max_position_embeddings=4), 4),
        (lambda f: config(f, "config.json", max_position_embeddings=7, model_type="roberta", pad_token_id=1), 5),
        (lambda f: [config(f, "sentence_bert_config.json", max_seq_length=6), config(f, "tokenizer_config.json", model_max_length=3)], 6),
    ],
)  # fmt: skip
def test_what_is_too_long_is_cut(
    write: Callable[[Path], Any], length: int, folder: Path, tmp_path: Path
) -> None:
    write(folder)
    path = written(tmp_path, "a cat sat the red\n")
    (found,) = open_calibration(path, graph(), model=folder)
    assert found["input_ids"].shape == (1, length) and found["input_ids"][0, -1] == 3


def test_padding_as_the_folder_has_it(folder: Path, tmp_path: Path) -> None:
    config(folder, "tokenizer_config.json", padding_side="left", pad_token="red")
    text = BERT.replace("%token_type_ids: i32", "%position_ids: i64")
    (found,) = open_calibration(written(tmp_path, "a\na cat\n"), graph(text), model=folder)
    assert found["input_ids"].tolist() == [[8, 2, 4, 3], [2, 4, 5, 3]]
    assert found["attention_mask"].tolist() == [[0, 1, 1, 1], [1] * 4]
    assert found["position_ids"].tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]]


def test_a_model_of_fixed_sizes(folder: Path, tmp_path: Path) -> None:
    fixed = graph(BERT.replace("b, n", "2, 5"))
    path = written(tmp_path, "a\na cat\nthe red cat sat\nsat\n")
    found = list(open_calibration(path, fixed, model=folder))
    assert [b["input_ids"].shape for b in found] == [(2, 5)] * 2
    assert found[1]["input_ids"][0].tolist() == [2, 7, 8, 5, 3]
    with pytest.raises(InvalidOption, match=r"t.txt: 1 texts are no whole batches of 2"):
        open_calibration(written(tmp_path, "a\n"), fixed, model=folder)


def test_names_of_older_exports_and_an_only_input(folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path, "a cat\n")
    text = BERT.replace("attention_mask", "input_mask").replace("token_type_ids", "segment_ids")
    (found,) = open_calibration(path, graph(text), model=folder)
    assert set(found) == {"input_ids", "input_mask", "segment_ids"}
    alone = """graph main(%x: i32[b, n]) -> (y = %y) {
      @w: f32[9, 4] = dense normal(0)
      %y: f32[b, n, 4] = Gather(@w, %x)
    }"""
    (found,) = open_calibration(path, graph(alone), model=folder)
    assert found["x"].dtype == np.int32 and found["x"].tolist() == [[2, 4, 5, 3]]


def test_the_tokenizer_of_an_onnx_file_lies_beside_it_or_above(
    folder: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, "a cat\n")
    (folder / "onnx").mkdir()
    for model in (folder / "model.onnx", folder / "onnx" / "model.onnx"):
        assert len(open_calibration(path, graph(), model=str(model))) == 1
    files = {"tokenizer.json": (folder / "tokenizer.json").read_bytes()}
    assert len(open_calibration(path, graph(), model=object(), files=files)) == 1
    lower = {**files, "sentence_bert_config.json": b'{"do_lower_case": true}'}
    upper = written(tmp_path, "A CAT\n", "u.txt")
    (found,) = open_calibration(upper, graph(), model=None, files=lower)
    assert found["input_ids"].tolist() == [[2, 4, 5, 3]]


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path, "a cat\n")

    def refused(match: str, text: str = BERT, model: Any = folder, given: Path = path) -> None:
        with pytest.raises(InvalidOption, match=match):
            open_calibration(given, graph(text), model=model)

    refused(
        r"t.txt: texts need the model's tokenizer, and there is no tokenizer.json in",
        model=tmp_path,
    )
    refused(r"t.txt: texts need the model's tokenizer, and the model has none", model=None)
    refused(r"e.txt: contains no texts", given=written(tmp_path, " \n\n", "e.txt"))
    refused(r"cannot read .*none.txt: No such file", given=tmp_path / "none.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    refused(r"pipe.txt: not a regular file", given=tmp_path / "pipe.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    refused(r"cannot read .*latin.txt: it is not UTF-8", given=tmp_path / "latin.txt")
    images = BERT.replace("%token_type_ids: i32[b, n]", "%pixels: f32[b, 3, n, n]")
    refused(r"the model takes pixels too: give arrays", text=images)
    refused(r"the model takes x: give arrays", text="graph main(%x: f32[b, 3]) -> (y = %x) {\n}")
    refused(
        r"t.txt: the tokenizer gives id 5, but the model has 5 embeddings",
        text=BERT.replace("f32[9", "f32[5"),
    )
    (folder / "tokenizer.json").write_text("{}")
    refused(r"t.txt: the tokenizer cannot be read")


def test_without_the_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InvalidOption, match=r"t.txt: texts need the package 'tokenizers': pip"):
        open_calibration(written(tmp_path, "a cat\n"), graph(), model=folder)
