"""benchmarks/minilm.py: what is measured once stays, peers are measured as ours are, the best of a peer's
ways to run is found."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scripts import script

from tersor.errors import InvalidModel
from tersor.tuning.measure import Bench

pytest.importorskip("openvino", reason="the peers are not installed")
PEER = """
import sys, types
from tersor.tuning import worker

def open_session(path, choice):
    return types.SimpleNamespace(run=lambda feed: {"y": choice["factor"] * feed["x"]})

name, folder = sys.argv[1:]
sys.exit(worker.serve(open_session, folder))
"""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("minilm", monkeypatch)


class Fake:
    """A worker that takes as long as it says, in milliseconds."""

    def __init__(self, takes: float) -> None:
        self.takes, self.calls, self.stopped = takes, 0, False

    def milliseconds(self, feed: int) -> float:
        self.calls += 1
        return self.takes * (feed + 1)

    def stop(self) -> None:
        self.stopped = True


class FakeBench:
    """Starts workers that take what their choice says; None is refused."""

    def __init__(self) -> None:
        self.started: list[Fake] = []

    def start(self, runtime: str, model: Any, choice: Any, program: Any) -> Fake:
        if choice["takes"] is None:
            raise InvalidModel("no compiler")
        self.started.append(Fake(choice["takes"]))
        return self.started[-1]


def system(benchmark: ModuleType, *takes: float | None) -> Any:
    return benchmark.System("peer", Path("m"), [], tuple({"takes": t} for t in takes))


def test_a_peer_is_a_process_that_speaks_the_protocol(tmp_path: Path) -> None:
    program, x = tmp_path / "peer.py", np.arange(3, dtype=np.float32)
    program.write_text(PEER)
    with Bench([{"x": x}, {"x": x + 1}]) as bench:
        worker = bench.start("peer", tmp_path, {"factor": 2}, [str(program)])
        np.testing.assert_array_equal(worker.outputs(1)["y"], [2, 4, 6])
        assert worker.milliseconds(0) > 0


@pytest.mark.parametrize("takes", [(1.0, 2.0, 3.0), (2.0, 3.0, 1.0), (2.0, None, 1.0), (None, 1.0)])
def test_the_fastest_way_to_run_is_found_once(
    benchmark: ModuleType, takes: tuple[float | None, ...]
) -> None:
    bench, held = FakeBench(), {}
    chosen = benchmark.start(bench, "peer", system(benchmark, *takes), held)
    assert held["peer"]["choice"] == {"takes": 1.0}
    assert chosen.takes == 1.0 and not chosen.stopped
    assert all(worker.stopped for worker in bench.started if worker is not chosen)
    refused = [m for m in held["peer"]["measured"] if "refused" in m]
    assert len(refused) == takes.count(None)
    benchmark.start(bench, "peer", system(benchmark, *takes), held)
    assert len(bench.started) == len(takes) - takes.count(None) + 2


def test_a_peer_that_cannot_be_run_at_all_is_told(benchmark: ModuleType) -> None:
    with pytest.raises(InvalidModel, match=r"peer cannot be run: .*no compiler"):
        benchmark.start(FakeBench(), "peer", system(benchmark, None, None), {})


def test_only_shapes_that_are_missing_are_measured(benchmark: ModuleType, tmp_path: Path) -> None:
    workers = {name: Fake(takes) for takes, name in enumerate((*benchmark.PEERS, "ours"), 1)}
    results = {"speed": {"1x32": "before", "1x128": "before", "8x128": "before"}}
    benchmark.measure_speeds(workers, 2, results, tmp_path / "minilm.json")
    found = json.loads((tmp_path / "minilm.json").read_text())["speed"]
    assert found["8x128"] == "before"
    assert found["32x128"]["ours"]["over"]["ort-fp32"] == {"median": 0.2, "q1": 0.2, "q3": 0.2}
    assert found["32x128"]["ours"]["ms"]["median"] == 5 * 4
    assert {worker.calls for worker in workers.values()} == {3}


def test_speedups_are_within_rounds(benchmark: ModuleType) -> None:
    times = {name: [10.0, 20.0, 30.0] for name in benchmark.PEERS} | {"ours": [5.0, 5.0, 30.0]}
    assert benchmark.speeds(times)["ours"]["over"]["ort-fp32"] == {
        "median": 2.0,
        "q1": 1.5,
        "q3": 3.0,
    }


def test_what_is_built_is_there_whole_or_not_at_all(benchmark: ModuleType, tmp_path: Path) -> None:
    def half(at: Path) -> None:
        (at / "part").write_text("1")
        raise KeyboardInterrupt

    def whole(at: Path) -> None:
        (at / "part").write_text("2")

    with pytest.raises(KeyboardInterrupt):
        benchmark._once(tmp_path / "model", half)
    assert not list(tmp_path.iterdir())
    for make in (whole, half):
        assert (benchmark._once(tmp_path / "model", make) / "part").read_text() == "2"
