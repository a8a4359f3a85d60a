"""The Fisher diagonal against what it is in closed form."""

import numpy as np
import pytest

from tersor.errors import Unsupported
from tersor.ir import parse
from tersor.ops import TABLE
from tersor.ops.fisher import fisher

LAYERS = """graph main(%x: f32[rows, 3]) -> (y = %y) {
  @w: f32[3, 4] = dense normal(1)
  @v: f32[4, 2] = dense normal(2)
  @unread: f32[4, 2] = dense normal(3)
  %h: f32[rows, 4] = tersor.Linear(%x, @w)
  %y: f32[rows, 2] = tersor.Linear(%h, @v)
}"""


def test_of_one_row_it_is_exact_in_the_last_layer() -> None:
    """y = h V, so that d<r, y> / dV_ij = h_i r_j, and r_j^2 = 1: the sign does not matter."""
    graph = parse(LAYERS, TABLE)
    x = np.array([[1.0, -2.0, 0.5]], np.float32)
    h = x @ graph.constants["w"].numpy()
    v, unread = graph.constants["v"], graph.constants["unread"]
    found = fisher(graph, [v, unread], [{"x": x}, {"x": 2 * x}])
    expected = np.repeat(5 * np.square(h.T.astype(np.float64)), 2, axis=1)
    np.testing.assert_allclose(found[v], expected, rtol=1e-5)  # f32 inside
    assert not found[unread].any()


def test_of_several_rows_and_deeper_it_is_so_on_average() -> None:
    """J^T J of y = x W V: the sum over rows and outputs of (x_i V_jo)^2."""
    graph = parse(LAYERS, TABLE)
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    w, v = graph.constants["w"], graph.constants["v"].numpy().astype(np.float64)
    expected = np.outer(np.square(x).sum(axis=0), np.square(v).sum(axis=1))
    draws = 2000
    found = fisher(graph, [w], [{"x": x}] * draws)[w] / draws
    # A mean of 2000 squares of about normal numbers: each within sqrt(2 / 2000) = 3% at one sigma.
    np.testing.assert_allclose(found, expected, rtol=0.15)


def test_an_op_without_an_evaluation_is_named() -> None:
    text = LAYERS.replace("= tersor.Linear(%h, @v)", "= other.Op(%h, @v)")
    graph = parse(text, TABLE)
    with pytest.raises(Unsupported, match=r"other\.Op has no torch evaluation"):
        fisher(graph, [graph.constants["w"]], [{"x": np.ones((1, 3), np.float32)}])
