"""Small models as files, and the command line in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import one_node, two_layers
from typer.testing import CliRunner, Result

from tersor.cli import console
from tersor.cli.main import app

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes long enough over anything to tell of its progress, which tests do not expect."""
    monkeypatch.setattr(console, "QUIET_SECONDS", 600.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, so that messages show plain names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run() -> Run:
    """``run("inspect", "m.onnx")``: the command's result; nothing but SystemExit may come out of it."""

    def call(*arguments: str) -> Result:
        result = CliRunner().invoke(
            app, list(arguments), prog_name="tersor", catch_exceptions=False
        )
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return call


@pytest.fixture
def files(folder: Path) -> Path:
    """The working folder with models and inputs, good ones and bad ones."""
    onnx.save(two_layers(), "m.onnx")
    onnx.save(one_node("Relu", ["x"], "fine"), "other.onnx")
    # The name as a hostile file could have it: rich markup, and an escape that clears the screen.
    onnx.save(one_node("Add", ["x", "nope"], "n[/red]\x1b[2J"), "dangling.onnx")
    Path("text.onnx").write_text("not a model")
    Path("empty.onnx").write_bytes(b"")
    Path("pickle.pt").write_bytes(b"\x80\x02}q\x00.")
    Path("cut.onnx").write_bytes(Path("m.onnx").read_bytes()[:-700])
    Path("kept.onnx").write_text("what was there before")
    Path("full").mkdir()
    Path("full/data").write_text("what was there before")
    rng = np.random.default_rng(1)
    np.savez("good.npz", x=rng.standard_normal((20, 5, 16)).astype(np.float32))
    np.savez("names.npz", xs=np.zeros((3, 5, 16), np.float32))
    np.savez("double.npz", x=np.zeros((3, 5, 16)))
    np.savez("wide.npz", x=np.zeros((3, 5, 17), np.float32))
    np.savez("uneven.npz", x=np.zeros((3, 5, 16), np.float32), z=np.zeros((4, 5), np.float32))
    np.savez("none.npz", x=np.zeros((0, 5, 16), np.float32))
    np.savez("pickled.npz", x=np.array([os.getcwd], object))
    np.save("single.npy", np.zeros((3, 5, 16), np.float32))
    Path("cut.npz").write_bytes(Path("good.npz").read_bytes()[:400])
    Path("bad.toml").write_text("passes = 3")
    return folder
