"""What was measured before: used for equal models on the same machine, soon; never for others."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.ir import Graph, parse
from tersor.ops import TABLE
from tersor.pipeline import registry
from tersor.target import Target
from tersor.tuning import reuse
from tersor.tuning.database import Database
from tersor.tuning.measure import Bench, Paired
from tersor.tuning.reuse import Known
from tersor.tuning.search import Search

ORT = registry.backend("ort")
DEFAULT = ORT.Choice()
RESULTS = [Paired(2.0, 1.0, 2.0, 1.9, 2.1, 5)]
DAY = datetime.date(2026, 11, 30)


@pytest.fixture(autouse=True)
def days(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "DAYS", 30)
    host = replace(Target.host(), cpu="a processor")
    monkeypatch.setattr(Target, "host", staticmethod(lambda: host))


def graph(weight: str = "normal(0)", shape: str = "0, -1", rows: int = 16) -> Graph:
    return parse(
        f"""graph main(%x: f32[batch, {rows}]) -> (y = %y) {{
  @w: f32[{rows}, 16] = dense {weight}
  @s: i64[2] = dense [{shape}]
  %m: f32[batch, 16] = MatMul(%x, @w)
  %y: f32[?, ?] = Reshape(%m, @s)
}}""",
        TABLE,
    )


def known(path: Path, batch: int = 4, today: datetime.date = DAY) -> Known:
    feed = {"x": np.zeros((batch, 16), np.float32)}
    return Known(Database(path), ORT, [feed], lambda: today)


def sides(given: Graph) -> tuple[tuple[Graph, Any], tuple[Graph, Any]]:
    return (given, DEFAULT), (given, DEFAULT.replace(spinning=False))


def test_a_model_of_other_weights_has_the_same_results(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    known(path).put(*sides(graph()), RESULTS)
    later = known(path, today=DAY + datetime.timedelta(29))
    assert later.get(*sides(graph("normal(1)"))) == RESULTS
    assert later.remarks == [
        "1 way to build it was compared on 2026-11-30, on this machine, for a model that differs by "
        f"weights at most: {path}"
    ]


def test_other_models_inputs_choices_and_order_have_none(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    known(path).put(*sides(graph()), RESULTS)
    one, other = sides(graph())
    assert known(path).get(one, other) == RESULTS
    assert known(path, batch=5).get(one, other) is None
    assert known(path).get(other, one) is None
    assert known(path).get(one, (graph(), DEFAULT.replace(threads=1))) is None
    assert known(path).get(*sides(graph(shape="-1, 16"))) is None
    assert known(path).get(*sides(graph(rows=32))) is None


def test_integers_in_an_input_may_say_how_long_it_runs(tmp_path: Path) -> None:
    def counted(times: int) -> Known:
        feed = {"times": np.array(times), "x": np.zeros((4, 16), np.float32)}
        return Known(Database(tmp_path / "t.json"), ORT, [feed], lambda: DAY)

    counted(3).put(*sides(graph()), RESULTS)
    assert counted(3).get(*sides(graph())) == RESULTS and counted(4).get(*sides(graph())) is None


@pytest.mark.parametrize("days", [-1, 30, 400])
def test_what_is_old_or_of_tomorrow_is_not_used(tmp_path: Path, days: int) -> None:
    known(tmp_path / "t.json").put(*sides(graph()), RESULTS)
    other = known(tmp_path / "t.json", today=DAY + datetime.timedelta(days))
    assert other.get(*sides(graph())) is None and other.remarks == []


@pytest.mark.parametrize(
    "change",
    [{"cpu": "another"}, {"cores": 64}, {"features": frozenset({"neon"})}, {"cpu": ""}],
    ids=lambda change: next(iter(change)),
)
def test_another_machine_uses_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    path = tmp_path / "t.json"
    known(path).put(*sides(graph()), RESULTS)
    other = replace(Target.host(), **change)
    monkeypatch.setattr(Target, "host", staticmethod(lambda: other))
    assert known(path).get(*sides(graph())) is None


def test_another_version_of_the_runtime_or_of_our_code_uses_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    known(path).put(*sides(graph()), RESULTS)
    with monkeypatch.context() as patch:
        patch.setattr(reuse, "versions", lambda: {"onnxruntime": "9"})
        assert known(path).get(*sides(graph())) is None
    with monkeypatch.context() as patch:
        patch.setattr(reuse, "_digest_of_code", lambda: "another")
        assert known(path).get(*sides(graph())) is None
    assert known(path).get(*sides(graph())) == RESULTS


def test_a_machine_that_has_no_name_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nameless = replace(Target.host(), cpu="")
    monkeypatch.setattr(Target, "host", staticmethod(lambda: nameless))
    known(tmp_path / "t.json").put(*sides(graph()), RESULTS)
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"duel": []}, {"duel": 3}, {"duel": [{}]}, {"measured": "soon"}, {"measured": None},
        {"duel": [{**RESULTS[0].to_json(), "speedup": -1.0}]},
        {"duel": [{**RESULTS[0].to_json(), "speedup": float("nan")}]},
        {"duel": [{**RESULTS[0].to_json(), "pairs": "x"}]},
    ],
)  # fmt: skip
def test_an_entry_that_someone_changed_is_measured_anew(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "t.json"
    known(path).put(*sides(graph()), RESULTS)
    held = json.loads(path.read_text())
    path.write_text(json.dumps({k: {**v, **change} for k, v in held.items()}))
    assert known(path).get(*sides(graph())) is None


def test_of_many_the_oldest_go_and_kernels_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "MOST", 2)
    path = tmp_path / "t.json"
    Database(path).put("a kernel", {"grain": {}})
    for i in (3, 1, 2):  # The second is the oldest.
        known(path, batch=i, today=DAY + datetime.timedelta(i)).put(*sides(graph()), RESULTS)
    held = json.loads(path.read_text())
    assert "a kernel" in held
    dates = sorted(v["measured"] for k, v in held.items() if k != "a kernel")
    assert dates == ["2026-12-02", "2026-12-03"]


def searched(path: Path, given: Graph, monkeypatch: pytest.MonkeyPatch, gain: float) -> Any:
    """(the search's best, what it recorded, how many duels it ran, how many models it built)."""
    feed = {"x": np.zeros((4, 16), np.float32)}
    duels, built, rows = [], [], []

    def duel(*arguments: object) -> list[Paired]:
        duels.append(arguments)
        return [Paired(1.0, 1 / gain, gain, gain, gain, 9)]

    def build(*arguments: Any) -> Any:
        built.append(arguments)
        return made(*arguments)

    made = ORT.build
    with monkeypatch.context() as patch, Bench([feed]) as bench:
        patch.setattr("tersor.tuning.search.duel", duel)
        patch.setattr(ORT, "build", build)
        axes = lambda graph, choice: [("spinning", (False,)), ("threads", (1,))]  # noqa: E731
        patch.setattr(ORT, "axes", axes)
        search = Search(
            ORT, "ort", bench, [0], lambda *_: None, lambda *row: rows.append(row),
            Known(Database(path), ORT, [feed], lambda: DAY),
        )  # fmt: skip
        best = search({"fp32": given}, DEFAULT)
        assert best.worker.is_alive
    return best, rows, len(duels), len(built)


def test_a_search_whose_duels_are_known_builds_the_best_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    best, rows, duels, _ = searched(path, graph(), monkeypatch, 0.95)
    assert (best.way.choice, duels) == (DEFAULT, 2) and not any(known for *_, known in rows)
    best, rows, duels, built = searched(path, graph("normal(1)"), monkeypatch, 2.0)
    assert (best.way.choice, duels, built) == (DEFAULT, 0, 1)
    assert [(label, told[0].speedup, known) for label, told, known in rows] == [
        ("fp32 spinning=False", 0.95, True),
        ("fp32 threads=1", 0.95, True),
    ]


def test_what_is_known_to_win_still_has_to_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    best, *_ = searched(path, graph(), monkeypatch, 1.5)
    assert best.way.choice == DEFAULT.replace(spinning=False, threads=1)
    best, _, duels, _ = searched(path, graph(), monkeypatch, 0.5)
    assert (best.way.choice, duels) == (DEFAULT.replace(spinning=False, threads=1), 0)
    monkeypatch.setattr("tersor.tuning.search.AGREEMENT", 1.1)  # which no two outputs reach
    best, rows, duels, _ = searched(path, graph(), monkeypatch, 0.5)
    assert (best.way.choice, duels) == (DEFAULT, 0)
    assert all("its outputs differ" in told for _, told, _ in rows)


def test_a_tie_in_the_noise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    best, *_ = searched(path, graph(), monkeypatch, 1.031)  # which 9 pairs cannot tell from 1.03
    assert best.way.choice == DEFAULT and not path.exists()
