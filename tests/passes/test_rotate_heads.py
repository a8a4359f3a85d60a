"""Rotated heads: nothing changes but the order of what lanes are worth, which is that of the best
approximations of every rank."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from tersor.backends import ort
from tersor.ir import Dense, Graph, Masked, parse, verify
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.factorize.rotate_heads import RotateHeads, balanced
from tersor.pipeline import Pipeline
from tersor.pipeline.report import PassReport
from tersor.structure import axis_groups, slice_graph, union

# Scores of a few units: a softmax multiplies the rounding of large ones.
ATTRS = "{q_num_heads = 4, kv_num_heads = 2, scale = 0.03}"
# 4 query heads of 4 lanes that share 2 key heads, values of 6; keys and values of another input.
TEXT = f"""graph main(%x: f32[b, n, 9], %z: f32[b, m, 7], %mask: bool[b, 1, 1, m]) -> (y = %y) {{
  @q: f32[9, 16] = dense normal(0)
  @c: f32[16] = dense normal(1)
  @k: f32[7, 8] = dense normal(2)
  @d: f32[8] = dense normal(3)
  @v: f32[7, 12] = dense normal(4)
  @e: f32[12] = dense normal(5)
  @o: f32[24, 5] = dense normal(6)
  @f: f32[5] = dense normal(7)
  %query: f32[b, n, 16] = tersor.Linear(%x, @q, @c) {{activation = "none"}}
  %key: f32[b, m, 8] = tersor.Linear(%z, @k, @d) {{activation = "none"}}
  %value: f32[b, m, 12] = tersor.Linear(%z, @v, @e) {{activation = "none"}}
  %mixed: f32[b, n, 24] = Attention(%query, %key, %value, %mask) {ATTRS} scope "layer.attention"
  %y: f32[b, n, 5] = tersor.Linear(%mixed, @o, @f) {{activation = "relu"}}
}}"""
ONE_HEAD = """graph main(%x: f32[n, 3, 9]) -> (y = %y) {
  @q: f32[9, 6] = dense normal(0)
  @c: f32[6] = dense normal(1)
  @k: f32[9, 6] = dense normal(2)
  @d: f32[6] = dense normal(3)
  @v: f32[9, 6] = dense normal(4)
  @e: f32[6] = dense normal(5)
  @o: f32[6, 8] = dense normal(6)
  %query: f32[n, 3, 6] = tersor.Linear(%x, @q, @c) {activation = "none"}
  %key: f32[n, 3, 6] = tersor.Linear(%x, @k, @d) {activation = "none"}
  %value: f32[n, 3, 6] = tersor.Linear(%x, @v, @e) {activation = "none"}
  %mixed: f32[n, 3, 6] = Attention(%query, %key, %value) {q_num_heads = 1, kv_num_heads = 1}
  %y: f32[n, 3, 8] = tersor.Linear(%mixed, @o) {activation = "none"}
}"""


def feed(seed: int = 0) -> dict[str, np.ndarray]:
    """The second batch has no key at all."""
    rng = np.random.default_rng(seed)
    x, z = (rng.standard_normal(shape) for shape in ((3, 5, 9), (3, 6, 7)))
    mask = rng.random((3, 1, 1, 6)) < 0.7
    mask[1] = False
    mask[0, ..., 0] = True
    return {"x": np.float32(x + 0.3), "z": np.float32(z * np.arange(1, 8)), "mask": mask}


def rotate(graph: Graph, feeds: Sequence[dict[str, np.ndarray]] = ()) -> tuple[Graph, PassReport]:
    pipeline = Pipeline([RotateHeads()], "text", calibration=feeds, evaluate=evaluate)
    after = pipeline.run(graph)
    verify(after)
    return after, pipeline.reports[0]


def assert_alike(before: Graph, after: Graph, given: dict[str, np.ndarray], run: Any) -> None:
    wanted, found = run(before, given), run(after, given)
    for name, array in wanted.items():
        # Ten or so times the rounding of single precision: the same sums in another basis.
        assert np.abs(found[name] - array).max() <= 2e-6 * np.abs(array).max(), name


# -- nothing is lost -------------------------------------------------------------------------------


@pytest.mark.parametrize("feeds", [[], [feed(1), feed(2)]], ids=["plain", "calibrated"])
@pytest.mark.parametrize("run", [evaluate, ort.Evaluator()], ids=["table", "ort"])
def test_outputs_agree_and_weights_do_not(feeds: list[Any], run: Any) -> None:
    """Grouped queries, cross attention, biases, and a row of which every key is masked."""
    before = parse(TEXT, TABLE)
    after, report = rotate(before.copy(), feeds)
    assert report.rewrites == 2
    assert not report.skips
    assert_alike(before, after, feed(), run)
    for name in "qckdveo":
        old, new = (g.constants[n].numpy() for g, n in ((before, name), (after, name)))
        assert not np.allclose(old, new, atol=0.1), name
    assert np.array_equal(before.constants["f"].numpy(), after.constants["f"].numpy())


@pytest.mark.parametrize(("gone", "bias"), ["qc", "kd", "ve"])
def test_lanes_of_heads_without_weights_are_zero(gone: str, bias: str) -> None:
    graph = parse(TEXT, TABLE)
    for name in (gone, bias):
        set_numbers(graph, name, np.where(np.arange(graph.constants[name].tensor.shape[-1]) < half(graph, name), 0, graph.constants[name].numpy()))  # fmt: skip
    after, _ = rotate(graph.copy(), [feed(1)])
    assert_alike(graph, after, feed(), evaluate)
    for name in (gone, bias):
        assert not after.constants[name].numpy()[..., : half(graph, name)].any()
        assert np.isfinite(after.constants[name].numpy()).all()


def half(graph: Graph, name: str) -> int:
    """Columns of the first of two groups of heads."""
    return graph.constants[name].tensor.shape[-1] // 2


def set_numbers(graph: Graph, name: str, array: np.ndarray) -> None:
    graph.set_encoding(graph.constants[name], Dense(array.astype(np.float32)))


# -- what lanes are worth --------------------------------------------------------------------------


def rows_of(graph: Graph, weight: str, bias: str | None) -> np.ndarray:
    """[W; b], f64."""
    arrays = [graph.constants[weight].numpy()]
    arrays += [graph.constants[bias].numpy()[None]] if bias else []
    return np.concatenate(arrays).astype(np.float64)


def without_lanes(graph: Graph, weight: str, lanes: Sequence[int]) -> Graph:
    """Lanes cut in the group that has the columns of ``weight``."""
    copy = graph.copy()
    [group] = [g for g in axis_groups(copy) if (copy.constants[weight], 1) in g.axes]
    slice_graph(copy, union(group.positions(lanes)))
    return copy


def products(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """(A B^T, V O) of one head."""
    a, b, v = (rows_of(graph, *names) for names in ("qc", "kd", "ve"))
    return a @ b.T, v @ rows_of(graph, "o", None)


def test_without_the_last_lanes_the_error_is_that_of_their_singular_values() -> None:
    before = parse(ONE_HEAD, TABLE)
    after, report = rotate(before.copy())
    told = (("q", "queries and keys"), ("v", "values"))
    for which, (weight, what) in enumerate(told):
        whole = products(before)[which]
        values = np.linalg.svd(whole, compute_uv=False)
        share = (values[:3] ** 2).sum() / (values**2).sum()
        assert (
            f"3 of 6 lanes of {what} carry {share:.2%} of the energy" in report.notes[which].method
        )
        for kept in range(1, 6):
            cut = products(without_lanes(after, weight, range(kept, 6)))[which]
            error = np.linalg.norm(whole - cut)
            # Of weights in single precision.
            assert error == pytest.approx(np.linalg.norm(values[kept:6]), rel=1e-5)
            others = combinations(range(6), 6 - kept)
            errors = [
                np.linalg.norm(whole - products(without_lanes(before, weight, lanes))[which])
                for lanes in others
            ]
            assert error < min(errors)


def seen(feeds: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    """f64[rows, k + 1], what the layers of ONE_HEAD read, with the 1 that their biases weigh."""
    x = np.concatenate([f["x"].reshape(-1, 9) for f in feeds]).astype(np.float64)
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def test_calibrated_lanes_are_those_of_the_scores_and_results_on_calibration_inputs() -> None:
    """By the scores of all pairs of rows, less their mean over keys, and by what the layer behind makes."""
    rng = np.random.default_rng(3)
    feeds = [
        {"x": np.float32(rng.standard_normal((4, 3, 9)) @ rng.standard_normal((9, 9)) + 1)}
        for _ in range(4)
    ]
    x = seen(feeds)

    def scores(graph: Graph) -> np.ndarray:
        return x @ products(graph)[0] @ (x - x.mean(axis=0)).T

    def results(graph: Graph) -> np.ndarray:
        return np.concatenate([evaluate(graph, f)["y"].reshape(-1, 8) for f in feeds])

    before = parse(ONE_HEAD, TABLE)
    after, plain = rotate(before.copy(), feeds)[0], rotate(before.copy())[0]
    for weight, made in (("q", scores), ("v", results)):
        values = np.linalg.svd(made(before), compute_uv=False)
        error, worse = (
            np.linalg.norm(made(before) - made(without_lanes(g, weight, range(3, 6))))
            for g in (after, plain)
        )
        # The ridge of the whitening, 1e-6 of the mean moment, takes some of the optimum away.
        assert error == pytest.approx(np.linalg.norm(values[3:6]), rel=1e-3)
        assert worse > 1.05 * error


def test_a_softcap_sees_what_is_the_same_for_all_keys() -> None:
    """A key's mean counts there, so that the lanes come in another order."""
    given = {"x": np.float32(np.random.default_rng(4).standard_normal((4, 3, 9)) * 0.1 + 3)}
    before = parse(ONE_HEAD.replace("kv_num_heads = 1", "kv_num_heads = 1, softcap = 5.0"), TABLE)
    after, _ = rotate(before.copy(), [given])
    assert_alike(before, after, given, evaluate)
    x = seen([given])
    whole = x @ products(before)[0] @ x.T
    first = x @ products(without_lanes(after, "q", range(1, 6)))[0] @ x.T
    values = np.linalg.svd(whole, compute_uv=False)
    assert np.linalg.norm(whole - first) == pytest.approx(np.linalg.norm(values[1:]), rel=1e-2)


def test_of_queries_that_share_keys_the_stacked_scores_count() -> None:
    """Both query heads of a group have the basis that is best for the sum of their errors."""
    after, _ = rotate(parse(TEXT, TABLE))

    def stacked(graph: Graph, lanes: int) -> np.ndarray:
        q, k = rows_of(graph, "q", "c"), rows_of(graph, "k", "d")
        heads = [q[:, i * 4 : i * 4 + lanes] for i in range(2)]
        return np.concatenate(heads) @ k[:, :lanes].T

    whole = stacked(parse(TEXT, TABLE), 4)
    np.testing.assert_allclose(stacked(after, 4), whole, rtol=1e-4, atol=1e-5)
    values = np.linalg.svd(whole, compute_uv=False)
    error = np.linalg.norm(stacked(after, 2) - whole)
    assert error == pytest.approx(np.linalg.norm(values[2:4]), rel=1e-5)


def test_a_product_of_lower_rank_than_lanes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 9, 5))
    left, right, values = balanced(a, b)
    assert (left.shape, right.shape, values.shape) == ((2, 3, 5), (2, 9, 5), (2, 5))
    np.testing.assert_allclose(left @ right.swapaxes(1, 2), a @ b.swapaxes(1, 2), atol=1e-12)
    assert not values[:, 3:].any()
    assert not left[..., 3:].any()


# -- what is left as it is -------------------------------------------------------------------------

LINEAR = '{activation = "none"}'
KEY = "%key: f32[b, m, 8] = tersor.Linear(%z, @k, @d)"
QUERY = "%query: f32[b, n, 16] = tersor.Linear(%x, @q, @c)"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (f"{KEY} {LINEAR}", f'{KEY} {{activation = "gelu"}}', "keys come from a linear layer with an activation"),
        (f"{KEY} {LINEAR}", f"{KEY.replace('%key', '%k1')} {LINEAR}\n  %key: f32[b, m, 8] = Relu(%k1)",
         "its keys come from Relu"),
        (f"{QUERY} {LINEAR}", f"{QUERY.replace('%query', '%q1')} {LINEAR}\n"
         "  @cos: f32[3, 5, 2] = dense normal(8)\n"
         "  %query: f32[b, n, 16] = RotaryEmbedding(%q1, @cos, @cos) {num_heads = 4}",
         "its queries come from RotaryEmbedding"),
        ("(y = %y)", "(y = %y, k = %key)", "its keys have another user"),
        ("(y = %y)", "(y = %y, mixed = %mixed)", "its result has other users than one linear layer"),
        ("%y: f32[b, n, 5] = tersor.Linear(%mixed, @o, @f)", "%t: f32[b, n, 24] = Relu(%mixed)\n"
         "  %y: f32[b, n, 5] = tersor.Linear(%t, @o, @f)", "its result has other users than one linear layer"),
        ("dense normal(2)", "dense normal(2)\n  %z2: f32[b, m, 8] = MatMul(%z, @k)",
         "the weight of its keys has other users"),
    ],
)  # fmt: skip
def test_refusals(old: str, new: str, reason: str) -> None:
    """The other of the two, scores or values, is rotated all the same."""
    assert old in TEXT
    before = parse(TEXT.replace(old, new), TABLE)
    after, report = rotate(before.copy())
    assert [reason in skip.reason for skip in report.skips] == [True]
    assert report.rewrites == 1
    assert_alike(before, after, feed(), evaluate)


@pytest.mark.parametrize(("name", "what"), [("q", "weight of its queries"), ("e", "bias of its values"),
                                            ("o", "weight behind it")])  # fmt: skip
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_no_numbers_stay(name: str, what: str, number: float) -> None:
    graph = parse(TEXT, TABLE)
    array = graph.constants[name].numpy().copy()
    array.flat[1] = number
    set_numbers(graph, name, array)
    after, report = rotate(graph.copy(), [feed()])
    whys = [skip.reason for skip in report.skips]
    assert f"the {what} contains NaN or infinity" in whys
    assert np.array_equal(after.constants[name].numpy(), array, equal_nan=True)


def test_calibration_that_is_no_number() -> None:
    broken = feed()
    broken["x"][0, 0, 0] = np.inf
    _, report = rotate(parse(TEXT, TABLE), [broken])
    assert [skip.reason for skip in report.skips] == [
        "the inputs of its layers contain NaN or infinity on calibration data"
    ]


def test_pruned_weights_stay() -> None:
    graph = parse(TEXT, TABLE)
    weight = graph.constants["k"]
    assert isinstance(weight.encoding, Dense)
    graph.set_encoding(weight, Masked.of(np.tri(7, 8, dtype=bool), weight.encoding))
    _, report = rotate(graph)
    assert [skip.reason for skip in report.skips] == [
        "the weight of its keys is not a dense constant"
    ]


def test_a_cache_keeps_keys_as_they_were() -> None:
    text = """graph main(%x: f32[1, 3, 8], %pk: f32[1, 2, 5, 4], %pv: f32[1, 2, 5, 4]) -> (y = %z, k = %k) {
  @q: f32[8, 8] = dense normal(0)
  %a: f32[1, 3, 8] = tersor.Linear(%x, @q) {activation = "none"}
  %y: f32[1, 3, 8], %k: f32[1, 2, 8, 4], %v: f32[1, 2, 8, 4] = Attention(%a, %x, %x, _, %pk, %pv) {q_num_heads = 2, kv_num_heads = 2}
  %z: f32[1, 3, 8] = Relu(%y)
}"""
    _, report = rotate(parse(text, TABLE))
    assert [skip.reason for skip in report.skips] == [
        "its keys are cached, and the cache would see the change of basis",
        "its values are cached, and the cache would see the change of basis",
    ]


def test_operands_that_have_an_axis_of_heads_stay() -> None:
    text = """graph main(%x: f32[1, 2, 3, 4]) -> (y = %y) {
  %y: f32[1, 2, 3, 4] = Attention(%x, %x, %x)
}"""
    _, report = rotate(parse(text, TABLE))
    assert [skip.reason for skip in report.skips] == [
        "its operands are not [batch, length, hidden]"
    ]


# -- real models -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attentions"),
    [("bert_tiny", 2), ("t5_tiny", 6), pytest.param("minilm", 6, marks=pytest.mark.sweep)],
)
def test_models_compute_what_they_did(name: str, attentions: int) -> None:
    """Self-attention, cross attention, relative positions; in ONNX Runtime, to ``ROUNDING``."""
    from tersor.frontends import load_model
    from tersor.models import zoo
    from tersor.pipeline.registry import optimization

    workload, run = zoo.find(name), ort.Evaluator()
    options = workload.torch_arguments()
    options.pop("output_names")
    module = workload.build() if name == "minilm" else workload.module()
    graph = Pipeline(optimization()).run(load_model(module, **options).graph)
    pipeline = Pipeline([RotateHeads()], calibration=workload.calibration()[:2], evaluate=run)
    after = pipeline.run(graph.copy())
    assert pipeline.reports[0].rewrites == 2 * attentions
    for given in workload.test()[:2]:
        wanted, found = run(graph, given), run(after, given)
        for key, array in wanted.items():
            assert np.abs(found[key] - array).max() <= 1e-5 * np.abs(array).max()
