"""Linear layers in two of lower rank: exact where they can be, refused with the numbers where they do not pay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tersor import compile
from tersor.backends import ort
from tersor.driver.recipe import Recipe, build_pass
from tersor.errors import InvalidOption
from tersor.ir import Affine, Graph, parse
from tersor.numerics.affine import relative_error
from tersor.numerics.lowrank import decompose, output_error, truncate, whitening
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.factorize.factorize_linear import FactorizeLinear
from tersor.passes.quantize.quantize_dynamic import QuantizeDynamic
from tersor.pipeline import Pipeline
from tersor.pipeline.report import PassReport, Remark

METHODS = ("svd", "whitened-svd", "fisher-svd", "pca", "nmf", "nystrom")
NEED_DATA = ("whitened-svd", "fisher-svd", "pca")
LAYERS = """graph main(%x: f32[batch, 24]) -> (y = %y) {
  @w: f32[24, 40] = dense normal(1)
  @b: f32[40] = dense normal(2)
  @v: f32[40, 24] = dense normal(3)
  %h: f32[batch, 40] = tersor.Linear(%x, @w, @b) {activation = "gelu"} scope "ffn.up"
  %y: f32[batch, 24] = tersor.Linear(%h, @v) {activation = "none"} scope "ffn.down"
}"""


def of_rank(rank: int, k: int, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal((k, rank)) @ rng.standard_normal((rank, n)) / rank**0.5)


def graph_of(text: str = LAYERS, **weights: np.ndarray) -> Graph:
    graph = parse(text, TABLE)
    for name, data in weights.items():
        old = graph.constants[name]
        graph.replace(old, graph.constant(data.astype(old.tensor.dtype.numpy), f"{name}_given"))
        graph.erase_constant(old)
    return graph


def low() -> Graph:
    """Weights of rank 3."""
    return graph_of(w=of_rank(3, 24, 40), v=of_rank(3, 40, 24, 1))


def feeds(rows: int = 64) -> list[dict[str, np.ndarray]]:
    """Rows of 6 strong directions among 24, with a mean."""
    rng = np.random.default_rng(5)
    mix, mean = rng.standard_normal((6, 24)), rng.standard_normal(24)
    x = [
        rng.standard_normal((rows, 6)) @ mix + 0.2 * rng.standard_normal((rows, 24))
        for _ in range(3)
    ]
    return [{"x": (part + mean).astype(np.float32)} for part in x]


def run(
    step: FactorizeLinear, graph: Graph, data: bool = True, **given: Any
) -> tuple[Graph, PassReport]:
    calibration = feeds() if data else ()
    pipeline = Pipeline([step], level="text", evaluate=evaluate, calibration=calibration, **given)
    return pipeline.run(graph), pipeline.reports[0]


def shapes(graph: Graph) -> list[tuple[int, ...]]:
    return [n.inputs[1].tensor.shape for n in graph.nodes]  # type: ignore[union-attr]


def errors(report: PassReport) -> list[float]:
    return [note.error for note in report.notes if note.error is not None]


def reasons(report: PassReport) -> list[str]:
    return [skip.reason for skip in report.skips]


# -- what comes out --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_low_rank_are_kept(method: str) -> None:
    graph = low()
    # Semi-NMF needs a part for each sign of a direction.
    rank = 6 if method == "nmf" else 3
    step = FactorizeLinear(method=method, rank_by="rank", amount=rank)  # type: ignore[arg-type]
    after, report = run(step, graph)
    assert shapes(after) == [(24, rank), (rank, 40), (40, rank), (rank, 24)]
    assert [n.attrs["activation"] for n in after.nodes] == ["none", "gelu", "none", "none"]
    assert [n.scope for n in after.nodes] == ["ffn.up"] * 2 + ["ffn.down"] * 2
    assert after.signature() == graph.signature()
    # Products of f32; semi-NMF is as near as its sweeps bring it.
    limit = 0.05 if method == "nmf" else 1e-5
    for feed in feeds():
        wanted = evaluate(graph, feed)["y"]
        for got in (evaluate(after, feed)["y"], ort.Evaluator()(after, feed)["y"]):
            assert relative_error(wanted, got) < limit
    before, left = (sum(v.numpy().size for v in g.constants.values()) for g in (graph, after))
    extra = 24 if method == "pca" else 0  # The second layer gets a bias.
    assert left == before - 2 * 24 * 40 + 2 * rank * 64 + extra
    assert (
        report.notes[-1].reason
        == f"2 weights factorized: {before:,} parameters before, {left:,} after"
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_error_that_is_told_is_the_first_layers_own(method: str) -> None:
    graph = graph_of()
    first = FactorizeLinear(method=method, rank_by="rank", amount=5, scopes=("ffn.up",))  # type: ignore[arg-type]
    after, report = run(first, graph)
    x = np.concatenate([feed["x"] for feed in feeds()]).astype(np.float64)
    a, b = (n.inputs[1].numpy().astype(np.float64) for n in list(after.nodes)[:2])  # type: ignore[union-attr]
    bias = list(after.nodes)[1].inputs[2].numpy() - graph.constants["b"].numpy()  # type: ignore[union-attr]
    wanted = x @ graph.constants["w"].numpy().astype(np.float64)
    assert errors(report) == [pytest.approx(relative_error(wanted, x @ a @ b + bias), abs=1e-4)]


def test_plain_errors_are_those_of_the_spectrum() -> None:
    graph = graph_of()
    _, report = run(FactorizeLinear("svd", "rank", 5), graph, data=False)
    values = [np.linalg.svd(graph.constants[n].numpy(), compute_uv=False) for n in ("w", "v")]
    expected = [np.linalg.norm(s[5:]) / np.linalg.norm(s) for s in values]
    assert errors(report) == pytest.approx(expected, abs=1e-4)
    assert report.notes[0].of == "the weight"


def test_who_is_nearer_to_the_outputs() -> None:
    found = {}
    for method in METHODS:
        _, report = run(FactorizeLinear(method, "rank", 5, scopes=("ffn.up",)), graph_of())  # type: ignore[arg-type]
        [found[method]] = errors(report)
    others = [found[m] for m in ("svd", "fisher-svd", "nmf", "nystrom")]
    assert found["pca"] < found["whitened-svd"] < min(others)
    # Though svd's B is fitted to the outputs as well.
    assert found["whitened-svd"] < 0.8 * found["svd"]


def test_calibration_fits_b_anew() -> None:
    graph = graph_of()
    x = np.concatenate([feed["x"] for feed in feeds()]).astype(np.float64)
    weight = graph.constants["w"].numpy().astype(np.float64)
    plain = truncate(weight, decompose(weight, None)[1], 5).product
    [fitted] = errors(run(FactorizeLinear("svd", "rank", 5, scopes=("ffn.up",)), graph)[1])
    assert fitted < 0.95 * output_error(weight, plain, x.T @ x)


# -- ranks -----------------------------------------------------------------------------------------


def test_energy_is_the_output_error_of_whitened_svd() -> None:
    after, report = run(
        FactorizeLinear(rank_by="energy", amount=0.9, scopes=("ffn.up",)), graph_of()
    )
    rank = shapes(after)[0][1]
    x = np.concatenate([feed["x"] for feed in feeds()]).astype(np.float64)
    weight = graph_of().constants["w"].numpy().astype(np.float64)
    values, _ = decompose(weight, whitening(x.T @ x))
    kept = np.cumsum(np.square(values)) / np.square(values).sum()
    assert kept[rank - 2] < 0.9 <= kept[rank - 1]
    assert errors(report)[0] == pytest.approx((1 - kept[rank - 1]) ** 0.5, abs=1e-3)  # the ridge


def test_ratio_and_parameters_are_kept_to() -> None:
    graph = graph_of()
    after, _ = run(FactorizeLinear("svd", "ratio", 0.5), graph)
    assert shapes(after)[0] == (24, 7)  # 7 x 64 = 448 of 960; 8 x 64 would be 512
    for share in (0.3, 0.6, 0.9):
        after, report = run(FactorizeLinear("whitened-svd", "parameters", share), graph)
        counts = [
            int(n.replace(",", ""))
            for n in re.findall(r"([\d,]+) parameters before, ([\d,]+)", report.notes[-1].reason)[0]
        ]
        assert counts[0] == sum(v.numpy().size for v in graph.constants.values())
        assert share * counts[0] - 64 <= counts[1] <= share * counts[0]


class Linear:
    """Milliseconds by count: 1 for each product, and 1 for each 100 multiplications of a row."""

    sizes = ({"batch": 4}, {"batch": 32})

    def __init__(self) -> None:
        self.asked: list[Mapping[str, np.ndarray]] = []

    def feed(self, graph: Graph, sizes: Mapping[str, int]) -> Mapping[str, np.ndarray]:
        raise NotImplementedError  # Layers alone are measured.

    def __call__(self, graph: Graph, feed: Mapping[str, np.ndarray]) -> float:
        self.asked.append(feed)
        return sum(1 + n.inputs[1].numpy().size / 100 for n in graph.nodes)  # type: ignore[union-attr]


def test_break_even_is_the_largest_rank_that_is_faster() -> None:
    """192 x 192: 1 + 368.64 ms; at rank r 2 + 3.84 r ms, of which 0.9 x 369.64 = 332.7 leaves r = 86."""
    text = """graph main(%x: f32[batch, 192]) -> (y = %y) {
      @w: f32[192, 192] = dense normal(1)
      %y: f32[batch, 192] = tersor.Linear(%x, @w)
    }"""
    watch = Linear()
    step = FactorizeLinear("svd", "break-even", 0.9)
    after, report = run(step, parse(text, TABLE), False, latency=watch)
    assert shapes(after) == [(192, 80), (80, 192)]  # the multiple of 16 below
    assert (report.notes[0].layer, report.notes[0].method) == ("y", "rank 80 of 192x192")
    assert report.notes[0].reason.startswith(
        "309.200 ms against 369.640 ms measured for the dense layer on f32["
    )
    assert {len(feed["x"]) for feed in watch.asked} == {4, 32}


def test_what_does_not_pay_is_refused_with_the_numbers() -> None:
    step = FactorizeLinear("svd", "rank", 14)
    after, report = run(step, graph_of(), latency=Linear())
    assert shapes(after) == [(24, 40), (40, 24)]
    # 14 x 64 = 896 multiplications are fewer than 960, and yet two products take longer than one.
    assert [skip.method for skip in report.skips] == ["rank 14 of 24x40", "rank 14 of 40x24"]
    assert reasons(report) == [
        f"10.960 ms against 10.600 ms measured for the dense layer on f32[32, {k}]"
        for k in (24, 40)
    ]
    assert report.notes == [Remark("no layer was factorized")]
    after, _ = run(FactorizeLinear("svd", "rank", 14, must_pay=False), graph_of(), latency=Linear())
    assert shapes(after)[0] == (24, 14)


def test_where_nothing_is_measured_it_is_by_count() -> None:
    _, report = run(FactorizeLinear("svd", "rank", 15), graph_of())
    assert [skip.method for skip in report.skips] == ["rank 15 of 24x40", "rank 15 of 40x24"]
    by_count = "960 multiplications per row against 960 (counted, not measured)"
    assert reasons(report) == [by_count, by_count]
    _, report = run(FactorizeLinear("svd", "rank", 14), graph_of())
    assert (
        "896 multiplications per row against 960 (counted, not measured)" in report.notes[0].reason
    )


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rank_by": "ratio", "amount": 0},
            "ratio 0 is not between 0 and 1",
        ),
        ({"rank_by": "ratio", "amount": 1}, "ratio 1 is not between"),
        ({"rank_by": "energy", "amount": 1.5}, r"energy 1\.5 is not between"),
        ({"rank_by": "rank", "amount": 0}, "rank 0 is not a positive whole number"),
        ({"rank_by": "rank", "amount": 2.5}, r"rank 2\.5 is not a positive whole number"),
        ({"rank_by": "half"}, "rank_by: Input should be 'energy', 'ratio'"),
        ({"method": "lu"}, "method: Input should be 'svd'"),
        ({"rank": 8}, "no option 'rank'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        build_pass("factorize-linear", options)


@pytest.mark.parametrize("method", METHODS)
def test_calibration_is_never_made_up(method: str) -> None:
    step = FactorizeLinear(method=method, rank_by="rank", amount=3)  # type: ignore[arg-type]
    if method in NEED_DATA:
        with pytest.raises(InvalidOption, match=f"method {method} needs calibration inputs"):
            run(step, graph_of(), data=False)
    else:
        assert run(step, low(), data=False)[1].rewrites == 2


def test_patterns_of_scopes() -> None:
    with pytest.raises(
        InvalidOption,
        match=r"no layer's scope matches 'attention\.\*'; there are ffn\.up, ffn\.down",
    ):
        run(FactorizeLinear("svd", "rank", 3, scopes=("attention.*",)), graph_of())
    after, report = run(FactorizeLinear("svd", "rank", 3, ignored_scopes=("*.up",)), graph_of())
    assert shapes(after) == [(24, 40), (40, 3), (3, 24)]
    assert reasons(report) == ["its scope is in ignored_scopes"]


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_weight_that_is_not_finite_stays(bad: float) -> None:
    weight = of_rank(3, 24, 40)
    weight[2, 3] = bad
    after, report = run(FactorizeLinear("svd", "rank", 3), graph_of(w=weight))
    assert shapes(after) == [(24, 40), (40, 3), (3, 24)]
    assert reasons(report) == ["@w_given contains NaN or infinity"]


def test_activations_that_are_not_finite() -> None:
    graph = graph_of(w=np.full((24, 40), 1e38))
    _, report = run(FactorizeLinear("whitened-svd", "rank", 3, scopes=("ffn.down",)), graph)
    assert reasons(report) == ["its inputs contain NaN or infinity on calibration data"]


def test_a_rank_that_takes_nothing_away_and_a_weight_of_nothing() -> None:
    _, report = run(FactorizeLinear("svd", "rank", 24), graph_of(v=np.zeros((40, 24))))
    assert reasons(report) == [
        "the rank is not lower",
        "it has no effect: its weight or its calibration inputs are zero",
    ]


def test_layers_that_would_lose_too_much_stay() -> None:
    step = FactorizeLinear("svd", "rank", 3, max_error=0.1)
    after, report = run(step, graph_of(w=of_rank(3, 24, 40)))
    assert shapes(after) == [(24, 3), (3, 40), (40, 24)]
    (skip,) = report.skips
    assert (skip.method, skip.reason) == ("rank 3 of 40x24", "above max_error 0.1")
    assert skip.of == "the output"
    assert skip.error is not None and 0.1 < skip.error < 1


def test_int8_weights_are_left_as_they_are() -> None:
    quantized = Pipeline([QuantizeDynamic(min_elements=1)]).run(graph_of())
    after, report = run(FactorizeLinear("svd", "rank", 3), quantized, data=False)
    assert reasons(report) == ["@w is affine(i8, axis=1)", "@v is affine(i8, axis=1)"]
    weights = [n.inputs[1].encoding for n in after.nodes if n.op == "tersor.Linear"]  # type: ignore[union-attr]
    assert all(isinstance(w, Affine) for w in weights)


def test_factors_in_int8() -> None:
    graph = low()
    steps = [FactorizeLinear("svd", "rank", 3), QuantizeDynamic(min_elements=1)]
    after = Pipeline(steps, level="text").run(graph)
    linears = [n for n in after.nodes if n.op == "tersor.Linear"]
    assert len(linears) == 4
    assert all(isinstance(n.inputs[1].encoding, Affine) for n in linears)  # type: ignore[union-attr]
    wanted, got = (evaluate(g, feeds()[0])["y"] for g in (graph, after))
    # Round-off of 1/255 of the range of three activations and of 1/254 of the weights.
    assert relative_error(wanted, got) < 0.05


def test_tied_layers_share_their_factors() -> None:
    text = """graph main(%x: f32[batch, 24]) -> (y = %y) {
      @w: f32[24, 24] = dense normal(1)
      %h: f32[batch, 24] = tersor.Linear(%x, @w) {activation = "relu"} scope "layer.0"
      %y: f32[batch, 24] = tersor.Linear(%h, @w) scope "layer.1"
    }"""
    after, report = run(FactorizeLinear(rank_by="rank", amount=5), parse(text, TABLE))
    a, b, c, d = (n.inputs[1] for n in after.nodes)
    assert (a, b) == (c, d)
    assert report.rewrites == 1
    after, report = run(
        FactorizeLinear(rank_by="rank", amount=5, ignored_scopes=("layer.1",)), parse(text, TABLE)
    )
    assert shapes(after) == [(24, 24), (24, 24)]
    assert "@w has other uses, which would not change" in reasons(report)


def test_another_float_type_holds_its_factors() -> None:
    for name, limit in (("f16", 2e-2), ("f64", 1e-12)):
        graph = parse(LAYERS.replace("f32", name), TABLE)
        after, _ = run(FactorizeLinear("svd", "rank", 14, must_pay=False), graph, data=False)
        assert {v.tensor.dtype.value for v in after.constants.values()} == {name}
        weight = graph.constants["w"].numpy().astype(np.float64)
        a, b = (n.inputs[1].numpy().astype(np.float64) for n in list(after.nodes)[:2])  # type: ignore[union-attr]
        best = truncate(weight, decompose(weight, None)[1], 14).product
        np.testing.assert_allclose(a @ b, best, atol=limit)


# -- the recipe ------------------------------------------------------------------------------------


def test_the_recipe_measures_and_says_what_it_needs(tmp_path: Any) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(ort.build(low()))
    with pytest.raises(InvalidOption, match="whitened-svd needs calibration inputs"):
        compile(path, recipe="lowrank", sizes=[{"batch": 8}])
    [step] = Recipe.of("lowrank").override({"amount": 0.5}).build()
    assert step == FactorizeLinear("whitened-svd", "break-even", 0.5, max_error=0.1)
    artifact = compile(path, recipe="lowrank", calibration=feeds(), measure=False)
    notes = [note for p in artifact.report.passes for note in p.notes]
    assert any("counted, not measured" in note.reason for note in notes)
