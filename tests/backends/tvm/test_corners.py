"""Where ops have corners: no elements, numbers that a machine traps on, sizes that only the run tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from contract import assert_agrees, each_its_own, run_in_tvm, static

from tersor.ir import Dim, symbol
from tersor.ops import Sample
from tersor.ops.samples import Dims, feeds, one_node

pytest.importorskip("tvm", reason="the tvm backend is not installed")


def sampled(op: str, *operands: object, constant: Sequence[int] = (), **attrs: object) -> Sample:
    """A sample of arrays; what is none is an array of integers, or left out where it is None."""
    arrays = [a if a is None or isinstance(a, np.ndarray) else np.array(a) for a in operands]
    outputs = {"TopK": 2, "DynamicQuantizeLinear": 3, "tersor.DynamicQuantizeRows": 3}.get(op, 1)
    return Sample(arrays, attrs, frozenset(constant), outputs)  # type: ignore[arg-type]


def symbolic(index: int, shape: tuple[int, ...]) -> tuple[Dim, ...]:
    """Every dim a symbol, also those of size 1 and 0; equal sizes are one."""
    return tuple(symbol(f"s{size}") for size in shape)


def f32(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


# Folds over nothing give what they start from; everything else without elements is just that.
EMPTY: list[tuple[str, Sample, list[np.ndarray]]] = [
    ("ReduceSum", sampled("ReduceSum", f32(2, 0), [1], constant=[1], keepdims=0),
     [np.zeros(2, np.float32)]),
    ("ReduceProd", sampled("ReduceProd", f32(2, 0), [1], constant=[1], keepdims=0),
     [np.ones(2, np.float32)]),
    ("ReduceMax", sampled("ReduceMax", f32(2, 0), [1], constant=[1], keepdims=0),
     [np.full(2, -np.inf, np.float32)]),
    ("ReduceMin", sampled("ReduceMin", f32(0), keepdims=0), [np.array(np.inf, np.float32)]),
    ("ReduceMean", sampled("ReduceMean", f32(0), keepdims=0), [np.array(np.nan, np.float32)]),
    ("ReduceLogSumExp", sampled("ReduceLogSumExp", f32(0), keepdims=0),
     [np.array(-np.inf, np.float32)]),
    ("ReduceSum", sampled("ReduceSum", f32(0, 2), [1], constant=[1], keepdims=0),
     [np.zeros(0, np.float32)]),
    ("Softmax", sampled("Softmax", f32(3, 0)), [f32(3, 0)]),
    ("Softmax", sampled("Softmax", f32(0, 3)), [f32(0, 3)]),
    ("Add", sampled("Add", f32(0, 3), f32(0, 3)), [f32(0, 3)]),
    ("CumSum", sampled("CumSum", f32(2, 0), 1, constant=[1]), [f32(2, 0)]),
    ("CumSum", sampled("CumSum", f32(2, 0), 1, constant=[1], exclusive=1), [f32(2, 0)]),
    ("LayerNormalization", sampled("LayerNormalization", f32(0, 3), f32(3)), [f32(0, 3)]),
    ("MatMul", sampled("MatMul", f32(0, 3), f32(3, 2)), [f32(0, 2)]),
    ("DynamicQuantizeLinear", sampled("DynamicQuantizeLinear", f32(0)),
     [np.zeros(0, np.uint8), np.array(1, np.float32), np.array(0, np.uint8)]),
    ("tersor.DynamicQuantizeRows", sampled("tersor.DynamicQuantizeRows", f32(2, 0)),
     [np.zeros((2, 0), np.uint8), np.ones((2, 1), np.float32), np.zeros((2, 1), np.uint8)]),
    ("TopK", sampled("TopK", f32(2, 3), [0], constant=[1]),
     [np.zeros((2, 0), np.float32), np.zeros((2, 0), np.int64)]),
]  # fmt: skip


@pytest.mark.parametrize("dims", [static, symbolic])
@pytest.mark.parametrize(
    ("op", "sample", "want"), EMPTY, ids=[f"{op}-{i}" for i, (op, *_) in enumerate(EMPTY)]
)
def test_operands_without_elements(
    op: str, sample: Sample, want: list[np.ndarray], dims: Dims
) -> None:
    for mine, theirs in zip(
        run_in_tvm(one_node(op, sample, dims), feeds(sample)), want, strict=True
    ):
        assert_agrees(mine, theirs, 0)


@pytest.mark.parametrize("k", [0, 3])
def test_a_product_over_a_size_that_may_be_zero(k: int) -> None:
    sample = sampled("MatMul", f32(2, k), f32(k, 4))
    graph = one_node(
        "MatMul", sample, lambda i, s: (s[0], symbol("k")) if i == 0 else (symbol("k"), 4)
    )
    (got,) = run_in_tvm(graph, feeds(sample))
    assert_agrees(got, f32(2, k) @ f32(k, 4), 1e-6)


def test_a_product_of_operands_that_do_not_fit_fails() -> None:
    graph = one_node("MatMul", sampled("MatMul", f32(2, 3), f32(3, 4)), each_its_own)
    with pytest.raises(Exception, match="sizes 5 and 3 are not equal"):
        run_in_tvm(graph, {"x0": f32(2, 3), "x1": f32(5, 4)})


@pytest.mark.parametrize("n", [1, 10])
@pytest.mark.parametrize(
    ("op", "function"), [("Add", np.add), ("Less", np.less), ("Max", np.maximum)]
)
def test_a_symbolic_size_broadcasts_against_a_number(op: str, function: Any, n: int) -> None:
    """Whether the symbol is 1 or the number, only the run tells."""
    sample = Sample([f32(2, n), f32(2, 10)])
    graph = one_node(op, sample, lambda i, s: s if i else (2, symbol("n")))
    (got,) = run_in_tvm(graph, feeds(sample))
    assert_agrees(got, function(*sample.inputs), 0)


LOWEST = np.iinfo(np.int64).min
nan, inf = np.float32(np.nan), np.float32(np.inf)

# What machines trap on, or TVM would read or write outside of, or get wrong.
CORNERS: list[tuple[str, Sample, object]] = [
    # Nothing is meant by a division by zero, but the process lives.
    ("Div", sampled("Div", [7, -7, LOWEST, 5], [-2, 2, -1, 0]), [-3, -3, LOWEST, 5]),
    ("Div", sampled("Div", [7, 5], 0, constant=[1]), [7, 5]),
    ("Div", sampled("Div", np.float32([1, -1, 0]), np.float32(-0.0), constant=[1]), [-inf, inf, nan]),
    ("Mod", sampled("Mod", [7, -7, 7, LOWEST], [-3, 3, 3, -1]), [-2, 2, 1, 0]),
    ("Mod", sampled("Mod", [7, -7, 7, LOWEST], [-3, 3, 3, -1], fmod=1), [1, -1, 1, 0]),
    ("Mod", sampled("Mod", np.float32([5.5, -5.5]), np.float32([-2, 2])), np.float32([-0.5, 0.5])),
    ("BitShift", sampled("BitShift", np.uint8([255, 255]), np.uint8([7, 8]), direction="LEFT"),
     np.uint8([128, 0])),
    ("BitShift", sampled("BitShift", np.uint64([2**63]), np.uint64([64]), direction="RIGHT"),
     np.uint64([0])),
    ("Round", sampled("Round", np.float32([0.5, 1.5, -2.5])), np.float32([0, 2, -2])),
    ("Max", sampled("Max", np.float32([1, nan]), np.float32([nan, 1])), np.float32([nan, nan])),
    ("Min", sampled("Min", np.float32([1, nan]), np.float32([nan, 1])), np.float32([nan, nan])),
    ("Max", sampled("Max", np.uint64([2**63]), np.uint64([1])), np.uint64([2**63])),
    ("Relu", sampled("Relu", np.float32([nan, -inf, 2])), np.float32([nan, 0, 2])),
    ("Clip", sampled("Clip", np.float32([nan, -inf, 2]), None, np.float32(1)),
     np.float32([nan, -inf, 1])),
    ("Equal", sampled("Equal", [True, False], [True, True]), [True, False]),
    ("Pow", sampled("Pow", [3, -2], [4, 3]), [81, -8]),
    ("Softplus", sampled("Softplus", np.float32([100, -20])), np.float32([100, 2.0611537e-9])),
    ("Mish", sampled("Mish", np.float32([100, -100])), np.float32([100, -3.8e-42])),
    ("Elu", sampled("Elu", np.float32([1000])), np.float32([1000])),
    ("Sigmoid", sampled("Sigmoid", np.float32([-1000, 1000])), np.float32([0, 1])),
    # Casts.
    ("Cast", sampled("Cast", np.float32([nan, 0, 0.5]), to=9), [True, False, True]),
    ("Cast", sampled("Cast", np.float32([-1, 300, 2.9]), to=2), np.uint8([255, 44, 2])),
    ("Cast", sampled("Cast", np.float64([0.1, 65504]), to=10), np.float16([0.1, 65504])),
    ("Cast", sampled("Cast", np.float16([0.1, inf]), to=11), np.float64([np.float16(0.1), inf])),
    ("Cast", sampled("Cast", np.uint64([2**64 - 1]), to=7), [-1]),
    # Reductions and what is told of extremes.
    ("ReduceMax", sampled("ReduceMax", np.float32([-inf, -inf]), keepdims=0), np.float32(-inf)),
    ("ReduceMin", sampled("ReduceMin", np.float32([nan, 1]), keepdims=0), nan),
    ("ReduceMax", sampled("ReduceMax", [False, True], keepdims=0), np.bool_(True)),
    ("ReduceMean", sampled("ReduceMean", [-1, -2], keepdims=0), -1),
    ("ReduceSum", sampled("ReduceSum", np.full(4096, 1, np.float16), keepdims=0), np.float16(4096)),
    ("ReduceLogSumExp", sampled("ReduceLogSumExp", np.float32([1000, 1000]), keepdims=0),
     np.float32(1000 + np.log(2))),
    ("ReduceSum", sampled("ReduceSum", np.float32(3)), np.float32(3)),
    ("ArgMax", sampled("ArgMax", np.float32([1, nan, 3]), keepdims=0), 1),
    ("TopK", sampled("TopK", [5, 7, 7, 2], [3], constant=[1]), [7, 7, 5]),
    ("TopK", sampled("TopK", np.float16([5, 7, 2]), [2], constant=[1], largest=0),
     np.float16([2, 5])),
    # Rows that threads share.
    ("TopK", sampled("TopK", f32(1, 3, 9000), [40], constant=[1]),
     -np.sort(-f32(1, 3, 9000), axis=-1)[..., :40]),
    ("CumSum", sampled("CumSum", [1, 2, 3], 0, constant=[1], exclusive=1, reverse=1), [5, 3, 0]),
    # Quantizers saturate, and round halves to even.
    ("QuantizeLinear", sampled("QuantizeLinear", np.float32([1e9, -1e9, 0.5, 1.5]), np.float32(1),
                               np.int8(0)), np.int8([127, -128, 0, 2])),
    ("MatMulInteger", sampled("MatMulInteger", np.full((1, 3), 255, np.uint8),
                              np.full((3, 1), -128, np.int8)), np.int32([[-97920]])),
    ("MatMulInteger", sampled("MatMulInteger", np.uint8([[1, 2], [3, 4]]), np.uint8([[1], [1]]),
                              np.uint8([1, 3]), np.uint8([1])), np.int32([[0], [0]])),
    ("OneHot", sampled("OneHot", [5, -1], 3, np.float32([0, 1]), constant=[1]),
     np.float32([[0, 0, 0], [0, 0, 1]])),
    # Ids outside of the table read the nearest row.
    ("tersor.EmbeddingLayerNormalization",
     sampled("tersor.EmbeddingLayerNormalization", np.float32([1, 1]), np.float32([0, 0]),
             [2**40, -(2**40)], np.float32([[1, -1], [-1, 1]]), epsilon=0.0),
     np.float32([[-1, 1], [1, -1]])),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "sample", "want"), CORNERS, ids=[f"{op}-{i}" for i, (op, *_) in enumerate(CORNERS)]
)
def test_corners(op: str, sample: Sample, want: object) -> None:
    got = run_in_tvm(one_node(op, sample), feeds(sample))[0]
    assert_agrees(got, np.asarray(want, got.dtype), 1e-6)
