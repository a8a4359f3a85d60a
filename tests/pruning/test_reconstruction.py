"""Least squares of layers against numpy's own, and what layers are fitted to."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.ir import Dense, Graph, parse
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.pruning.reconstruction import Moments, moments, node_producing, summand
from tersor.statistics.products import linear_weight, matrices, products, set_matrices

ROWS, K, N = 60, 7, 4
CLOSE = {"rtol": 1e-7, "atol": 1e-8}  # f64; nothing is worse conditioned than 1e4.
RECKONED = {"rtol": 1e-3, "atol": 1e-4}  # Rows and targets come from f32 products of some 10 terms.


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows x' with a mean, targets that are not quite linear in them, W)"""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS, K)) @ rng.standard_normal((K, K)) + rng.standard_normal(K)
    before = rng.standard_normal((K, N))
    return x, x @ before + rng.standard_normal((ROWS, N)) + 3, before


def of(x: np.ndarray, t: np.ndarray, weights: np.ndarray | None = None) -> Moments:
    rows = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    if weights is not None:
        rows, t = rows * weights[:, None], t * weights[:, None]
    return Moments(rows.T @ rows, rows.T @ t)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kept", [list(range(K)), [0, 2, 3, 6], [5]])
def test_without_a_ridge_it_is_lstsq_of_the_inputs_that_are_kept(
    kept: list[int], biased: bool
) -> None:
    x, t, before = problem()
    weight, bias = of(x, t).solve(before, np.array(kept), 1e-14, biased=biased)
    rows = x[:, kept]
    if biased:
        rows = np.concatenate([rows, np.ones((ROWS, 1))], axis=1)
    want = np.linalg.lstsq(rows, t, rcond=None)[0]
    np.testing.assert_allclose(weight, want[: len(kept)], **CLOSE)
    np.testing.assert_allclose(bias, want[-1] if biased else np.zeros(N), **CLOSE)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_ridge_pulls_toward_what_the_weights_were(ridge: float) -> None:
    x, t, before = problem()
    kept = np.array([0, 1, 4, 6])
    weight, bias = of(x, t).solve(before, kept, ridge, biased=True)
    centred, target = x - x.mean(axis=0), t - t.mean(axis=0)
    pull = np.sqrt(ridge * np.square(centred).sum() / K)
    rows = np.concatenate([centred[:, kept], pull * np.eye(len(kept))])
    want = np.linalg.lstsq(rows, np.concatenate([target, pull * before[kept]]), rcond=None)[0]
    np.testing.assert_allclose(weight, want, **CLOSE)
    np.testing.assert_allclose(bias, t.mean(axis=0) - x.mean(axis=0)[kept] @ want, **CLOSE)


def test_a_large_ridge_and_inputs_that_are_always_zero_leave_the_weights_as_they_were() -> None:
    x, t, before = problem()
    every = np.arange(K)
    weight, _ = of(x, t).solve(before, every, 1e12, biased=True)
    np.testing.assert_allclose(weight, before, rtol=1e-6)
    x[:, 2] = 0
    weight, _ = of(x, t).solve(before, every, 0.01, biased=True)
    np.testing.assert_allclose(weight[2], before[2], **CLOSE)


def test_rows_count_by_their_weights() -> None:
    x, t, before = problem()
    weights = np.random.default_rng(1).uniform(0.1, 3, ROWS)
    kept = np.array([1, 3, 5])
    weight, bias = of(x, t, weights).solve(before, kept, 1e-14, biased=True)
    rows = np.concatenate([x[:, kept], np.ones((ROWS, 1))], axis=1)
    want = np.linalg.lstsq(rows * weights[:, None], t * weights[:, None], rcond=None)[0]
    np.testing.assert_allclose(weight, want[:-1], **CLOSE)
    np.testing.assert_allclose(bias, want[-1], **CLOSE)


def test_whether_moments_are_finite() -> None:
    x, t, _ = problem()
    assert of(x, t).finite
    t[3, 1] = np.nan
    assert not of(x, t).finite


# -- what a layer is fitted to ---------------------------------------------------------------------

# The layer %y reads %h and is added to %r, both of which the cut model may have otherwise.
BESIDE = """graph main(%x: f32[n, 5]) -> (z = %z) {{
  @w1: f32[5, 6] = dense normal(0)
  @w2: f32[6, 3] = dense normal(1)
  @w3: f32[5, 3] = dense normal(2)
  @b: f32[3] = dense normal(3)
  @g: f32[3] = dense [1.0, 2.0, 0.5]
  @c: f32[3] = dense [0.0, 0.5, 1.0]
  %h: f32[n, 6] = tersor.Linear(%x, @w1) {{activation = "relu"}}
  %r: f32[n, 3] = tersor.Linear(%x, @w3) {{activation = "none"}}
  %y: f32[n, 3] = tersor.Linear(%h, @w2, @b) {{activation = "{activation}"}}
  %z: f32[n, 3] = {sum}
}}"""
NORM = "tersor.AddLayerNormalization(%y, %r, @g, @c) {axis = -1, epsilon = 0.00001}"


def pair(sum: str, activation: str = "none") -> tuple[Graph, Graph, np.ndarray]:
    """(original, a model that has lost something before and beside the layer, inputs)"""
    original = parse(BESIDE.format(sum=sum, activation=activation), TABLE)
    other, rng = original.copy(), np.random.default_rng(4)
    for name in ("w1", "w3"):
        held = other.constants[name]
        noise = 0.3 * rng.standard_normal(held.tensor.shape).astype(np.float32)
        other.set_encoding(held, Dense(held.numpy() + noise))
    return original, other, rng.standard_normal((80, 5)).astype(np.float32)


def values(graph: Graph, x: np.ndarray) -> dict[str, np.ndarray]:
    copy = graph.copy()
    held = [v for v in copy.values() if v.producer is not None]
    copy.set_outputs(held, [v.name for v in held])
    return {k: np.asarray(v, np.float64) for k, v in evaluate(copy, {"x": x}).items()}


@pytest.mark.parametrize("sum", ["Add(%y, %r)", "Add(%r, %y)", NORM])
def test_a_layer_makes_up_for_what_is_lost_before_and_beside_it(sum: str) -> None:
    original, other, x = pair(sum)
    seen = moments(original, other, "y", [{"x": x[:30]}, {"x": x[30:]}], evaluate)
    assert seen is not None
    old, new = values(original, x), values(other, x)
    target = old["y"] + old["r"] - new["r"]
    scale = np.ones((80, 1))
    if sum == NORM:
        scale = 1 / (old["y"] + old["r"]).std(axis=1, keepdims=True)
    kept = np.array([0, 1, 3, 5])
    weight, bias = seen.solve(np.zeros((6, 3)), kept, 1e-12, biased=True)
    rows = np.concatenate([new["h"][:, kept], np.ones((80, 1))], axis=1)
    want = np.linalg.lstsq(rows * scale, target * scale, rcond=None)[0]
    np.testing.assert_allclose(np.concatenate([weight, bias[None]]), want, **RECKONED)


def test_behind_an_activation_a_layer_makes_up_for_nothing_beside_it() -> None:
    """The sum is of what the activation makes, the fit of what goes in."""
    original, other, x = pair("Add(%y, %r)", "relu")
    assert summand(node_producing(original, "y")) is None
    seen = moments(original, other, "y", [{"x": x}], evaluate)
    assert seen is not None
    matrix, b = matrices(
        node_producing(original, "y"), linear_weight(node_producing(original, "y"))
    )  # type: ignore[arg-type]
    target = values(original, x)["h"] @ matrix + b
    rows = np.concatenate([values(other, x)["h"], np.ones((80, 1))], axis=1)
    weight, bias = seen.solve(matrix, np.arange(6), 1e-12, biased=True)
    want = np.linalg.lstsq(rows, target, rcond=None)[0]
    np.testing.assert_allclose(np.concatenate([weight, bias[None]]), want, **RECKONED)


def test_targets_are_those_of_the_results_that_are_left() -> None:
    original, _, x = pair("Add(%y, %r)")
    whole = moments(original, original, "y", [{"x": x}], evaluate)
    assert whole is not None
    cut = parse(
        BESIDE.format(sum="Add(%y, %r)", activation="none")
        .replace(", 3]", ", 2]")
        .replace("f32[3]", "f32[2]")
        .replace("[1.0, 2.0, 0.5]", "[1.0, 0.5]")
        .replace("[0.0, 0.5, 1.0]", "[0.0, 1.0]"),
        TABLE,
    )
    for name in ("w1", "w2", "w3", "b"):
        numbers = original.constants[name].numpy()
        cut.set_encoding(cut.constants[name], Dense(numbers if name == "w1" else numbers[..., [0, 2]]))  # fmt: skip
    seen = moments(original, cut, "y", [{"x": x}], evaluate, np.array([0, 2]))
    assert seen is not None
    np.testing.assert_allclose(seen.xtt, whole.xtt[:, [0, 2]], rtol=1e-4, atol=1e-3)


def test_padding_is_no_row_and_nothing_but_padding_gives_none() -> None:
    text = """graph main(%ids: i64[b, s], %mask: i64[b, s]) -> (y = %y, m = %mask) {
  @t: f32[9, 4] = dense normal(0)
  @w: f32[4, 3] = dense normal(1)
  %x: f32[b, s, 4] = Gather(@t, %ids) {axis = 0}
  %y: f32[b, s, 3] = tersor.Linear(%x, @w) {activation = "none"}
}"""
    graph = parse(text, TABLE)
    ids = np.arange(8).reshape(2, 4)
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]])
    seen = moments(graph, graph, "y", [{"ids": ids, "mask": mask}], evaluate)
    assert seen is not None
    rows = graph.constants["t"].numpy()[[0, 1, 2, 4]].astype(np.float64)
    np.testing.assert_allclose(seen.xtx[:-1, :-1], rows.T @ rows, **RECKONED)
    assert seen.xtx[-1, -1] == 4
    assert moments(graph, graph, "y", [{"ids": ids, "mask": 0 * mask}], evaluate) is None
    assert moments(graph, graph, "y", [], evaluate) is None


# -- layers ----------------------------------------------------------------------------------------


def test_new_numbers_in_every_way_that_a_layer_holds_them() -> None:
    text = """graph main(%x: f32[n, 3]) -> (a = %a, b = %b, c = %c, d = %d) {
  @w: f32[3, 1] = dense normal(0)
  @v: f32[3, 1] = dense normal(1)
  @u: f32[3, 2] = dense normal(2)
  @t: f32[2, 3] = dense normal(3)
  @bias: f32[1] = dense [0.5]
  %a: f32[n, 1] = tersor.Linear(%x, @w, @bias) {activation = "none"}
  %b: f32[n, 1] = tersor.Linear(%x, @v, @bias) {activation = "none"}
  %c: f32[n, 2] = tersor.Linear(%x, @u) {activation = "none"}
  %d: f32[n, 2] = Gemm(%x, @t) {transB = 1}
}"""
    graph = parse(text, TABLE)
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    untouched = evaluate(graph, {"x": x})["b"]
    for name, made in (("a", True), ("c", True), ("d", False)):
        node = node_producing(graph, name)
        weight = linear_weight(node)
        assert weight is not None
        matrix, _ = matrices(node, weight)
        bias = np.arange(1.0, 1 + matrix.shape[1])
        assert (set_matrices(node, weight, 2 * matrix, bias) is not None) is made
        want = 2 * x @ matrix + (bias if weight.bias is not None else 0)
        np.testing.assert_allclose(evaluate(graph, {"x": x})[name], want, rtol=1e-5, atol=1e-6)
    # The bias was one constant of two layers: the other keeps it.
    np.testing.assert_array_equal(evaluate(graph, {"x": x})["b"], untouched)
    node = node_producing(graph, "a")
    weight = linear_weight(node)
    assert weight is not None
    assert set_matrices(node, weight, matrices(node, weight)[0], np.ones(1)) is None


def test_what_is_no_linear_layer() -> None:
    text = """graph main(%x: f32[3, 4], %i: i64[2]) -> (a = %a, b = %b, c = %c) {
  @w: f32[2, 3] = dense normal(0)
  @t: f32[5, 4] = dense normal(1)
  %a: f32[2, 4] = MatMul(@w, %x)
  %b: f32[3, 3] = Gemm(%x, %x) {transB = 1}
  %c: f32[2, 4] = Gather(@t, %i) {axis = 0}
}"""
    assert [linear_weight(n) for n in parse(text, TABLE).nodes] == [None] * 3


# -- convolutions and recurrent layers --------------------------------------------------------------

CONV = """graph main(%x: f32[n, 3, 6, 5]) -> (z = %z) {{
  @w1: f32[4, 3, 1, 1] = dense normal(0)
  @w2: f32[2, 4, 3, 2] = dense normal(1)
  @w3: f32[2, 3, 3, 2] = dense normal(2)
  @b: f32[2] = dense normal(3)
  %h: f32[n, 4, 6, 5] = Conv(%x, @w1)
  %r: f32[n, 2, 3, 2] = Conv(%x, @w3) {{pads = [1, 0, 1, 0], strides = [2, 2]}}
  %y: f32[n, 2, 3, 2] = Conv(%h, @w2, @b) {{pads = [1, 0, 1, 0], strides = [2, 2]}}
  %z: f32[n, 2, 3, 2] = {sum}
}}"""


def patches(x: np.ndarray) -> np.ndarray:
    """Of a 3x2 kernel in steps of 2, with a line of padding above and below."""
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (0, 0)])
    found = [
        x[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 2].transpose(1, 2, 0).reshape(-1)
        for n in range(len(x)) for i in range(3) for j in range(2)
    ]  # fmt: skip
    return np.stack(found)


def lines(x: np.ndarray) -> np.ndarray:
    """[batch, channels, …] -> [positions, channels]"""
    return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])


@pytest.mark.parametrize("sum", ["Add(%y, %r)", "Relu(%y)"])
def test_a_convolution_makes_up_for_what_is_lost_before_and_beside_it(sum: str) -> None:
    original = parse(CONV.format(sum=sum), TABLE)
    other, rng = original.copy(), np.random.default_rng(5)
    for name in ("w1", "w3"):
        held = other.constants[name]
        noise = 0.3 * rng.standard_normal(held.tensor.shape).astype(np.float32)
        other.set_encoding(held, Dense(held.numpy() + noise))
    x = rng.standard_normal((12, 3, 6, 5)).astype(np.float32)
    seen = moments(original, other, "y", [{"x": x[:5]}, {"x": x[5:]}], evaluate)
    assert seen is not None
    assert seen.xtx[-1, -1] == 12 * 6
    old, new = values(original, x), values(other, x)
    target = lines(old["y"])
    if sum.startswith("Add"):
        target = target + lines(old["r"]) - lines(new["r"])
    kept = np.array([0, 1, 3, 7, 9, 10, 15, 22])
    weight, bias = seen.solve(np.zeros((24, 2)), kept, 1e-12, biased=True)
    rows = np.concatenate([patches(new["h"])[:, kept], np.ones((72, 1))], axis=1)
    want = np.linalg.lstsq(rows, target, rcond=None)[0]
    np.testing.assert_allclose(np.concatenate([weight, bias[None]]), want, **RECKONED)


def test_a_norm_over_positions_is_none_of_a_convolutions_rows() -> None:
    text = """graph main(%x: f32[2, 3, 5], %r: f32[2, 4, 3]) -> (z = %z) {
  @w: f32[4, 3, 3] = dense normal(0)
  @g: f32[3] = dense [1.0, 1.0, 1.0]
  %y: f32[2, 4, 3] = Conv(%x, @w)
  %z: f32[2, 4, 3] = tersor.AddLayerNormalization(%y, %r, @g, @g) {axis = -1, epsilon = 0.00001}
}"""
    assert summand(node_producing(parse(text, TABLE), "y")) is None


LSTM = """graph main(%x: f32[s, n, 5]) -> (y = %y) {
  @e: f32[5, 4] = dense normal(0)
  @w: f32[2, 12, 4] = dense normal(1)
  @r: f32[2, 12, 3] = dense normal(2)
  @b: f32[2, 24] = dense normal(3)
  %h: f32[s, n, 4] = tersor.Linear(%x, @e) {activation = "none"}
  %y: f32[s, 2, n, 3] = LSTM(%h, @w, @r, @b) {direction = "bidirectional", hidden_size = 3}
}"""


def test_a_recurrent_layer_is_fitted_to_what_its_gates_go_by_of_the_outputs_left() -> None:
    original = parse(LSTM, TABLE)
    other, rng = original.copy(), np.random.default_rng(6)
    other.set_encoding(other.constants["e"], Dense(rng.standard_normal((5, 4)).astype(np.float32)))
    x = rng.standard_normal((7, 6, 5)).astype(np.float32)
    left = np.array([0, 2, 3, 5, 6, 8, 9, 11])  # Without hidden unit 1, in four gates.
    seen = moments(original, other, "y", [{"x": x}], evaluate, left)
    assert seen is not None
    h = (x.reshape(-1, 5) @ original.constants["e"].numpy()).astype(np.float64)
    w, b = original.constants["w"].numpy(), original.constants["b"].numpy()
    target = np.concatenate([h @ w[d, left].T + b[d, :12][left] for d in (0, 1)], axis=1)
    rows = x.reshape(-1, 5) @ other.constants["e"].numpy()
    rows = np.concatenate([rows, np.ones((42, 1))], axis=1)
    weight, bias = seen.solve(np.zeros((4, 16)), np.arange(4), 1e-12, biased=True)
    want = np.linalg.lstsq(rows, target, rcond=None)[0]
    np.testing.assert_allclose(np.concatenate([weight, bias[None]]), want, **RECKONED)


def test_the_states_of_a_recurrent_layer_are_fitted_direction_by_direction() -> None:
    original = parse(LSTM, TABLE)
    other, rng = original.copy(), np.random.default_rng(8)
    other.set_encoding(other.constants["e"], Dense(rng.standard_normal((5, 4)).astype(np.float32)))
    x = rng.standard_normal((7, 30, 5)).astype(np.float32)
    left = np.array([0, 2, 3, 5, 6, 8, 9, 11])
    old, new = values(original, x), values(other, x)
    r, b = original.constants["r"].numpy(), original.constants["b"].numpy()
    _, *states = products(node_producing(original, "y"))
    for i, weight in enumerate(states):
        seen = moments(original, other, "y", [{"x": x}], evaluate, left, weight)
        assert seen is not None
        target = old["y"][:, i].reshape(-1, 3) @ r[i, left].T + b[i, 12:][left]
        rows = np.concatenate([new["y"][:, i].reshape(-1, 3), np.ones((210, 1))], axis=1)
        fitted, bias = seen.solve(np.zeros((3, 8)), np.arange(3), 1e-12, biased=True)
        want = np.linalg.lstsq(rows, target, rcond=None)[0]
        np.testing.assert_allclose(np.concatenate([fitted, bias[None]]), want, **RECKONED)
