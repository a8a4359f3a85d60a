"""Einsum as MatMul: the same numbers as numpy's, for every kind of equation, or a reason."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.backends import ort
from tersor.ir import DType, Graph, Sym, TensorType, symbol
from tersor.ops import TABLE
from tersor.passes.canonicalize.einsum_to_matmul import EinsumToMatMul
from tersor.pipeline import Pipeline
from tersor.pipeline.registry import optimization

SIZES = {"b": 2, "h": 3, "q": 4, "k": 5, "t": 4, "d": 6, "n": 2, "v": 7}
OPEN = "bqkt"  # Labels whose sizes are symbols where they can be.


def graph_of(equation: str, constant: bool) -> Graph:
    first, second = equation.partition("->")[0].split(",")
    graph = TABLE.graph()

    def dims(labels: str) -> tuple[int | Sym, ...]:
        return tuple(symbol(c) if c in OPEN else SIZES[c] for c in labels)

    a = graph.add_input("a", TensorType(DType.F32, dims(first)))
    if constant:
        b = graph.constant(numbers(second, 1), "w")
    else:
        b = graph.add_input("b", TensorType(DType.F32, dims(second)))
    graph.set_outputs([graph.emit("Einsum", [a, b], {"equation": equation})], ["y"])
    return graph


def numbers(labels: str, seed: int) -> np.ndarray:
    shape = [SIZES[c] for c in labels]
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(equation: str, constant: bool) -> list[str]:
    """Ops of the rewritten graph, which computes what numpy does."""
    pipeline = Pipeline([EinsumToMatMul()])
    graph = pipeline.run(graph_of(equation, constant))
    first, second = equation.partition("->")[0].split(",")
    feed = {"a": numbers(first, 0), "b": numbers(second, 1)}
    want = np.einsum(equation, *feed.values())
    got = ort.Evaluator()(graph, {k: v for k, v in feed.items() if not (constant and k == "b")})
    # Sums of at most 12 products in another order.
    np.testing.assert_allclose(got["y"], want, rtol=1e-5, atol=1e-5)
    return [node.op for node in graph.nodes]


@pytest.mark.parametrize(
    ("equation", "ops"),
    [
        ("bhqd,bhkd->bhqk", ["Transpose", "MatMul"]),
        ("bhqk,bhkd->bhqd", ["MatMul"]),
        ("bqhd,bkhd->bhqk", ["Transpose", "Transpose", "MatMul"]),
        ("bhqk,bkhd->bqhd", ["Transpose", "MatMul", "Transpose"]),
        ("bkd,bkv->bdv", ["Transpose", "MatMul"]),
        ("bqd,bkd->bkq", ["Transpose", "MatMul", "Transpose"]),
    ],
)
def test_products_of_activations(equation: str, ops: list[str]) -> None:
    assert check(equation, constant=False) == ops


@pytest.mark.parametrize(
    ("equation", "ops"),
    [
        ("btd,dv->btv", ["MatMul"]),
        ("btd,vd->btv", ["MatMul"]),
        ("btd,dnh->btnh", ["MatMul", "Reshape"]),
        ("btd,dnh->bnth", ["MatMul", "Reshape", "Transpose"]),
        ("btnh,nhd->btd", ["Reshape", "MatMul"]),
        ("btnh,dnh->btd", ["Reshape", "MatMul"]),
        ("bnth,nhd->btd", ["Transpose", "Reshape", "MatMul"]),
        ("bdt,dv->btv", ["Transpose", "MatMul"]),
    ],
)
def test_products_with_a_weight(equation: str, ops: list[str]) -> None:
    assert check(equation, constant=True) == ops


def test_an_ellipsis_is_the_axes_it_stands_for() -> None:
    graph = TABLE.graph()
    x = graph.add_input("x", TensorType(DType.F32, (symbol("b"), symbol("t"), 6)))
    w = graph.constant(numbers("dv", 1), "w")
    graph.set_outputs([graph.emit("Einsum", [x, w], {"equation": "...d,dv->...v"})], ["y"])
    made = Pipeline(optimization()).run(graph)
    assert [node.op for node in made.nodes] == ["tersor.Linear"]


@pytest.mark.parametrize(
    ("equation", "constant", "reason"),
    [
        ("btt,td->btd", False, "it takes a diagonal"),
        ("bqd,bkv->bqk", False, "it sums an axis of only one operand"),
        (
            "bqnd,bkv->bqndkv",
            False,
            "its rows, columns or summed labels are not exactly one axis each",
        ),
        (
            "bhd,hdv->bhv",
            True,
            "its constant has batch labels, or no rows, columns or summed labels",
        ),
    ],
)
def test_what_is_no_product_of_matrices_says_why(
    equation: str, constant: bool, reason: str
) -> None:
    pipeline = Pipeline([EinsumToMatMul()])
    graph = pipeline.run(graph_of(equation, constant))
    assert [node.op for node in graph.nodes] == ["Einsum"]
    assert [skip.reason for skip in pipeline.reports[0].skips] == [reason]


def test_what_stretches_stays() -> None:
    graph = TABLE.graph()
    a, b = (
        graph.add_input(name, TensorType(DType.F32, (symbol(name), 4, 6))) for name in ("m", "n")
    )
    graph.set_outputs([graph.emit("Einsum", [a, b], {"equation": "bqd,bkd->bqk"})], ["y"])
    pipeline = Pipeline([EinsumToMatMul()])
    assert [node.op for node in pipeline.run(graph).nodes] == ["Einsum"]
    (skip,) = pipeline.reports[0].skips
    assert skip.reason == "its operands broadcast, or sizes are not known to be equal"
