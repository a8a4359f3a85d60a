"""``tersor compile --vocabulary``: a model folder in, a smaller model and the tokenizer that fits it out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from typer.testing import Result

import tersor

Run = Callable[..., Result]
COMMAND = ("--vocabulary", "texts.txt", "--recipe", "fp32", "--no-measure")


@pytest.mark.parametrize(
    ("arguments", "texts", "message"),
    [
        (["m.onnx", "out.onnx", *COMMAND], b"a", "out.onnx would lack the tokenizer"),
        (["m.onnx", "out", *COMMAND, "--calibration", "good.npz"], b"a", "good.npz has the old ones"),
        (["m.onnx", "out", *COMMAND], None, "cannot read texts.txt: No such file"),
        (["m.onnx", "out", *COMMAND], b"\xff", "cannot read texts.txt: it is not UTF-8"),
        (["m.onnx", "out", *COMMAND], b"a", "the model has no tokenizer.json"),
    ],
)  # fmt: skip
def test_refusals(
    run: Run, files: Path, arguments: list[str], texts: bytes | None, message: str
) -> None:
    if texts is not None:
        Path("texts.txt").write_bytes(texts)
    result = run("compile", *arguments)
    assert result.exit_code != 0
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_folder_with_the_words_of_a_file(run: Run, folder: Path) -> None:
    from tersor.models.minilm import build, data

    texts = data.sentences()[:50]
    Path("texts.txt").write_text("\n".join(texts), encoding="utf-8")
    # The smaller model is calibrated by what the smaller tokenizer makes.
    result = run("compile", str(build.directory()), "out", *COMMAND, "--calibration", "texts.txt")
    assert result.exit_code == 0, result.stderr
    artifact = tersor.load("out")
    assert artifact.manifest["calibration"]["batches"] == 7
    tokenizer = tokenizers.Tokenizer.from_buffer(artifact.files["tokenizer.json"])
    tokenizer.no_padding()
    assert tokenizer.get_vocab_size() < 1000
    ids = np.array([tokenizer.encode(texts[0]).ids])
    (got, *_) = artifact.run({"input_ids": ids, "attention_mask": np.ones_like(ids)}).values()
    assert got.shape == (1, 384)  # It is a sentence-transformers folder.
