"""Embedding tables in factors and as tensor trains."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from tersor.backends import ort
from tersor.errors import InvalidOption, Unsupported
from tersor.ir import Graph, parse
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.factorize.factorize_embedding import FactorizeEmbedding
from tersor.passes.factorize.tensor_train_embedding import (
    TensorTrainEmbedding,
    column_digits,
    row_digits,
)
from tersor.pipeline import Pass, Pipeline
from tersor.pipeline.report import PassReport

GATHER = """graph main(%ids: i64[batch, length]) -> (y = %y) {
  @table: f32[50, 24] = dense normal(1)
  %y: f32[batch, length, 24] = Gather(@table, %ids) {axis = 0} scope "words"
}"""
FUSED = """graph main(%ids: i64[batch, length]) -> (y = %y) {
  @scale: f32[24] = dense normal(3)
  @bias: f32[24] = dense normal(4)
  @table: f32[50, 24] = dense normal(1)
  @places: i64[9] = dense arange
  @position: f32[9, 24] = dense normal(2)
  %mask: i64[length] = Range(@zero, %n, @one)
  %y: f32[batch, length, 24] = tersor.EmbeddingLayerNormalization(@scale, @bias, %ids, @table, @places, @position) {epsilon = 1e-12} scope "embeddings"
}""".replace("  %mask: i64[length] = Range(@zero, %n, @one)\n", "").replace(
    "batch, length", "batch, 9"
)
IDS = np.array([[0, 49, 7, 7, 30, 1, 2, 3, 4], [5, 6, 8, 9, 48, 47, 31, 32, 33]])


def graph_of(text: str, table: np.ndarray) -> Graph:
    graph = parse(text, TABLE)
    graph.replace(graph.constants["table"], graph.constant(table.astype(np.float32), "held"))
    graph.erase_constant(graph.constants["table"])
    return graph


def of_rank(rank: int, rows: int = 50, columns: int = 24) -> np.ndarray:
    rng = np.random.default_rng(rank)
    return np.asarray(rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)))


def run(step: Pass, graph: Graph, **given: Any) -> tuple[Graph, PassReport]:
    pipeline = Pipeline([step], level="text", evaluate=evaluate, **given)
    return pipeline.run(graph), pipeline.reports[0]


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def same_everywhere(before: Graph, after: Graph, ids: np.ndarray = IDS) -> None:
    wanted = evaluate(before, {"ids": ids})["y"]
    for got in (evaluate(after, {"ids": ids})["y"], ort.Evaluator()(after, {"ids": ids})["y"]):
        # f32 products of a few terms, of numbers below 20.
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


# -- two factors -----------------------------------------------------------------------------------


def test_a_table_of_low_rank_is_exact() -> None:
    graph = graph_of(GATHER, of_rank(3))
    after, report = run(FactorizeEmbedding("rank", 3, min_elements=1), graph)
    assert ops(after) == ["Gather", "tersor.Linear"]
    assert sorted(v.tensor.shape for v in after.constants.values()) == [(3, 24), (50, 3)]
    assert report.rewrites == 1
    (told,) = report.notes
    assert (told.layer, told.method) == ("@held", "rank 3 of 50x24")
    assert told.error == pytest.approx(0, abs=1e-6)
    same_everywhere(graph, after)
    same_everywhere(graph, after, IDS - 50)  # Gather counts ids below zero from the end.


def test_a_fused_normalization_is_taken_apart_for_it() -> None:
    graph = graph_of(FUSED, of_rank(3))
    after, _ = run(FactorizeEmbedding("ratio", 0.3, min_elements=1000), graph)
    assert ops(after) == ["Gather", "tersor.Linear", "Gather", "Add", "LayerNormalization"]
    same_everywhere(graph, after)


def test_all_tables_of_a_fused_normalization_are_factorized() -> None:
    """The first takes apart the node that the second is read by."""
    graph = graph_of(FUSED, of_rank(3))
    after, report = run(FactorizeEmbedding("rank", 1, min_elements=1), graph)
    assert report.rewrites == 2
    assert ops(after).count("tersor.Linear") == 2 and "Gather" in ops(after)


def test_the_error_is_that_of_the_spectrum() -> None:
    table = of_rank(24)
    _, report = run(FactorizeEmbedding("rank", 5, min_elements=1), graph_of(GATHER, table))
    values = np.linalg.svd(table, compute_uv=False)
    told = report.notes[0].error
    expected = np.linalg.norm(values[5:]) / np.linalg.norm(values)
    assert told == pytest.approx(expected, abs=1e-4)


def test_words_that_are_used_lose_less_by_frequency() -> None:
    graph = graph_of(GATHER, of_rank(24))
    feeds = [{"ids": np.array([[1, 2, 3, 1, 2, 3, 4]] * 50)}]
    used = np.array([[1, 2, 3, 4]])

    def lost(weighting: str) -> float:
        step = FactorizeEmbedding("rank", 4, weighting=weighting, min_elements=1)  # type: ignore[arg-type]
        after, _ = run(step, graph, calibration=feeds)
        difference = evaluate(after, {"ids": used})["y"] - evaluate(graph, {"ids": used})["y"]
        return float(np.linalg.norm(difference))

    # Four words make up nearly all of what counts, and rank 4 holds them: word 4 was seen 50 times, the
    # 46 others count once each.
    assert lost("frequency") < 0.1 * lost("none")


def test_padding_does_not_count() -> None:
    text = GATHER.replace("[batch, length])", "[batch, length], %mask: i64[batch, length])")
    graph = graph_of(text, of_rank(24))
    ids, mask = np.array([[1, 2, 3, 4] + [0] * 100]), np.array([[1] * 4 + [0] * 100])
    step = FactorizeEmbedding("rank", 4, weighting="frequency", min_elements=1)
    _, with_mask = run(step, graph, calibration=[{"ids": ids, "mask": mask}])
    cut = {"ids": ids[:, :4], "mask": mask[:, :4]}
    _, without = run(step, graph, calibration=[cut])
    assert with_mask.notes == without.notes


def test_a_table_that_a_head_reads_stays() -> None:
    head = "  %t: f32[24, 50] = Transpose(@table) {perm = [1, 0]}\n  %z: f32[batch, length, 50] = MatMul(%y, %t)\n}"
    text = GATHER.replace("\n}", "\n" + head).replace("(y = %y)", "(y = %y, z = %z)")
    graph = graph_of(text, of_rank(3))
    for step in (FactorizeEmbedding(min_elements=1), TensorTrainEmbedding(min_elements=1)):
        after, report = run(step, graph)
        assert ops(after) == ops(graph)
        assert [skip.reason for skip in report.skips] == [
            "@held has other uses, which would not change"
        ]


@pytest.mark.parametrize(
    "step", [FactorizeEmbedding(min_elements=1), TensorTrainEmbedding(min_elements=1)]
)
@pytest.mark.parametrize(
    ("table", "reason"),
    [(np.full((50, 24), np.nan), "@held contains NaN or infinity"), (of_rank(3), "")],
)
def test_refusals(step: Pass, table: np.ndarray, reason: str) -> None:
    after, report = run(step, graph_of(GATHER, table))
    assert [skip.reason for skip in report.skips] == ([reason] if reason else [])
    assert (ops(after) == ["Gather"]) is bool(reason)


def test_small_tables_stay() -> None:
    graph = graph_of(GATHER, of_rank(3))
    for step in (FactorizeEmbedding(), TensorTrainEmbedding()):
        after, report = run(step, graph)
        assert (ops(after), report.rewrites) == (["Gather"], 0)
        assert [skip.reason for skip in report.skips] == ["@held has fewer than 1000000 elements"]


def test_a_rank_too_large_and_a_zero_table() -> None:
    _, report = run(FactorizeEmbedding("rank", 17, min_elements=1), graph_of(GATHER, of_rank(3)))
    (skip,) = report.skips
    assert skip.method == "rank 17 of 50x24"
    assert skip.reason == "it has no fewer elements than the table"
    _, report = run(FactorizeEmbedding(min_elements=1), graph_of(GATHER, np.zeros((50, 24))))
    assert [skip.reason for skip in report.skips] == ["@held is zero"]


def test_options_that_cannot_be() -> None:
    with pytest.raises(InvalidOption, match="ratio 1 is not between 0 and 1"):
        FactorizeEmbedding("ratio", 1)
    with pytest.raises(InvalidOption, match=r"rank 2\.5 is not a positive whole number"):
        FactorizeEmbedding("rank", 2.5)
    with pytest.raises(InvalidOption, match="ratio 0 is not between 0 and 1"):
        TensorTrainEmbedding(0)
    with pytest.raises(InvalidOption, match="frequency needs calibration inputs"):
        run(FactorizeEmbedding(weighting="frequency"), graph_of(GATHER, of_rank(3)))


# -- tensor trains ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [GATHER, FUSED], ids=["gather", "fused"])
def test_a_train_of_rank_1_is_exact(text: str) -> None:
    """A Kronecker product of three: rank 1 between all digits."""
    rng = np.random.default_rng(0)
    digits = zip(row_digits(48), column_digits(24), strict=True)
    first, second, third = (rng.standard_normal(shape) for shape in digits)
    table = np.kron(np.kron(first, second), third)
    assert table.shape == (48, 24)  # No more rows than there are: zeros would break the rank.
    graph = graph_of(text.replace("[50, 24]", "[48, 24]"), table)
    after, report = run(TensorTrainEmbedding(0.1, min_elements=1000), graph)
    assert report.rewrites == 1
    assert report.notes[0].error < 1e-4
    same_everywhere(graph, after, IDS % 48)
    same_everywhere(graph, after, IDS % 48 - 48)


def test_a_train_holds_what_it_says() -> None:
    table = of_rank(24)
    graph = graph_of(GATHER, table)
    after, report = run(TensorTrainEmbedding(0.6, min_elements=1), graph)
    left = sum(v.numpy().size for v in after.constants.values() if v.tensor.dtype.is_float)
    assert left <= 0.6 * table.size
    every = np.arange(50)[None]
    got = evaluate(after, {"ids": every})["y"][0]
    error = np.linalg.norm(got - table) / np.linalg.norm(table)
    told = report.notes[0].error
    assert error == pytest.approx(told, abs=1e-4)
    assert 0.1 < error < 1


def test_without_tensorly_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("tensorly"):
            raise ModuleNotFoundError("No module named 'tensorly'", name="tensorly")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(
        Unsupported, match=r"need the package 'tensorly': pip install 'tersor\[tensor\]'"
    ):
        run(TensorTrainEmbedding(min_elements=1), graph_of(GATHER, of_rank(3)))
