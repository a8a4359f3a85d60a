"""benchmarks/zoo.py, and the tables: rows are kept only where they still hold, and written one by one."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts import script

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


@pytest.mark.parametrize("change", ["code", "versions", "machine", "options", "fresh"])
def test_rows_of_other_conditions_are_not_kept(
    benchmark: ModuleType, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "zoo.json"
    rows, wanted = benchmark.rows, benchmark.conditions()
    held = {"conditions": wanted, "workloads": {"gru": {"recipes": {"fp32": ROW}}}}
    rows.save(out, held)
    assert rows.load(out, wanted, fresh=False) == held
    other = {**wanted, change: "other"} if change != "fresh" else wanted
    assert rows.load(out, other, fresh=change == "fresh") == {"conditions": other}


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


CONDITIONS = {"machine": {"cpu": "A", "cores": 2, "features": ["avx2", "avx512_vnni"]}}


def quartiles(median: float) -> dict[str, float]:
    return {"median": median, "q1": median, "q3": median}


def test_the_table_of_minilm_tells_speed_over_both_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    table = script("table", monkeypatch)
    cell = {"ms": quartiles(7.44), "over": {table.BASE: quartiles(2), table.RIVAL: quartiles(0.5)}}
    fidelity = {"mean_cosine": 0.99, "min_cosine": 0.9, "nn1": 0.95, "valence_accuracy": 0.92}
    result = {
        "conditions": CONDITIONS,
        "rounds": 30,
        "speed": {s: dict.fromkeys(table.NAMES, cell) for s in ("32x128", "8x128")},
        "fidelity": dict.fromkeys(table.NAMES, fidelity),
        "sizes": dict.fromkeys(table.NAMES, 21.94),
        "choices": {n: {"choice": {"mode": "eager"}} for n in table.NAMES},
    }
    head, _, *lines, _, legend = table.minilm(result).splitlines()
    assert head.startswith("|  | 8x128 | 32x128 | mean cosine")
    rest = "0.9900 | 0.9000 | 0.950 | 0.920 | 21.9 |"
    assert lines[0] == f"| ONNX Runtime, fp32 | 7.4 ms | 7.4 ms | {rest}"
    assert lines[2].startswith("| torch, fp32, eager | 2.00x / 0.50x |")
    assert lines[3] == f"| OpenVINO and NNCF, int8 | 2.00x | 2.00x | {rest}"
    assert legend.startswith("A, best int8 instructions avx512_vnni, 2 threads.")


def test_the_table_of_kernels_has_a_column_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    table = script("table", monkeypatch)
    kernel = {
        "group": "bare",
        "us": quartiles(1234.5),
        "rate": 800.4,
        "unit": "GOP/s",
        "share": 0.75,
    }
    peak = {"peak": "read", "instruction": "loads", "threads": 2, "best": 9.5, "unit": "GB/s"}
    result = {
        "conditions": CONDITIONS,
        "rows": 1024,
        "peaks": [peak],
        "kernels": [
            {**kernel, "level": "avx512_vnni", "kernel": "int8"},
            {**kernel, "level": "avx2", "kernel": "int8"},
            {**kernel, "level": "avx2", "kernel": "norm", "group": "in the model"},
        ],
    }
    lines = table.kernels(result).splitlines()
    told = "1,234 µs, 800 GOP/s, 75%"
    assert "| read | loads | 2 | 9.5 GB/s |" in lines
    assert "| kernel | avx512_vnni | avx2 |" in lines
    assert f"| int8 (bare) | {told} | {told} |" in lines
    assert f"| norm |  | {told} |" in lines


def test_tables_of_what_was_never_measured_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = script("table", monkeypatch)
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "PAGES", ["README.md"])
    monkeypatch.setattr(table, "OVERVIEWS", {})
    readme, older = tmp_path / "README.md", tmp_path / "avx512_vnni" / "minilm.json"
    older.parent.mkdir()
    text = "a\n<!-- minilm: generated -->\nrow\n<!-- /minilm -->\nb\n"
    readme.write_text(text)
    older.write_text("{}")
    assert table.main() == 0
    assert readme.read_text() == text
    older.write_text(json.dumps({"conditions": {}}))
    monkeypatch.setitem(table.TABLES, "minilm", lambda result: "new")
    table.main()
    assert readme.read_text() == text.replace("row", "new")


def test_the_best_and_the_weakest_processor_have_a_table_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = script("table", monkeypatch)
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "PAGES", ["README.md"])
    monkeypatch.setattr(table, "OVERVIEWS", {})
    monkeypatch.setitem(table.TABLES, "minilm", lambda result: result["conditions"]["level"])
    for level in ("avx2", "amx_int8", "avx512_vnni"):
        (tmp_path / level).mkdir()
        held = {"conditions": {"level": level}}
        (tmp_path / level / "minilm.json").write_text(json.dumps(held))
    names = ("minilm", "minilm_weakest")
    places = "".join(f"<!-- {n}: generated -->\n<!-- /{n} -->\n" for n in names)
    (tmp_path / "README.md").write_text(places)
    assert table.main() == 0
    assert (tmp_path / "README.md").read_text().splitlines()[1::3] == ["amx_int8", "avx2"]


def test_the_pages_are_what_the_results_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody edits a generated part by hand: made anew of the results in the repository, it is the same."""
    table = script("table", monkeypatch)
    pages = {name: (table.ROOT / name).read_text() for name in table.PAGES}
    results = table.measured("minilm")
    made = {name: render(results) for name, render in table.OVERVIEWS.items()}
    made |= {
        name: render(held[0])
        for name, render in table.TABLES.items()
        if (held := table.measured(name))
    }
    for name, text in made.items():
        assert any(f"<!-- {name}: generated -->\n{text}\n" in page for page in pages.values()), name
