"""The inputs that fuzzing kept, and all that it ever found, give a result or one line of refusal."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from fuzz import mutate, targets

HERE = Path(__file__).resolve().parent


def kept() -> list[Path]:
    return [p for kind in ("corpus", "findings") for p in sorted((HERE / kind).iterdir())]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("folder", kept(), ids=lambda p: f"{p.parent.name}-{p.name}")
def test_every_kept_input_gives_a_result_or_one_line(folder: Path) -> None:
    command = [sys.executable, str(HERE / "replay.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_every_target_has_inputs_to_begin_with() -> None:
    assert {p.name for p in (HERE / "corpus").iterdir()} == set(targets.TARGETS)


def test_the_corpus_stays_small() -> None:
    """A repository keeps everything that was ever in it."""
    assert sum(p.stat().st_size for folder in kept() for p in folder.iterdir()) < 300_000


def test_another_exception_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        raise KeyError(data)

    monkeypatch.setitem(targets.TARGETS, "broken", broken)
    assert targets.run("broken", b"") == "KeyError-test_fuzz-broken"


def test_mutants_are_models_mostly_and_depend_on_the_seed_alone() -> None:
    seeds = [p.read_bytes() for p in sorted((HERE / "corpus" / "onnx").iterdir())]

    donors = mutate.models(seeds)

    def mutants(data: bytes) -> list[bytes]:
        return [mutate.mutated(data, 20_000, i, lambda d, n: b"raw", donors) for i in range(12)]

    different = 0
    for data in seeds:
        made = mutants(data)
        assert made == mutants(data)
        different += len(set(made))
        for model in set(made) - {b"raw"}:
            onnx.load_from_string(model)
    assert different > 6 * len(seeds)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: no wheel here"
)
def test_the_fuzzer_runs_and_tells_what_it_did(tmp_path: Path) -> None:
    command = [
        sys.executable, str(HERE / "run.py"), "--target", "recipe", "--seconds", "8", "--work", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "recipe: " in done.stdout and "findings 0" in done.stdout
