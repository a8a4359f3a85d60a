"""Convolutions in chains of smaller ones: exact where the rank allows it, in ONNX Runtime too."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from tersor.backends import ort
from tersor.errors import InvalidOption, Unsupported
from tersor.ir import Graph, parse
from tersor.numerics.tensors import cp_product, train_product, tucker2_product
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.factorize.decompose_conv import DecomposeConv
from tersor.pipeline import Pipeline
from tersor.pipeline.report import PassReport

METHODS = ("tucker", "cp", "tensor-train")
TEXT = """graph main(%x: f32[batch, 6, 11, 12]) -> (y = %y) {{
  @w: f32[8, {inner}, {kernel}] = dense normal(1)
  @b: f32[8] = dense normal(2)
  %y: f32[batch, 8, {sizes}] = Conv(%x, @w, @b) {{{attrs}}} scope "stem"
}}"""
PLAIN = {"kernel": "3, 3", "sizes": "9, 10", "attrs": "", "inner": 6}
WINDOWS = [
    PLAIN,
    {"kernel": "3, 2", "sizes": "6, 11", "attrs": "strides = [2, 1], pads = [1, 0, 1, 0]"},
    {"kernel": "2, 3", "sizes": "9, 12", "attrs": "dilations = [2, 1], pads = [0, 1, 0, 1]"},
    {"kernel": "3, 3", "sizes": "6, 6", "attrs": 'auto_pad = "SAME_UPPER", strides = [2, 2]'},
    {"kernel": "3, 1", "sizes": "11, 6", "attrs": "strides = [1, 2], pads = [1, 0, 1, 0]"},
]


def graph_of(weight: np.ndarray | None = None, **window: Any) -> Graph:
    graph = parse(TEXT.format(**{**PLAIN, **window}), TABLE)
    if weight is not None:
        graph.replace(graph.constants["w"], graph.constant(weight.astype(np.float32), "low"))
    return graph


def low_rank(method: str, kernel: tuple[int, ...]) -> np.ndarray:
    """A weight that the method holds exactly at half of its size."""
    rng = np.random.default_rng(7)

    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    if method == "tucker":
        return tucker2_product(f(2, 1, *kernel), f(8, 2), f(6, 1))
    if method == "cp":
        return cp_product([f(8, 1), f(6, 1), *(f(size, 1) for size in kernel)])
    cores = [f(1, 6, 1), *(f(1, size, 1) for size in kernel), f(1, 8, 1)]
    return np.moveaxis(train_product(cores), -1, 0)


def run(step: DecomposeConv, graph: Graph, **given: Any) -> tuple[Graph, PassReport]:
    pipeline = Pipeline([step], level="text", **given)
    return pipeline.run(graph), pipeline.reports[0]


@pytest.mark.parametrize("window", WINDOWS, ids=lambda w: f"{w['kernel']} {w['attrs']}")
@pytest.mark.parametrize("method", METHODS)
def test_what_has_the_rank_is_exact_in_onnxruntime(method: str, window: dict[str, str]) -> None:
    kernel = tuple(int(size) for size in window["kernel"].split(", "))
    graph = graph_of(low_rank(method, kernel), **window)
    after, report = run(DecomposeConv(method=method, must_pay=True), graph)  # type: ignore[arg-type]
    if report.skips:  # Strides: the first step multiplies at each position of the input.
        assert "counted" in report.skips[0].reason and "strides" in window["attrs"]
        after, report = run(DecomposeConv(method=method, ratio=0.2), graph)  # type: ignore[arg-type]
    assert report.rewrites == 1
    x = np.random.default_rng(3).standard_normal((2, 6, 11, 12)).astype(np.float32)
    wanted = evaluate(graph, {"x": x})["y"]
    for got in (ort.Evaluator()(after, {"x": x})["y"], evaluate(after, {"x": x})["y"]):
        # Some products of f32 in a row; CP's sweeps stop at changes of 1e-8.
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=2e-4 * np.abs(wanted).max())
    assert {n.scope for n in after.nodes} == {"stem"}


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("method", METHODS)
def test_the_chain_has_at_most_its_share_of_the_weights(method: str, ratio: float) -> None:
    graph = graph_of()
    after, report = run(DecomposeConv(method=method, ratio=ratio), graph)  # type: ignore[arg-type]
    weights = [n.inputs[1].numpy().size for n in after.nodes]  # type: ignore[union-attr]
    assert len(weights) == (3 if method == "tucker" else 4)
    # Ranks are whole numbers: what is left out of the share is less than some ranks more would take.
    assert 0.4 * ratio < sum(weights) / (8 * 6 * 9) <= ratio
    assert f"{sum(weights) / (8 * 6 * 9):.2f} of its weights" in report.notes[0].method
    error = report.notes[0].error
    x = np.random.default_rng(0).standard_normal((4, 6, 11, 12)).astype(np.float32)
    got, wanted = (evaluate(g, {"x": x})["y"] for g in (after, graph))
    bias = graph.constants["b"].numpy()[:, None, None]
    # White inputs lose what the weight loses, as far as some hundred thousand of them are enough.
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted - bias) == pytest.approx(
        error, rel=0.1
    )


def test_pointwise_is_for_the_tensor_train_alone() -> None:
    window = {"kernel": "1, 1", "sizes": "11, 12", "attrs": ""}
    graph = graph_of(low_rank("tucker", (1, 1)), **window)
    for method in ("tucker", "cp"):
        _, report = run(DecomposeConv(method=method), graph)  # type: ignore[arg-type]
        assert [skip.reason for skip in report.skips] == [
            "its kernel is 1x1, which only tensor-train decomposes"
        ]
    after, _ = run(DecomposeConv(method="tensor-train"), graph)
    assert [n.inputs[1].tensor.shape for n in after.nodes] == [(1, 6, 1, 1), (8, 1, 1, 1)]  # type: ignore[union-attr]
    x = np.random.default_rng(1).standard_normal((1, 6, 11, 12)).astype(np.float32)
    got, wanted = (ort.Evaluator()(g, {"x": x})["y"] for g in (after, graph))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_in_one_dimension() -> None:
    text = """graph main(%x: f32[batch, 6, 20]) -> (y = %y) {
      @w: f32[8, 6, 5] = dense normal(1)
      %y: f32[batch, 8, 16] = Conv(%x, @w)
    }"""
    graph = parse(text, TABLE)
    for method in METHODS:
        after, _ = run(DecomposeConv(method=method), graph)  # type: ignore[arg-type]
        assert [n.op for n in after.nodes] == ["Conv"] * 3
        assert after.signature() == graph.signature()


@pytest.mark.parametrize(
    ("weight", "inner", "attrs", "reason"),
    [
        (np.full((8, 6, 3, 3), np.inf), 6, "", "@low contains NaN or infinity"),
        (np.zeros((8, 6, 3, 3)), 6, "", "@low is zero"),
        (
            np.ones((8, 3, 3, 3)),
            3,
            "group = 2",
            "it is a grouped convolution",
        ),
    ],
    ids=["infinite", "zero", "grouped"],
)
def test_refusals(weight: np.ndarray, inner: int, attrs: str, reason: str) -> None:
    after, report = run(DecomposeConv(), graph_of(weight, inner=inner, attrs=attrs))
    assert [skip.reason for skip in report.skips] == [reason]
    assert len(after) == 1


def test_what_would_not_pay_is_refused_with_the_numbers() -> None:
    class Slower:
        """The chain takes longer at the larger size only."""

        sizes = ({"batch": 1}, {"batch": 8})

        def __call__(self, graph: Graph, feed: Any) -> float:
            return len(graph) if len(feed["x"]) == 8 else 1.5 - 0.1 * len(graph)

    _, report = run(DecomposeConv(), graph_of(), latency=Slower())
    (skip,) = report.skips
    assert skip.method == "tucker of 8x6x3x3 in 3 steps, 0.45 of its weights"
    measured = "3.000 ms against 1.000 ms measured for the dense layer on f32[8, 6, 11, 12]"
    assert skip.reason == measured
    after, _ = run(DecomposeConv(must_pay=False), graph_of(), latency=Slower())
    assert len(after) == 3


def test_options_that_cannot_be() -> None:
    for ratio in (0, 1, -0.5, float("nan")):
        with pytest.raises(InvalidOption, match="is not between 0 and 1"):
            DecomposeConv(ratio=ratio)
    with pytest.raises(InvalidOption, match="no layer's scope matches 'body'; there are stem"):
        run(DecomposeConv(scopes=("body",)), graph_of())


def test_without_tensorly_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("tensorly"):
            raise ModuleNotFoundError("No module named 'tensorly'", name="tensorly")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(Unsupported, match=r"pip install 'tersor\[tensor\]'"):
        run(DecomposeConv(), graph_of())
