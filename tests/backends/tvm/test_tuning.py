"""Tuning: the kernels of a graph, the keys of their results, the choice, and where it is applied."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

tvm = pytest.importorskip("tvm", reason="the tvm backend is not installed")

import tersor  # noqa: E402
from tersor.backends import ort  # noqa: E402
from tersor.backends.tvm import build, open_session, tune, tuning  # noqa: E402
from tersor.backends.tvm.fuse import fuse  # noqa: E402
from tersor.backends.tvm.kernels import linear  # noqa: E402
from tersor.backends.tvm.kernels.emit import Isa  # noqa: E402
from tersor.backends.tvm.kernels.linear_spec import Grain, Linear  # noqa: E402
from tersor.backends.tvm.options import Choice  # noqa: E402
from tersor.backends.tvm.tuning import (  # noqa: E402
    ALWAYS,
    best,
    candidate,
    fastest,
    kernels_of,
    key_of,
)
from tersor.built import main_file  # noqa: E402
from tersor.errors import InvalidOption  # noqa: E402
from tersor.ir import Dense, Encoding, Graph, parse  # noqa: E402
from tersor.ops import TABLE  # noqa: E402
from tersor.passes.quantize.quantize_dynamic import QuantizeDynamic  # noqa: E402
from tersor.pipeline import Pipeline  # noqa: E402
from tersor.target import Target, request_amx  # noqa: E402
from tersor.tuning import measure, search  # noqa: E402
from tersor.tuning.database import Database  # noqa: E402

HOST = Target.host()
CHOICE = Choice.of(HOST)
ISA = Isa.of(CHOICE.features, CHOICE.cores)
SIZES = [{"b": 2, "s": 8, "t": 3}, {"b": 1, "s": 32, "t": 0}]
runs_here = pytest.mark.skipif(
    "amx_int8" in HOST.features and not request_amx(), reason="tiles may not be used here"
)

# x and z have rows of their own, and go through layers of one form; h is one of another.
TEXT = """graph main(%x: f32[b, s, 64], %z: f32[b, t, 64]) -> (h = %h, u = %u) {
  @w: f32[64, 64]
  @v: f32[64, 64]
  @w1: f32[64, 144]
  %y: f32[b, s, 64] = tersor.Linear(%x, @w) {activation = "relu"}
  %u: f32[b, t, 64] = tersor.Linear(%z, @v) {activation = "relu"}
  %h: f32[b, s, 144] = tersor.Linear(%y, @w1)
}"""
SQUARE = Linear(64, 64, format="float32", activation="relu")
WIDE = Linear(64, 144, format="float32")


def ir(text: str = TEXT) -> Graph:
    """The graph of a text whose constants are only declared: they get random numbers."""
    constants: dict[str, Encoding] = {}

    def declare(match: re.Match[str]) -> str:
        dims = [int(d) for d in match[2].split(",")]
        rng = np.random.default_rng(crc32(match[1].encode()))
        encoding = Dense((rng.standard_normal(dims) / np.sqrt(dims[0])).astype(np.float32))
        constants[encoding.digest] = encoding
        return f"{match[0]} = dense #{encoding.digest}"

    return parse(re.sub(r"@(\w+): f32\[([\d, ]+)\](?=\n)", declare, text), TABLE, constants)


def quantized(graph: Graph) -> Graph:
    return Pipeline([QuantizeDynamic(min_elements=0, granularity="token")]).run(graph)


def result(rows: int = 32, by_columns: int = 0) -> dict[str, Any]:
    return {"grain": {"rows": rows, "by_columns": by_columns}}


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "tuning.json")


def tuned(database: Database, sizes: Sequence[Mapping[str, int]] = SIZES) -> Any:
    return tune(ir(), CHOICE, sizes, lambda *_: None, database)


def measured(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> list[Linear]:
    """Replaces measuring by ``answer``; returns the list of kernels that are measured from now on."""
    kernels: list[Linear] = []

    def stub(spec: Linear, *rest: Any) -> Any:
        kernels.append(spec)
        return answer()

    monkeypatch.setattr(tuning, "best", stub)
    return kernels


# -- what there is to tune -------------------------------------------------------------------------


def test_kernels_are_collected_with_all_their_row_counts() -> None:
    kernels = kernels_of(fuse(ir(), ISA), ISA, SIZES)
    assert kernels == {SQUARE: {16, 32, 6}, WIDE: {16, 32}}


def test_int8_kernels_are_distinguished_by_what_they_compute() -> None:
    kernels = kernels_of(fuse(quantized(ir()), ISA), ISA, SIZES[:1])
    forms = {
        (k.n, k.format, k.quantized, k.result, k.quantize): rows for k, rows in kernels.items()
    }
    assert forms == {
        (64, "int8", False, "", True): {16},
        (64, "int8", False, "float32", False): {6},
        (144, "int8", True, "float32", False): {16},
    }


def test_kernels_of_undetermined_row_counts_are_omitted() -> None:
    assert kernels_of(fuse(ir(), ISA), ISA, [{"b": 2, "s": 8}]) == {SQUARE: {16}, WIDE: {16}}
    assert kernels_of(fuse(ir(), ISA), ISA, [{"b": 0, "s": 8, "t": 3}]) == {}


# -- what a result depends on ----------------------------------------------------------------------


def test_a_key_contains_all_that_a_result_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        key_of(SQUARE, {16}, CHOICE),
        key_of(WIDE, {16}, CHOICE),
        key_of(SQUARE, {32}, CHOICE),
        key_of(SQUARE, {16, 32}, CHOICE),
        key_of(SQUARE, {16}, CHOICE.replace(threads=CHOICE.cores + 1)),
        key_of(SQUARE, {16}, CHOICE.replace(features=())),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "source_digest", lambda: "another")
        keys.append(key_of(SQUARE, {16}, CHOICE))
    with monkeypatch.context() as patch:
        other = Target("cpu", "cpu", HOST.features, HOST.cores, True, "another processor")
        patch.setattr(Target, "host", staticmethod(lambda: other))
        keys.append(key_of(SQUARE, {16}, CHOICE))
    assert len(set(keys)) == len(keys)
    assert key_of(SQUARE, [16, 32], CHOICE) == key_of(SQUARE, [32, 16], CHOICE)


def test_the_digest_covers_all_sources_of_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (tuning.kernels, tuning.formats):
        copy = tmp_path / Path(room.__path__[0]).name
        shutil.copytree(room.__path__[0], copy)
        monkeypatch.setattr(room, "__path__", [str(copy)])
    digest = tuning.source_digest.__wrapped__
    before = digest()
    assert before == tuning.source_digest()
    for name in ("kernels/linear.py", "kernels/emit.py", "formats/int8.py"):
        file = tmp_path / name
        text = file.read_text()
        file.write_text(text + "\n")
        assert digest() != before
        file.write_text(text)
    assert digest() == before


# -- what is chosen --------------------------------------------------------------------------------


def test_the_fastest_is_the_default_if_times_are_equal() -> None:
    even = dict.fromkeys(tuning.CANDIDATES, 1.0)
    assert fastest({16: even, 128: even}) == Grain()
    # Only columns are divided at the rows that were measured: what others take is not known.
    assert fastest({16: even | {"columns": 0.5}}) == Grain()
    assert fastest({128: even | {"columns": 0.5}}) == Grain(by_columns=128)


def test_the_fastest_may_differ_in_both() -> None:
    few = {"rows32": 3.0, "rows64": 3.0, "rows128": 3.0, "columns": 1.0}
    many = {"rows32": 1.0, "rows64": 2.0, "rows128": 2.0, "columns": 4.0}
    assert fastest({100: few, 1000: many}) == Grain(32, 100)
    assert fastest({16: few | {"columns": 9.0}, 1000: many}) == Grain(32, 0)
    assert (
        candidate(Grain(32, 100), 100) == "columns" and candidate(Grain(32, 100), 101) == "rows32"
    )
    assert candidate(Grain(128, ALWAYS), 10_000) == "columns"


@pytest.mark.parametrize(
    ("again", "kept"),
    [
        ({128: (0.8, 0.9), 256: (0.8, 0.9)}, True),
        ({128: (0.8, 0.9), 256: (1.0, 1.0)}, True),
        # The lower quartile says that it may be slower.
        ({128: (0.8, 1.1), 256: (0.8, 1.1)}, False),
        # Too little to leave what is known to work.
        ({128: (0.995, 0.995), 256: (0.995, 0.995)}, False),
        # Slower at one of the sizes, whatever the others gain.
        ({128: (0.5, 0.5), 256: (1.1, 1.2)}, False),
    ],
    ids=["faster", "faster at one size", "noise", "too little", "slower at one size"],
)
def test_the_default_stays_unless_the_winner_is_faster_when_measured_again(
    monkeypatch: pytest.MonkeyPatch, again: dict[int, tuple[float, float]], kept: bool
) -> None:
    """``again``: by rows, the times of two thirds and of a third of the second samples of rows32."""

    def times(_: Any, names: Sequence[str], tensors: Sequence[Any]) -> dict[str, list[float]]:
        if len(names) > 2:
            return {name: [0.5 if name == "rows32" else 1.0] * 15 for name in names}
        assert list(names) == ["rows64", "rows32"]
        most, others = again[tensors[0].shape[1]]
        return {"rows64": [1.0] * 15, "rows32": [*[most] * 10, *[others] * 5]}

    monkeypatch.setattr(tuning.tvm, "compile", lambda *_, **__: None)
    monkeypatch.setattr(tuning, "loaded", lambda *_: dict.fromkeys(tuning.CANDIDATES))
    monkeypatch.setattr(tuning, "release", lambda _: None)
    monkeypatch.setattr(tuning, "_times", times)
    outcome = best(SQUARE, ISA, [128, 256], CHOICE)
    assert outcome["grain"] == (
        {"rows": 32, "by_columns": 64} if kept else {"rows": 64, "by_columns": 64}
    )
    assert outcome["ms"]["256"] == {"rows32": 0.5, "rows64": 1.0, "rows128": 1.0, "columns": 1.0}
    assert outcome["duels"]["128"]["default_ms"] == 1.0
    assert outcome["duels"]["128"]["winner_ms"] == again[128][0]


# -- runs ------------------------------------------------------------------------------------------


@runs_here
def test_stored_results_are_not_measured_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = measured(monkeypatch, result)
    choice, report = tuned(database)
    assert specs == [WIDE, SQUARE] and report.total == 2 and not report.interrupted
    assert [row["measured"] for row in report.kernels] == [True, True]
    again, second = tuned(Database(database.path))
    assert len(specs) == 2 and again == choice
    assert [row["measured"] for row in second.kernels] == [False, False]
    assert second.kernels[0]["grain"] == {"rows": 32, "by_columns": 0}
    tuned(database, SIZES[:1])
    assert len(specs) == 4, "at other sizes they have to be measured again"


@runs_here
def test_an_interrupt_keeps_finished_results(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([result()])

    def interrupted() -> Any:
        for answer in answers:
            return answer
        raise KeyboardInterrupt

    specs = measured(monkeypatch, interrupted)
    choice, report = tuned(database)
    assert specs == [WIDE, SQUARE]
    assert choice.grains == ((WIDE.name, 32, 0),)
    assert report.interrupted and [row["name"] for row in report.kernels] == [WIDE.name]
    assert [r.partition(":")[0] for r in report.remarks] == ["interrupted"]
    specs = measured(monkeypatch, result)
    choice, report = tuned(Database(database.path))
    assert specs == [SQUARE] and not report.interrupted
    assert choice.grains == ((WIDE.name, 32, 0), (SQUARE.name, 32, 0))


@runs_here
def test_a_database_that_cannot_be_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    measured(monkeypatch, result)
    choice, report = tuned(Database(tmp_path / "file" / "tuning.json"))
    assert len(choice.grains) == 2
    (line,) = report.remarks
    assert "cannot be written: " in line


@runs_here
@pytest.mark.parametrize(
    "entry",
    [3, {}, {"grain": 3}, {"grain": {"row": 32}}, result(rows=40), result(by_columns="9")],  # type: ignore[arg-type]
    ids=str,
)
def test_an_invalid_entry_is_refused(database: Database, entry: Any) -> None:
    for spec, rows in ((SQUARE, {16, 32, 6}), (WIDE, {16, 32})):
        database.put(key_of(spec, rows, CHOICE), entry)
    with pytest.raises(InvalidOption, match=r"tuning\.json is damaged: remove it"):
        tuned(database)


def test_a_label_lists_what_differs_from_the_defaults() -> None:
    assert CHOICE.replace(grains=((WIDE.name, 64, 64),)).label == "default"
    assert CHOICE.replace(grains=((WIDE.name, 64, 64), (SQUARE.name, 32, 0))).label == "tuned"
    choice = CHOICE.replace(grains=((WIDE.name, 32, 0),))
    assert Choice.from_json(choice.to_json()) == choice


# -- where it goes ---------------------------------------------------------------------------------


def test_the_chosen_grain_reaches_the_kernels_that_are_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Grain | None] = {}
    make = linear.kernel

    def watched(spec: Linear, isa: Isa, grain: Grain | None = None) -> Any:
        given[spec.name] = grain
        return make(spec, isa, grain)

    monkeypatch.setattr(linear, "kernel", watched)
    plain = build(ir(), CHOICE)
    assert given == {SQUARE.name: None, WIDE.name: None}
    chosen = build(ir(), CHOICE.replace(grains=((WIDE.name, 32, ALWAYS),)))
    assert given == {SQUARE.name: None, WIDE.name: Grain(32, ALWAYS)}
    assert main_file(chosen) != main_file(plain), "the code is the same"
    default = build(ir(), CHOICE.replace(grains=((WIDE.name, 64, 64),)))
    assert main_file(default) == main_file(plain)


@runs_here
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_results_do_not_depend_on_the_grain(int8: bool) -> None:
    graph = quantized(ir()) if int8 else ir()
    names = [spec.name for spec in kernels_of(fuse(graph, ISA), ISA, SIZES)]
    assert len(names) == 2 + int8
    rng = np.random.default_rng(5)
    feeds = [
        {"x": rng.standard_normal((b, s, 64)), "z": rng.standard_normal((b, 3, 64))}
        for b, s in ((1, 1), (1, 17), (2, 33), (3, 50), (2, 128))
    ]
    feeds = [{k: v.astype(np.float32) for k, v in feed.items()} for feed in feeds]
    results = []
    for grain in (Grain(), Grain(32, 0), Grain(128, 0), Grain(64, ALWAYS)):
        choice = CHOICE.replace(grains=tuple((n, grain.rows, grain.by_columns) for n in names))
        session = open_session(build(graph, choice), choice)
        results.append([session.run(feed) for feed in feeds])
    for others in results[1:]:
        for expected, got in zip(results[0], others, strict=True):
            for name in expected:
                # Each number is a sum along k in the same order, whoever computes it.
                np.testing.assert_array_equal(got[name], expected[name])
    session = ort.open_session(ort.build(ir(), ort.Choice()))
    for feed, got in zip(feeds, results[0], strict=True):
        for name, expected in session.run(feed).items():
            # Sums of 64 products in another order; 8 bits leave about a hundredth of their range.
            np.testing.assert_allclose(got[name], expected, rtol=0, atol=0.1 if int8 else 1e-5)


# -- the whole way ---------------------------------------------------------------------------------


@runs_here
def test_compile_stores_tuned_grains_in_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, file = tmp_path / "model.onnx", tmp_path / "tuning.json"
    path.write_bytes(ort.build(ir(), ort.Choice()))  # type: ignore[arg-type]
    arguments: dict[str, Any] = {"recipe": "fp32", "runtime": "tvm", "database": file}
    arguments["sizes"] = [{"b": 2, "s": 8, "t": 3}]
    specs = measured(monkeypatch, result)
    report = tersor.tune(path, **arguments)
    assert [row["name"] for row in report.kernels] == [spec.name for spec in specs]
    assert report.database == str(file) and len(specs) == 2
    monkeypatch.setattr(search, "SEARCH_PAIRS", 2)
    monkeypatch.setattr("tersor.driver.choosing.FINAL_PAIRS", 2)
    monkeypatch.setattr(measure.Paired, "slower", False)  # Whether it pays is not the question.
    artifact = tersor.compile(path, **arguments)
    assert len(specs) == 2, "stored results were measured again"
    artifact.save(tmp_path / "out")
    artifact = tersor.load(tmp_path / "out", trust=True)
    assert artifact.runtime == "tvm"
    assert sorted(artifact.choice["grains"]) == [[WIDE.name, 32, 0], [SQUARE.name, 32, 0]]
    assert artifact.report.kept == "fp32 tuned"


def test_a_model_with_nothing_to_tune_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(ort.build(ir(), ort.Choice()))  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match=r"^runtime ort has nothing to tune$"):
        tersor.tune(path, runtime="ort")
    with pytest.raises(InvalidOption, match=r"^target cuda:sm_90 is not this machine"):
        tersor.tune(path, "cuda:sm_90")


def test_a_damaged_database_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "tuning.json").write_text("{")
    for call in (tersor.tune, tersor.compile):
        with pytest.raises(InvalidOption, match="is not a tuning database: remove it"):
            call(tmp_path / "missing.onnx", runtime="tvm", database=tmp_path / "tuning.json")
