"""``tersor tune``: what it tells, what it refuses, and that it goes on where it was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

pytest.importorskip("tvm")

from tersor.backends.tvm import tuning

Run = Callable[..., Result]
TUNE = ("tune", "m.onnx", "--recipe", "fp32", "--size", "batch=2,seq=8", "--database", "t.json")
NAMES = ["linear2_float32_16_64_relu_float32", "linear2_float32_64_16_float32"]


def rows(result: Result) -> list[list[str]]:
    """Kernel, grain and state of each line of the table."""
    return [line.split() for line in result.stdout.splitlines() if line.startswith("linear")]


def refused(result: Result) -> str:
    assert result.exit_code == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    return str(line)


def test_kernels_are_measured_once(run: Run, files: Path) -> None:
    first, second = run(*TUNE), run(*TUNE)
    assert first.exit_code == second.exit_code == 0, first.stderr
    assert [row[0] for row in rows(first)] == NAMES
    assert [row[-1] for row in rows(first)] == ["measured", "measured"]
    assert [row[:-1] for row in rows(second)] == [row[:-1] for row in rows(first)]
    assert [row[-1] for row in rows(second)] == ["known", "known"]
    assert first.stdout.splitlines()[-2:] == [
        "kernels tuned: 2, of which 0 were known before",
        "the results are in t.json",
    ]
    assert "of which 2 were known before" in second.stdout
    for held in json.loads(Path("t.json").read_text()).values():
        assert set(held["ms"]["16"]) == set(tuning.CANDIDATES)
        assert all(ms > 0 for ms in held["ms"]["16"].values())


def test_an_interrupt_tells_how_far_it_came(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def best(spec: Any, *rest: Any) -> Any:
        if asked == NAMES[:1]:
            raise KeyboardInterrupt
        asked.append(spec.name)
        return {"grain": {"rows": 32, "by_columns": 0}}

    monkeypatch.setattr(tuning, "best", best)
    result = run(*TUNE)
    assert result.exit_code == 130 and "Traceback" not in result.stderr
    assert rows(result) == [[NAMES[0], "rows=32", "by_columns=0", "measured"]]
    assert "1 of 2 kernels are tuned: run it again to resume" in result.stdout.splitlines()
    asked.clear()
    monkeypatch.setattr(tuning, "best", lambda *_: {"grain": {"rows": 64, "by_columns": 64}})
    result = run(*TUNE)
    assert result.exit_code == 0
    assert [row[-1] for row in rows(result)] == ["known", "measured"]


@pytest.mark.slow
def test_a_real_interrupt_leaves_what_was_measured(files: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tersor", *TUNE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not Path("t.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # By now the second kernel is compiled, which takes longer.
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "1 of 2 kernels are tuned: run it again to resume" in told.splitlines()
    assert "Traceback" not in errors
    assert len(json.loads(Path("t.json").read_text())) == 1


def test_where_nothing_can_be_written_it_says_so(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "best", lambda *_: {"grain": {"rows": 64, "by_columns": 64}})
    result = run(*TUNE[:-1], "text.onnx/t.json")
    assert result.exit_code == 0
    assert "text.onnx/t.json cannot be written: " in result.stdout
    assert "the results are in" not in result.stdout


def test_a_model_without_kernels(run: Run, files: Path) -> None:
    result = run("tune", "other.onnx")
    assert (result.exit_code, result.stdout) == (0, "the model has no kernels to tune\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--runtime", "ort"), "error: runtime ort has nothing to tune"),
        (
            ("--target", "cuda:sm_90"),
            "error: target cuda:sm_90 is not this machine: tune on a machine that has it",
        ),
        (
            ("--database", "text.onnx"),
            "error: text.onnx is not a tuning database: remove it, or name another",
        ),
        (
            ("--size", "batch=2"),
            "error: sizes {'batch': 2} do not set dim 'seq'",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Run, files: Path, arguments: tuple[str, ...], line: str
) -> None:
    assert refused(run("tune", "m.onnx", *arguments)) == line


def test_compile_refuses_a_database_that_is_none(run: Run, files: Path) -> None:
    arguments = ("compile", "m.onnx", "out", "--database", "text.onnx")
    assert refused(run(*arguments, "--runtime", "tvm")) == (
        "error: text.onnx is not a tuning database: remove it, or name another"
    )
    assert refused(run(*arguments)) == (
        "error: text.onnx is not a tuning database: remove it, or name another"
    )
    assert not Path("out").exists()
