"""benchmarks/zoo.py and its table: rows are kept only where they still hold, and written one by one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROW: dict[str, Any] = {
    "kept": "int8",
    "decisions": ["kept int8"],
    "speed": [
        {"sizes": "batch=8 sequence=64", "speedup": 1.5, "speedup_q1": 1.4, "speedup_q3": 1.62}
    ],
    "bytes": 1024,
    "fidelity": {"mean_cosine": 0.99912, "min_cosine": 0.9, "max_error": None},
    "metric": {"accuracy": 0.81},
}


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, its rows made without measuring."""
    module = script("zoo", monkeypatch)
    monkeypatch.setattr(module, "workload_row", lambda *a: {"recipes": {}})
    monkeypatch.setattr(module, "recipe_row", lambda *a: dict(ROW))
    found = type("Stub", (), {"export_onnx": staticmethod(lambda path: path)})()
    monkeypatch.setattr(module.zoo, "find", lambda name: found)
    return module


def test_only_what_is_missing_is_measured(benchmark: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "zoo.json"
    results = {"conditions": {}, "workloads": {"gru": {"recipes": {"fp32": {"kept": "before"}}}}}
    benchmark.measure(results, "gru", "", out, tmp_path)
    held = json.loads(out.read_text())["workloads"]["gru"]["recipes"]
    assert held == {"fp32": {"kept": "before"}, "int8": ROW}
    out.unlink()
    benchmark.measure(results, "gru", "", out, tmp_path)
    assert not out.exists()


def test_a_row_is_written_before_the_next_is_measured(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(workload: Any, original: Path, recipe: str, tell: Any) -> dict[str, Any]:
        if recipe == "int8":
            raise KeyboardInterrupt
        return dict(ROW)

    monkeypatch.setattr(benchmark, "recipe_row", row)
    out = tmp_path / "zoo.json"
    with pytest.raises(KeyboardInterrupt):
        benchmark.measure({"workloads": {}}, "gru", "", out, tmp_path)
    assert list(json.loads(out.read_text())["workloads"]["gru"]["recipes"]) == ["fp32"]


@pytest.mark.parametrize("change", ["code", "versions", "machine", "pairs", "fresh"])
def test_rows_of_other_conditions_are_not_kept(
    benchmark: ModuleType, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "zoo.json"
    wanted = benchmark.conditions()
    held = {"conditions": wanted, "workloads": {"gru": {"recipes": {"fp32": ROW}}}}
    benchmark.save(out, held)
    assert benchmark.load(out, wanted, fresh=False) == held
    other = {**wanted, change: "other"} if change != "fresh" else wanted
    empty = {"conditions": other, "workloads": {}}
    assert benchmark.load(out, other, fresh=change == "fresh") == empty


def test_what_was_kept_is_read_from_the_report(benchmark: ModuleType) -> None:
    said = [
        "int8 is slower than the input at batch=1 (0.9x) and was not kept",
        "kept fp32 threads=1",
    ]
    assert benchmark.kept(said) == "fp32 threads=1"
    assert benchmark.kept(["kept the input: nothing that was tried is faster"]) == "the input"


def test_the_table_tells_speed_with_quartiles_size_and_metric(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = script("table", monkeypatch)
    workload = {
        "bytes_input": 4096,
        "metric_input": {"accuracy": 0.82},
        "recipes": {"int8": ROW, "fp32": {**ROW, "kept": "the input", "speed": []}},
    }
    _, _, fp32, int8 = table.zoo({"workloads": {"gru": workload}}).splitlines()
    assert int8 == (
        "| gru | `int8` | int8 | 8x64 1.50x (1.40–1.62) | 4 → 1 | 0.9991 | accuracy 0.820 → 0.810 |"
    )
    assert "| the input | the input itself |" in fp32
