"""Embeddings that keep the rows of used ids: inputs mean what they meant, outputs on used ids stay to the
bit, the others read as the unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.analysis.feeds import make_feed, table_rows
from tersor.backends import ort
from tersor.driver.recipe import build_pass
from tersor.errors import InvalidOption
from tersor.ir import Affine, Graph, parse, print_graph, verify, weights_of
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.prune.trim_vocabulary import TrimVocabulary
from tersor.passes.quantize.quantize_embedding import QuantizeEmbedding
from tersor.pipeline import Pipeline, weight_bytes
from tersor.pipeline.report import PassReport, Remark

IDS = {"ids": np.array([[1, 4, 0], [4, 9, -3]])}  # -3 is 7: counted from the end
OTHERS = {"ids": np.array([[2, 3], [5, 8]])}


def trim(
    text: str | Graph, step: TrimVocabulary, feeds: Any = (IDS,)
) -> tuple[Graph, Graph, PassReport]:
    """Before, after, the report."""
    graph = parse(text, TABLE) if isinstance(text, str) else text
    pipeline = Pipeline([step], "text", calibration=list(feeds), evaluate=evaluate)
    after = pipeline.run(graph)
    verify(after)
    assert after.signature() == graph.signature()
    return graph, after, pipeline.reports[0]


def same_on(before: Graph, after: Graph, feed: dict[str, np.ndarray]) -> None:
    for run in (evaluate, ort.Evaluator()):
        got = run(after, feed)
        for name, expected in run(before, feed).items():
            np.testing.assert_array_equal(got[name], expected)


LOOKUP = """graph main(%ids: i64[n, s]) -> (y = %x) {
  @table: f32[10, 4] = dense normal(0)
  %x: f32[n, s, 4] = Gather(@table, %ids) {axis = 0}
}"""


def test_a_lookup_reads_fewer_rows_by_way_of_new_ids() -> None:
    before, after, report = trim(LOOKUP, TrimVocabulary(unknown=0))
    expected = """graph main(%ids: i64[n, s]) -> (y = %x) {
  @new_ids: i64[10] = dense [0, 1, 0, 0, 2, 0, 0, 3, 0, 4]
  @table_1: f32[5, 4] = dense #DIGEST
  %gather: i64[n, s] = Gather(@new_ids, %ids) {axis = 0}
  %x: f32[n, s, 4] = Gather(@table_1, %gather) {axis = 0}
}"""
    expected = expected.replace("DIGEST", after.constants["table_1"].encoding.digest)  # type: ignore[union-attr]
    assert print_graph(after) == print_graph(parse(expected, TABLE, weights_of(after)))
    np.testing.assert_array_equal(
        after.constants["table_1"].numpy(), before.constants["table"].numpy()[[0, 1, 4, 7, 9]]
    )
    assert report.rewrites == 1
    assert [(n.layer, n.method) for n in report.notes] == [("ids", "5 of 10 ids are kept")]
    same_on(before, after, IDS)


def test_dropped_ids_read_as_the_unknown() -> None:
    before, after, _ = trim(LOOKUP, TrimVocabulary(unknown=6))
    for ids in ([[2, 3], [5, 8]], [[-8, -7], [-5, -2]]):
        got = evaluate(after, {"ids": np.array(ids)})["y"]
        assert (got == before.constants["table"].numpy()[6]).all()
    same_on(before, after, IDS)


def test_made_up_inputs_still_have_all_ids() -> None:
    _, after, _ = trim(LOOKUP, TrimVocabulary(unknown=0))
    assert table_rows(after.inputs[0]) == 10
    evaluate(after, make_feed(after, {"n": 4, "s": 50}))


def test_rows_of_nan_are_rows() -> None:
    graph = parse(LOOKUP, TABLE)
    table = graph.constants["table"].numpy().copy()
    table[4] = np.nan
    graph.replace(graph.constants["table"], graph.constant(table, "broken"))
    graph.erase_constant(graph.constants["table"])
    before, after, _ = trim(graph, TrimVocabulary(unknown=0))
    same_on(before, after, IDS)
    assert np.isnan(evaluate(after, IDS)["y"]).any()


def test_ids_from_a_file_and_by_option(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("[1, 4\n9]")
    _, after, _ = trim(LOOKUP, TrimVocabulary(ids=str(path), keep=(2,), unknown=0), [])
    index = after.constants["new_ids"].numpy()
    assert index.tolist() == [0, 1, 2, 0, 3, 0, 0, 0, 0, 4]
    step = build_pass("trim-vocabulary", {"keep": "2:5", "unknown": "0"})
    _, after, report = trim(LOOKUP, step)  # type: ignore[arg-type]
    assert report.notes[0].method == "7 of 10 ids are kept"


# -- several lookups -------------------------------------------------------------------------------

SHARED = """graph main(%source: i32[n, s], %target: i64[n, t], %kind: i64[n, s]) -> (a = %a, b = %b, c = %c, d = %d) {
  @table: f32[10, 4] = dense normal(0)
  @other: f32[10, 4] = dense normal(1)
  @kinds: f32[2, 4] = dense normal(2)
  @scale: f32[4] = dense normal(3)
  @axes: i64[1] = dense [0]
  @nine: i64[] = dense [9]
  %a: f32[n, s, 4] = tersor.EmbeddingLayerNormalization(@scale, @scale, %source, @table, %kind, @kinds) {epsilon = 0.001}
  %wide: i64[n, s] = Cast(%source) {to = 7, round_mode = "up", saturate = 1}
  %more: i64[1, n, s] = Unsqueeze(%wide, @axes)
  %b: f32[1, n, s, 4] = Gather(@other, %more) {axis = 0}
  %c: f32[n, t, 4] = Gather(@table, %target) {axis = 0}
  %d: bool[n, t] = Equal(%target, @nine)
}"""
PAIR = {
    "source": np.array([[1, 4], [0, 1]], np.int32),
    "target": np.array([[9], [4]]),
    "kind": np.array([[0, 1], [1, 1]]),
}


def test_tables_that_share_ids_are_trimmed_together_and_other_inputs_tables_are_not() -> None:
    before, after, _ = trim(SHARED, TrimVocabulary(unknown=0), [PAIR])
    shapes = {v.name: v.tensor.shape for v in after.constants.values()}
    assert shapes["table_1"] == shapes["other_1"] == (4, 4)
    assert shapes["kinds"] == (2, 4)
    assert "table" not in shapes and "other" not in shapes
    same_on(before, after, PAIR)
    got = evaluate(after, {**PAIR, "target": np.array([[8], [9]])})
    assert got["d"].tolist() == [[False], [True]]  # Compared as it was given.


def test_the_vocabulary_of_another_input() -> None:
    feed = {**PAIR, "kind": np.ones((2, 2), np.int64)}
    before, after, _ = trim(SHARED, TrimVocabulary(input="kind", unknown=1), [feed])
    assert {v.tensor.shape for v in after.constants.values() if "kinds" in v.name} == {(1, 4)}
    same_on(before, after, feed)


BRANCHES = """graph main(%ids: i64[n], %flag: bool[]) -> (y = %y) {
  @table: f32[10, 4] = dense normal(0)
  %y: f32[n, 4] = If(%flag) {
    then_branch = graph then() -> (y = %a) {
      %a: f32[n, 4] = Gather(@table, %ids) {axis = 0}
    },
    else_branch = graph else() -> (y = %c) {
      @own: f32[10, 4] = dense normal(1)
      @axes: i64[1] = dense [0]
      %u: i64[1, n] = Unsqueeze(%ids, @axes)
      %v: i64[n] = Squeeze(%u, @axes)
      %b: f32[n, 4] = Gather(@own, %v) {axis = 0}
      %c: f32[n, 4] = Neg(%b)
    }
  }
}"""


@pytest.mark.parametrize("flag", [True, False])
def test_tables_in_branches(flag: bool) -> None:
    feed = {"ids": np.array([1, 4, 4, 9]), "flag": np.array(flag)}
    before, after, _ = trim(BRANCHES, TrimVocabulary(unknown=1), [feed])
    shapes = [
        v.tensor.shape
        for g in after.all_graphs()
        for v in g.constants.values()
        if len(v.tensor.shape) == 2
    ]
    assert shapes == [(3, 4), (3, 4)]
    same_on(before, after, feed)


def test_a_quantized_table_stays_quantized() -> None:
    pipeline = Pipeline([QuantizeEmbedding(min_elements=0)])
    graph = pipeline.run(parse(LOOKUP, TABLE))
    before, after, _ = trim(graph, TrimVocabulary(unknown=0))
    held = after.constants["table_1"].encoding
    assert isinstance(held, Affine) and held.values.shape == (5, 4) and held.scale.shape == (5,)
    np.testing.assert_array_equal(evaluate(after, IDS)["y"], evaluate(before, IDS)["y"])


def test_a_table_that_is_read_by_other_ids_stays_for_them() -> None:
    text = LOOKUP.replace("(y = %x)", "(y = %x, z = %z)").replace(
        "{axis = 0}\n",
        "{axis = 0}\n  @two: i64[1] = dense [2]\n  %z: f32[1, 4] = Gather(@table, @two) {axis = 0}\n",
    )
    before, after, _ = trim(text, TrimVocabulary(unknown=0))
    same_on(before, after, IDS)


# -- heads -----------------------------------------------------------------------------------------

TIED = """graph main(%ids: i64[n, s]) -> (logits = %h) {
  @table: f32[10, 4] = dense normal(0)
  @head: f32[4, 10] = dense normal(0)
  @b: f32[10] = dense normal(2)
  %x: f32[n, s, 4] = Gather(@table, %ids) {axis = 0}
  %h: f32[n, s, 10] = tersor.Linear(%x, @head, @b) {activation = "none"}
}"""
UNFOLDED = """graph main(%ids: i64[n, s]) -> (logits = %z) {
  @table: f32[10, 4] = dense normal(0)
  %x: f32[n, s, 4] = Gather(@table, %ids) {axis = 0}
  %t: f32[4, 10] = Transpose(@table) {perm = [1, 0]}
  %h: f32[n, s, 10] = MatMul(%x, %t)
  %z: f32[n, s, 10] = Tanh(%h)
}"""


def tied() -> Graph:
    graph = parse(TIED, TABLE)
    head = np.ascontiguousarray(graph.constants["table"].numpy().T)
    graph.replace(graph.constants["head"], graph.constant(head, "tied"))
    graph.erase_constant(graph.constants["head"])
    return graph


def test_heads_stay_whole_and_outputs_the_same() -> None:
    for graph in (tied(), parse(UNFOLDED, TABLE)):
        before, after, report = trim(graph, TrimVocabulary(unknown=0))
        assert [skip.reason for skip in report.skips] == ["it keeps its 10 columns"]
        np.testing.assert_array_equal(
            evaluate(after, IDS)["logits"], evaluate(before, IDS)["logits"]
        )


@pytest.mark.parametrize("unfolded", [False, True])
def test_a_masked_head_has_no_logits_of_dropped_ids(unfolded: bool) -> None:
    graph = parse(UNFOLDED, TABLE) if unfolded else tied()
    before, after, report = trim(graph, TrimVocabulary(unknown=0, logits="mask"))
    kept, dropped = [0, 1, 4, 7, 9], [2, 3, 5, 6, 8]
    expected = evaluate(before, IDS)["logits"]
    for got in (evaluate(after, IDS)["logits"], ort.Evaluator()(after, IDS)["logits"]):
        # Products of fewer columns may be summed up in another order.
        np.testing.assert_allclose(got[..., kept], expected[..., kept], rtol=1e-5, atol=1e-6)
        assert (got[..., dropped] == (-1 if unfolded else -np.inf)).all()  # tanh(-inf)
    assert not report.skips
    assert not any(v.tensor.shape in ((10, 4), (4, 10)) for v in after.constants.values())


def test_a_head_of_its_own_weights_is_not_masked() -> None:
    before, after, report = trim(TIED, TrimVocabulary(unknown=0, logits="mask"))
    assert [skip.reason for skip in report.skips] == ["it keeps its 10 columns"]
    np.testing.assert_array_equal(evaluate(after, IDS)["logits"], evaluate(before, IDS)["logits"])


# -- where nothing can be trimmed ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "feeds", "message"),
    [
        (TrimVocabulary(unknown=0), [], "needs calibration inputs, or a file of the ids"),
        (TrimVocabulary(), [IDS], "5 of 10 ids are used: say with unknown=ID"),
        (TrimVocabulary(unknown=10), [IDS], "id 10 is outside the vocabulary of 10"),
        (TrimVocabulary(unknown=0, keep=(-11,)), [IDS], "id -11 is outside the vocabulary of 10"),
        (TrimVocabulary(unknown=0), [{"ids": np.array([[12]])}], "id 12 is outside the vocabulary"),
        (TrimVocabulary(unknown=0), [{"ids": np.zeros((2, 0), np.int64)}], "no ids are used"),
        (TrimVocabulary(unknown=0, input="id"), [IDS], "no input 'id', did you mean 'ids'"),
        (TrimVocabulary(unknown=0, ids="/no/such/file"), [IDS], "cannot read /no/such/file"),
    ],
)  # fmt: skip
def test_refusals(step: TrimVocabulary, feeds: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        trim(LOOKUP, step, feeds)


def test_an_input_that_picks_no_rows_is_refused_by_name() -> None:
    text = LOOKUP.replace("(%ids: i64[n, s])", "(%ids: i64[n, s], %x0: f32[n])")
    with pytest.raises(InvalidOption, match="input 'x0' does not index an embedding table"):
        trim(text, TrimVocabulary(input="x0"), [{**IDS, "x0": np.zeros(2, np.float32)}])


def test_a_model_without_a_table_passes_through() -> None:
    text = "graph main(%x: f32[n, 4]) -> (y = %y) {\n  %y: f32[n, 4] = Neg(%x)\n}"
    before, after, report = trim(text, TrimVocabulary(), [{"x": np.ones((2, 4), np.float32)}])
    assert print_graph(after) == print_graph(before)
    assert report.notes == [Remark("no input indexes an embedding table")]


def test_a_vocabulary_that_is_used_up_passes_through() -> None:
    before, after, report = trim(LOOKUP, TrimVocabulary(), [{"ids": np.arange(10)[None]}])
    assert print_graph(after) == print_graph(before)
    assert report.notes == [Remark("all 10 ids are used: nothing to drop")]


# -- a real model ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_minilm_on_a_corpus() -> None:
    from tersor.frontends import load_model
    from tersor.models.minilm import build, data
    from tersor.pipeline.registry import optimization

    graph = load_model(
        build.build(), example_inputs=build.example_inputs(), dynamic_shapes=build.DYNAMIC_SHAPES
    ).graph
    fused = Pipeline(optimization()).run(graph)
    feeds, run = data.calibration(), ort.Evaluator()
    pipeline = Pipeline([TrimVocabulary(unknown=100)], calibration=feeds, evaluate=run)
    after = pipeline.run(fused)
    used = {int(i) for feed in feeds for i in feed["input_ids"].reshape(-1)} | {100}
    rows = (30522 - len(used)) * 384 * 4
    assert weight_bytes(fused) - weight_bytes(after) == rows - 30522 * 8
    for feed in feeds:
        for name, expected in run(fused, feed).items():
            np.testing.assert_array_equal(run(after, feed)[name], expected)
