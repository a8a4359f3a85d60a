"""``--calibration texts.txt``: the tokenizer next to the model makes the inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import Result

import tersor
from tersor.backends.ort import build
from tersor.built import main_file
from tersor.ir import parse
from tersor.ops import TABLE

Run = Callable[..., Result]
MODEL = """graph main(%input_ids: i64[b, n], %attention_mask: i64[b, n]) -> (y = %y) {
  @t: f32[5, 64] = dense normal(0)
  @w: f32[64, 64] = dense normal(1)
  %x: f32[b, n, 64] = Gather(@t, %input_ids)
  %y: f32[b, n, 64] = MatMul(%x, @w)
}"""
WORDS = {"[PAD]": 0, "[UNK]": 1, "a": 2, "red": 3, "cat": 4}


@pytest.fixture
def model(folder: Path) -> Path:
    Path("m.onnx").write_bytes(main_file(build(parse(MODEL, TABLE))))
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save("tokenizer.json")
    Path("t.txt").write_text("a cat\na red cat\ncat\n" * 5)
    Path("t.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in ("a cat", "a red cat", "cat") * 5)
    )
    return Path("m.onnx")


@pytest.mark.parametrize("texts", ["t.txt", "t.jsonl"])
def test_texts_calibrate(run: Run, model: Path, texts: str) -> None:
    result = run(
        "compile", str(model), "out", "--no-measure", "--calibration", texts, "--batch", "4"
    )
    assert result.exit_code == 0, result.stderr
    artifact = tersor.load("out")
    # The last of each four is not fitted on, and judges.
    assert artifact.report.fidelity is not None and artifact.report.fidelity.samples == 3
    assert artifact.manifest["calibration"]["batches"] == 4
    # The same as with the batches themselves.
    rows = [[2, 4, 0], [2, 3, 4], [4, 0, 0], [2, 4, 0]]
    ids = np.array([rows[i % 3] for i in range(15)])
    batches = [ids[:4], ids[4:8], ids[8:12], ids[12:]]
    given = [{"input_ids": b, "attention_mask": (b != 0).astype(np.int64)} for b in batches]
    made = tersor.compile(str(model), calibration=given, measure=False)
    assert made.manifest["calibration"] == artifact.manifest["calibration"]


def test_without_a_tokenizer_it_is_one_clear_line(run: Run, model: Path) -> None:
    Path("tokenizer.json").unlink()
    for command in ("compile", "convert"):
        result = run(command, str(model), "out.onnx", "--calibration", "t.txt")
        assert result.exit_code != 0 and not Path("out.onnx").exists()
        (line,) = result.stderr.splitlines()
        assert "t.txt: texts need the model's tokenizer, and there is no tokenizer.json in" in line
