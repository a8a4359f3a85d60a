"""Ops that draw numbers: shapes, types and moments, and that nothing takes two draws for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.ir import DType, Graph, TensorType
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate

N = 20_000
X = np.full((N,), 0.25, np.float32)


def drawing(op: str, attrs: dict[str, Any]) -> Graph:
    graph = TABLE.graph()
    takes_shape = op in ("RandomNormal", "RandomUniform")
    operands = [] if takes_shape else [graph.add_input("x", TensorType(DType.F32, (N,)))]
    graph.set_outputs([graph.emit(op, operands, attrs)], ["y"])
    return graph


# Mean and deviation of each. With 20,000 numbers the mean is off by more than 5 of its own standard
# deviations (deviation / 141) less often than once in a million runs.
CASES: list[tuple[str, dict[str, Any], float, float]] = [
    ("RandomNormal", {"shape": (N,), "mean": 2.0, "scale": 3.0}, 2.0, 3.0),
    ("RandomUniform", {"shape": (N,), "low": -1.0, "high": 3.0}, 1.0, 4 / 12**0.5),
    ("RandomNormalLike", {"mean": -1.0, "scale": 0.5}, -1.0, 0.5),
    ("RandomUniformLike", {"low": 0.0, "high": 1.0}, 0.5, 12**-0.5),
    ("Bernoulli", {}, 0.25, (0.25 * 0.75) ** 0.5),
]


@pytest.mark.parametrize(("op", "attrs", "mean", "deviation"), CASES, ids=[c[0] for c in CASES])
def test_draws_have_the_distribution(
    op: str, attrs: dict[str, Any], mean: float, deviation: float
) -> None:
    graph = drawing(op, attrs)
    drawn = evaluate(graph, {"x": X})["y"]
    assert graph.outputs[0].tensor == TensorType(DType.F32, (N,))
    assert drawn.dtype == np.float32 and drawn.shape == (N,)
    assert abs(drawn.mean() - mean) < 5 * deviation / N**0.5
    assert abs(drawn.std() - deviation) < 0.05 * deviation


@pytest.mark.parametrize(("op", "attrs"), [c[:2] for c in CASES], ids=[c[0] for c in CASES])
def test_a_seed_repeats_a_draw_and_none_does_not(op: str, attrs: dict[str, Any]) -> None:
    free, seeded = drawing(op, attrs), drawing(op, {**attrs, "seed": 3.0})
    assert (evaluate(free, {"x": X})["y"] != evaluate(free, {"x": X})["y"]).any()
    first, second = (evaluate(seeded, {"x": X})["y"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_multinomial_draws_by_log_probabilities() -> None:
    graph = TABLE.graph()
    x = graph.add_input("x", TensorType(DType.F32, (1, 3)))
    graph.set_outputs([graph.emit("Multinomial", [x], {"sample_size": N, "dtype": 7})], ["y"])
    chances = np.array([[0.2, 0.0, 0.8]], np.float32)
    with np.errstate(divide="ignore"):
        drawn = evaluate(graph, {"x": np.log(chances)})["y"]
    assert drawn.dtype == np.int64 and drawn.shape == (1, N)
    assert not (drawn == 1).any()
    assert abs((drawn == 2).mean() - 0.8) < 5 * (0.8 * 0.2 / N) ** 0.5


@pytest.mark.parametrize("op", [c[0] for c in CASES] + ["Multinomial"])
def test_rows_say_that_they_draw(op: str) -> None:
    row = TABLE.get(op)
    assert row is not None and not row.deterministic
