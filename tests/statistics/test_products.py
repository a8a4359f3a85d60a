"""Rows times a matrix, against what ONNX Runtime computes, and where there is no such product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.backends import ort
from tersor.ir import Affine, Graph, Node, parse
from tersor.ops import TABLE, Weight
from tersor.ops.evaluate import evaluate
from tersor.ops.samples import Case, cases, feeds, one_node
from tersor.ops.window import window
from tersor.statistics import observing
from tersor.statistics.gram import grams_of_rows
from tersor.statistics.observing import Rows
from tersor.statistics.products import (
    LARGEST,
    along_inputs,
    columns_at,
    linear_weight,
    matrices,
    no_rows,
    output_axis,
    products,
    rows_of,
    set_matrices,
    unfit,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # f32 sums of some dozen products in another order

# (operand [batch, channels, positions…], kernel [out, channels, sizes…], attributes)
WINDOWS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "text": ((2, 5, 11), (4, 5, 3), {}),
    "text, strides and uneven pads": ((2, 3, 10), (4, 3, 4), {"strides": [3], "pads": [2, 1]}),
    "text, dilated": ((3, 2, 12), (2, 2, 3), {"dilations": [4], "pads": [1, 3]}),
    "one place": ((2, 6, 5, 4), (3, 6, 1, 1), {}),
    "one place, strides": ((2, 6, 5, 4), (3, 6, 1, 1), {"strides": [2, 3]}),
    "image, padded": ((2, 3, 6, 5), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "image, all unequal": (
        (2, 3, 9, 8),
        (4, 3, 2, 3),
        {"strides": [2, 1], "dilations": [3, 2], "pads": [0, 2, 1, 1]},
    ),
    "SAME_UPPER": ((1, 2, 7, 8), (3, 2, 3, 4), {"strides": [2, 3], "auto_pad": "SAME_UPPER"}),
    "SAME_LOWER": ((1, 2, 7, 8), (3, 2, 3, 4), {"strides": [2, 3], "auto_pad": "SAME_LOWER"}),
    "VALID": ((1, 2, 7, 8), (3, 2, 3, 4), {"strides": [2, 1], "auto_pad": "VALID"}),
    "volume": ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), {"pads": [1, 0, 0, 0, 1, 1]}),
}


def conv(x: tuple[int, ...], kernel: tuple[int, ...], attrs: dict[str, Any]) -> Graph:
    told = ", ".join(
        f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in attrs.items()
    )
    out = "?, " * len(x)
    text = f"""graph main(%x: f32{list(x)}) -> (y = %y) {{
  @w: f32{list(kernel)} = dense normal(0)
  @b: f32[{kernel[0]}] = dense normal(1)
  %y: f32[{out[:-2]}] = Conv(%x, @w, @b) {{kernel_shape = {list(kernel[2:])}{", " if told else ""}{told}}}
}}"""
    return parse(text, TABLE)


def product_of(graph: Graph, node: Node, weight: Weight, feed: dict[str, np.ndarray]) -> np.ndarray:
    rows = rows_of(node, weight)
    matrix, bias = matrices(node, weight)
    return rows.of(feed[rows.value.name], feed, None) @ matrix + (0 if bias is None else bias)


@pytest.mark.parametrize("name", WINDOWS)
def test_patches_times_the_kernel_are_what_onnxruntime_computes(name: str) -> None:
    x, kernel, attrs = WINDOWS[name]
    graph = conv(x, kernel, attrs)
    (node,) = graph.nodes
    weight = linear_weight(node)
    assert weight is not None
    feed = {"x": np.random.default_rng(2).standard_normal(x).astype(np.float32)}
    want = ort.open_session(ort.build(graph)).run(feed)["y"]
    want = np.moveaxis(want, 1, -1).reshape(-1, kernel[0])
    np.testing.assert_allclose(product_of(graph, node, weight, feed), want, **CLOSE)


def test_windows_of_a_line_by_hand() -> None:
    x = np.array([[[1, 2, 3], [10, 20, 30]]], np.float32)
    padded = window([2], {"pads": [1, 0]})
    # The channels of one place side by side, places of the kernel one after the other.
    every = [[0, 0, 1, 10], [1, 10, 2, 20], [2, 20, 3, 30]]
    np.testing.assert_array_equal(padded.patches(x, np.arange(3)), every)
    np.testing.assert_array_equal(padded.patches(x, np.array([2, 0])), [every[2], every[0]])
    assert window([5], {}).patches(x, np.arange(0)).shape == (0, 10)


FITTED = ("MatMul", "Gemm", "tersor.Linear", "Conv")


@pytest.mark.parametrize(
    "case", [c for c in cases() if c.row.op in FITTED], ids=lambda case: case.name
)
def test_every_sample_of_a_layer_that_is_a_product_is_one(case: Case) -> None:
    """Weights become constants that were none: what is told is of the operands' shapes."""
    held = [i for i, a in enumerate(case.sample.inputs) if a is not None and i > 0]
    sample = type(case.sample)(case.sample.inputs, case.sample.attrs, frozenset(held))
    (node,) = one_node(case.row.op, sample).nodes
    weight = linear_weight(node)
    if weight is None:
        assert case.name in {"MatMul-2", "MatMul-4", "Gemm-1", "Conv-2", "Conv-3"}
        return
    if node.attrs.get("activation", "none") != "none":
        return
    graph = node.graph
    assert graph is not None
    got = product_of(graph, node, weight, feeds(sample))
    want = next(iter(evaluate(graph, feeds(sample)).values()))
    if case.row.op == "Gemm" and sample.inputs[2:]:
        want = (
            want - sample.inputs[2]
        )  # Gemm's own bias may be a matrix, and is none of the product.
    axis = 1 if case.row.op == "Conv" else -1
    np.testing.assert_allclose(got, np.moveaxis(want, axis, -1).reshape(got.shape), **CLOSE)


# -- numbers in and out ----------------------------------------------------------------------------

RECURRENT = """graph main(%x: f32[s, n, 4]) -> (y = %y) {{
  @w: f32[{directions}, {rows}, 4] = dense normal(0)
  @r: f32[{directions}, {rows}, 3] = dense normal(1)
  @b: f32[{directions}, {both}] = dense normal(2)
  %y: f32[s, {directions}, n, 3], %h: f32[{directions}, n, 3] = {op}(%x, @w, @r{bias}) {{direction = "{direction}", hidden_size = 3}}
}}"""


def recurrent(op: str, directions: int = 1, bias: str = ", @b") -> Graph:
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * 3
    text = RECURRENT.format(
        op=op, directions=directions, rows=rows, both=2 * rows, bias=bias,
        direction="bidirectional" if directions == 2 else "forward",
    )  # fmt: skip
    if not bias:
        text = "\n".join(line for line in text.splitlines() if "@b:" not in line)
    return parse(text, TABLE)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [", @b", ""])
def test_a_product_that_is_moved_between_matrix_and_bias_leaves_the_results(
    op: str, directions: int, bias: str
) -> None:
    """x W^T + b = (x - d) W^T + (b + d W^T): on x - d the layer with the other bias is the same."""
    graph = recurrent(op, directions, bias)
    (node,) = graph.nodes
    weight = linear_weight(node)
    assert weight is not None
    rng = np.random.default_rng(3)
    x, shift = rng.standard_normal((6, 2, 4)).astype("f"), rng.standard_normal(4).astype("f")
    want = evaluate(graph, {"x": x})["y"]
    matrix, had = matrices(node, weight)
    assert (had is None) is (not bias)
    new = (0 if had is None else had) + shift @ matrix
    made = set_matrices(node, weight, matrix, new)
    assert (made is not None) is (not bias)
    np.testing.assert_allclose(evaluate(graph, {"x": x - shift})["y"], want, rtol=1e-4, atol=1e-5)
    back = matrices(node, weight)[1]
    assert back is not None
    np.testing.assert_allclose(back, new, rtol=1e-6)


def test_the_states_of_each_direction_have_a_matrix_of_their_own() -> None:
    graph = recurrent("GRU", 2)
    (node,) = graph.nodes
    w, r, b = (graph.constants[name].numpy().copy() for name in "wrb")
    read, *states = products(node)
    assert [unfit(node, s) for s in states] == ["", ""]
    y = np.random.default_rng(7).standard_normal((5, 2, 3, 3)).astype(np.float32)
    for i, weight in enumerate(states):
        rows = rows_of(node, weight)
        assert rows.value is node.outputs[0]
        np.testing.assert_array_equal(rows.of(y, {}, None), y[:, i].reshape(-1, 3))
        matrix, bias = matrices(node, weight)
        np.testing.assert_array_equal(matrix, r[i].T)
        np.testing.assert_array_equal(bias, b[i, 9:])
        left = np.array([1, 4, 7])
        np.testing.assert_array_equal(columns_at(node, weight, left), left)
    # The second direction's are set: nothing else changes.
    assert set_matrices(node, states[1], np.zeros((3, 9)), np.arange(9.0)) is None
    r[1], b[1, 9:] = 0, np.arange(9)
    for name, want in (("w", w), ("r", r), ("b", b)):
        np.testing.assert_array_equal(graph.constants[name].numpy(), want)
    # All of them at once, which is what weights are pruned by: states of both directions are rows.
    every = next(weight for weight in TABLE.weights(node) if weight.operand == 2)
    np.testing.assert_array_equal(rows_of(node, every).of(y, {}, None), y.reshape(-1, 3))
    assert matrices(node, read)[0].shape == (4, 18)


def test_new_numbers_of_a_convolution_with_and_without_a_bias() -> None:
    for bias in (", @b", ""):
        graph = conv((2, 3, 6), (4, 3, 2), {})
        (node,) = graph.nodes
        if not bias:
            graph.set_input(node, 2, None)
        weight = linear_weight(node)
        assert weight is not None
        matrix, _ = matrices(node, weight)
        made = set_matrices(node, weight, 2 * matrix, np.arange(4.0))
        assert (made is not None) is (not bias)
        feed = {"x": np.random.default_rng(4).standard_normal((2, 3, 6)).astype(np.float32)}
        want = rows_of(node, weight).of(feed["x"], feed, None) @ (2 * matrix) + np.arange(4.0)
        got = np.moveaxis(evaluate(graph, feed)["y"], 1, -1).reshape(want.shape)
        np.testing.assert_allclose(got, want, **CLOSE)


def test_axes_of_a_weight_as_rows_and_columns_of_the_matrix() -> None:
    graph = recurrent("GRU", 2)
    (node,) = graph.nodes
    weight = linear_weight(node)
    assert weight is not None
    assert output_axis(node, weight) == (graph.constants["w"], 1)
    left = np.array([0, 5, 8])
    matrix, _ = matrices(node, weight)
    cut = graph.constants["w"].numpy()[:, left].reshape(6, 4).T
    np.testing.assert_array_equal(matrix[:, columns_at(node, weight, left)], cut)

    graph = conv((2, 3, 6, 6), (4, 3, 2, 2), {})
    (node,) = graph.nodes
    weight = linear_weight(node)
    assert weight is not None
    assert output_axis(node, weight) == (graph.constants["w"], 0)
    channels = along_inputs(node, weight, 1, np.array([7, 8, 9]))
    np.testing.assert_array_equal(channels, [7, 8, 9] * 4)
    rows = along_inputs(node, weight, 2, np.array([0, 1]))
    np.testing.assert_array_equal(rows, np.repeat([0, 1], 6))


# -- rows of a model -------------------------------------------------------------------------------


def test_moments_are_those_of_the_patches_of_all_feeds() -> None:
    x, kernel, attrs = WINDOWS["image, padded"]
    graph = conv(x, kernel, attrs)
    (node,) = graph.nodes
    weight = linear_weight(node)
    assert weight is not None
    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal((2, 3, 6, 5)).astype(np.float32) for _ in range(3)]
    rows = rows_of(node, weight)
    assert rows.value is graph.inputs[0]
    (found,) = grams_of_rows(graph, [rows, rows], [{"x": a} for a in arrays], evaluate).values()
    padded = np.pad(np.concatenate(arrays), [(0, 0), (0, 0), (1, 1), (1, 1)]).astype(np.float64)
    patches = np.stack(
        [
            padded[n, :, i : i + 3, j : j + 3].transpose(1, 2, 0).reshape(-1)
            for n in range(6) for i in range(6) for j in range(5)
        ]
    )  # fmt: skip
    assert found.rows == len(patches)
    np.testing.assert_allclose(found.xtx, patches.T @ patches, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.total, patches.sum(axis=0), rtol=1e-10, atol=1e-10)


def test_of_more_windows_than_are_looked_at_the_same_ones_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = conv((2, 2, 30), (2, 2, 3), {})
    (node,) = graph.nodes
    rows = rows_of(node, TABLE.weights(node)[0])
    x = np.arange(120, dtype=np.float32).reshape(2, 2, 30)
    every = rows.of(x, {}, None)
    assert every.shape == (56, 6)
    monkeypatch.setattr(observing, "WINDOWS", 20)
    some = rows.of(x, {}, None)
    assert some.shape == (20, 6)
    np.testing.assert_array_equal(some, rows.of(x, {}, None))
    # Distinct windows, in order: the first number of each tells which it is.
    places = np.searchsorted(every[:, 0], some[:, 0])
    assert (np.diff(places) > 0).all()
    np.testing.assert_array_equal(every[places], some)
    # Windows of one at the same places of the result are the same draw.
    beside = Rows(node.output, window([1], {})).of(
        np.arange(112, dtype=np.float32).reshape(2, 2, 28), {}, None
    )
    np.testing.assert_array_equal(beside[:, 0] % 28, some[:, 0] % 30)


def test_windows_on_padding_are_no_rows() -> None:
    """The mask is of the places of the result: where these are not the operand's, all count."""
    text = """graph main(%x: f32[b, 2, s], %mask: i64[b, s]) -> (y = %y, z = %z, m = %mask) {
  @w: f32[3, 2, 3] = dense normal(0)
  %y: f32[b, 3, s] = Conv(%x, @w) {pads = [1, 1]}
  %z: f32[b, 3, s - 2] = Conv(%x, @w)
}"""
    graph = parse(text, TABLE)
    same, short = (rows_of(n, TABLE.weights(n)[0]) for n in graph.nodes)
    assert (same.mask(graph), short.mask(graph)) == ("mask", None)
    x = np.random.default_rng(6).standard_normal((2, 2, 5)).astype(np.float32)
    feed = {"x": x, "mask": np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])}
    every = same.of(x, feed, None)
    np.testing.assert_array_equal(same.of(x, feed, "mask"), every[[0, 1, 2, 5]])
    assert len(short.of(x, feed, None)) == 6
    assert len(same.of(x[:0], {"mask": feed["mask"][:0]}, "mask")) == 0


# -- no product ------------------------------------------------------------------------------------

REFUSED = """graph main(%x: f32[2, 4, 6], %s: f32[5, 2, 4], %v: f32[4], %c: bool[]) -> (a = %a, b = %b, d = %d, e = %e, f = %f, g = %g) {
  @w: f32[4, 2, 3] = dense normal(0)
  @k: f32[4, 4, 3] = dense normal(1)
  @i: f32[1, 3, 4] = dense normal(2)
  @r: f32[1, 3, 3] = dense normal(3)
  @m: f32[2, 6, 3] = dense normal(4)
  %a: f32[2, 4, 4] = Conv(%x, @w) {group = 2}
  %b: f32[2, 4, 8] = ConvTranspose(%x, @k)
  %d: f32[5, 1, 2, 3] = RNN(%s, @i, @r) {hidden_size = 3}
  %e: f32[2, 4, 4] = Conv(%x, @k, %v)
  %f: f32[2, 4, 3] = MatMul(%x, @m)
  %g: f32[2, 4, 4] = If(%c) {else_branch = graph no() -> (h = %h) {
    %h: f32[2, 4, 4] = Conv(%x, @k)
  }, then_branch = graph yes() -> (j = %j) {
    %j: f32[2, 4, 4] = Neg(%e)
  }}
}"""


def test_where_there_is_no_product_the_reason_is_told() -> None:
    graph = parse(REFUSED, TABLE)
    told = {n.output.name: [unfit(n, w) for w in TABLE.weights(n)] for n in graph.walk()}
    none = "{} does not multiply rows of an operand by @{} as one matrix"
    assert told["a"] == [none.format("Conv", "w")]
    assert told["b"] == [none.format("ConvTranspose", "k")]
    assert told["d"] == ["", ""]
    assert told["e"] == ["its bias is not a constant"]
    assert told["f"] == ["its weight is a stack of matrices"]
    assert told["h"] == ["it is in a subgraph, which calibration does not observe"]
    found = {n.output.name: linear_weight(n) for n in graph.walk()}
    assert [name for name, weight in found.items() if weight is not None] == ["d"]


def test_windows_that_are_too_large_for_moments() -> None:
    for channels, reason in (
        (LARGEST // 9, ""),
        (
            LARGEST // 9 + 1,
            "its window has 4,617 inputs, above the limit of 4,608 for second moments",
        ),
    ):
        graph = conv((1, channels, 4, 4), (1, channels, 3, 3), {})
        (node,) = graph.nodes
        assert no_rows(node, TABLE.weights(node)[0]) == reason
        assert (linear_weight(node) is None) is bool(reason)


def test_weights_that_are_not_plain_floats_are_not_fitted() -> None:
    graph = conv((1, 2, 4), (3, 2, 3), {})
    (node,) = graph.nodes
    (weight,) = TABLE.weights(node)
    held = graph.constants["w"]
    graph.set_encoding(
        held, Affine(np.ones((3, 2, 3), np.int8), np.ones(3, "f"), np.zeros(3, np.int8), axis=0)
    )
    assert unfit(node, weight) == "@w is affine(i8, axis=0)"
    assert no_rows(node, weight) == ""
