"""Measuring in pairs: how soon it ends, what it decides under noise, and that who is not asked is held."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.driver import choosing
from tersor.errors import InvalidModel
from tersor.ir import parse
from tersor.ops import TABLE
from tersor.pipeline import registry
from tersor.tuning import duel as duels
from tersor.tuning import measure, search
from tersor.tuning.measure import Bench, Paired, compare

RUNS = 40
SIZES = 3


class Noisy:
    """A system whose runs scatter by 2%, and of which one in twenty meets something else."""

    def __init__(self, ms: float, rng: np.random.Generator) -> None:
        self.ms, self.rng, self.runs = ms, rng, 0

    def milliseconds(self, feed: int) -> float:
        self.runs += 1
        other = 1 + self.rng.random() if self.rng.random() < 0.05 else 1.0
        return float(self.ms * np.exp(self.rng.normal(0, 0.02)) * other)


def outcomes(ratio: float) -> tuple[float, float, float]:
    """(how often a challenger is adopted, how often a result is found slower than the input, pairs a size
    of the latter) where both are as fast as ``ratio`` says."""
    adopted, slower, pairs = 0, 0, 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        a: Any = Noisy(10, rng)
        b: Any = Noisy(10 / ratio, rng)
        won = duels.duel(a, b, range(SIZES), search.SEARCH_PAIRS)
        adopted += duels.has_won(won, SIZES)
        final = [compare(a, b, i, choosing.FINAL_PAIRS, choosing._settled) for i in range(SIZES)]
        slower += any(r.slower for r in final)
        pairs += sum(r.pairs for r in final)
    return adopted / RUNS, slower / RUNS, pairs / RUNS / SIZES


@pytest.mark.parametrize(
    ("ratio", "adopted", "slower", "most"),
    [
        (0.5, 0, 1, 10),
        (0.94, 0, 1, 20),
        (0.96, 0, 1, 50),
        (1.0, 0, 0, 50),
        (1.1, 1, 0, 15),
        (2.0, 1, 0, 10),
    ],
)
def test_the_same_is_decided_in_nine_of_ten_runs_and_soon(
    ratio: float, adopted: float, slower: float, most: float
) -> None:
    found = outcomes(ratio)
    assert abs(found[0] - adopted) <= 0.1 and abs(found[1] - slower) <= 0.1
    assert found[2] <= most


def paired(speedup: float, high: float) -> Paired:
    return Paired(1.0, 1.0 / speedup, speedup, 2 * speedup - high, high, 20)


def test_what_is_told_as_slower_is_never_kept() -> None:
    assert paired(0.94, 1.2).slower and paired(0.979, 1.1).slower
    assert paired(0.985, 0.988).slower and not paired(0.985, 1.0).slower
    assert not paired(1.0, 1.01).slower


def test_a_comparison_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    one: Any = Noisy(10, np.random.default_rng(0))
    assert compare(one, one, 0, 100).pairs == measure.LEAST_PAIRS
    assert compare(one, one, 0, 2).pairs == 2


HOLDS = pytest.mark.skipif(not measure._CAN_STOP, reason="this system has no SIGSTOP")
MODEL = """graph main(%x: f32[256, 256]) -> (y = %y) {
  @w: f32[256, 256] = dense normal(0)
  %y: f32[256, 256] = MatMul(%x, @w)
}"""


def built(folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(registry.backend("ort").build(parse(MODEL, TABLE)))
    return path


@HOLDS
def test_a_system_that_is_not_asked_uses_no_processor(tmp_path: Path) -> None:
    with Bench([{"x": np.zeros((256, 256), np.float32)}]) as bench:
        worker = bench.start("ort", built(tmp_path), {})
        assert worker.milliseconds(0) > 0
        state = Path(f"/proc/{worker._process.pid}/stat")
        if not state.exists():
            pytest.skip("no /proc here")
        time.sleep(0.1)  # The signal has reached all of its threads by then.
        before = state.read_text().rpartition(")")[2].split()
        time.sleep(0.2)
        after = state.read_text().rpartition(")")[2].split()
        assert after[0] == "T" and after[11:13] == before[11:13]  # Stopped; ticks of 10 ms
        assert worker.milliseconds(0) > 0


@HOLDS
def test_held_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tersor.tuning.measure import Bench\n"
        f"worker = Bench().start('ort', Path({str(built(tmp_path))!r}), {{}})\n"
        "print(worker._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 20
    while _runs(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_process_that_is_released_runs_the_next_model(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    other = tmp_path / "other.onnx"
    other.write_bytes(registry.backend("ort").build(parse(MODEL.replace("MatMul", "Sub"), TABLE)))
    x = np.ones((256, 256), np.float32)
    with Bench([{"x": x}]) as bench:
        one = bench.start("ort", built(tmp_path), {})
        product = one.outputs(0)["y"]
        bench.release(one)
        with pytest.raises(InvalidModel, match="ONNX Runtime refuses the model"):
            bench.start("ort", broken, {})
        again = bench.start("ort", other, {})
        assert again is one and not np.array_equal(again.outputs(0)["y"], product)
        assert bench.start("ort", other, {}) is not one
        one.stop()
        bench.release(one)  # Who is dead runs nothing.
        assert bench.start("ort", other, {}).milliseconds(0) > 0
