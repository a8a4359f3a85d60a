"""The command line on hostile models: exit code 1, one line, and an unchanged output file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hostile.external import EXTERNAL
from hostile.files import FILES
from hostile.functions import FUNCTIONS
from hostile.graphs import GRAPHS
from hostile.table import Refused
from hostile.tensors import TENSORS
from onnx import ModelProto
from typer.testing import CliRunner

from tersor.cli.main import app

# Models that are a file, or can be written to one.
ROWS = [
    (group, row)
    for group, rows in (
        ("files", FILES[7:31]),
        ("tensors", TENSORS[::6]),
        ("external", EXTERNAL[2::6]),
        ("graphs", GRAPHS[::10]),
        ("functions", FUNCTIONS[::4]),
    )
    for row in rows
]


def build(row: Refused, folder: Path) -> Path:
    source = row.build(folder)
    if isinstance(source, ModelProto):
        path = folder / "model.onnx"
        path.write_bytes(source.SerializeToString())
        return path
    assert isinstance(source, Path)
    return source


@pytest.mark.parametrize(("group", "row"), ROWS, ids=[f"{g}: {r.name}" for g, r in ROWS])
def test_nothing_is_written(group: str, row: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    path, out = build(row, folder), tmp_path / "out.onnx"
    out.write_text("what was there before")
    words = ["convert", str(path), str(out)]
    result = CliRunner().invoke(app, words, prog_name="tersor", catch_exceptions=False)
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (1, "")
    assert line.startswith(f"error: {path}: ") and line.isprintable()
    assert out.read_text() == "what was there before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "work"]


@pytest.mark.slow
def test_the_process_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + b"\xff" * 100)
    command = [sys.executable, "-m", "tersor", "convert", str(path), str(tmp_path / "out.onnx")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith(f"error: {path}: not an ONNX model, or ")
    assert len(run.stderr.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
