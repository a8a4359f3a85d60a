"""What ONNX Runtime makes of an input that the model does not say, and what is done about it: products that
overflow where the processor has no exact ones (shown here by the form that is built for it, since the sums
themselves are wrong on such a machine only), and fusions that move the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tersor import compile
from tersor.analysis.saturation import overflowing, products
from tersor.backends.ort import Choice, Evaluator, LowerOptions, build, lower, open_session
from tersor.driver.deviations import (
    fusion_remarks,
    overflow_remarks,
    smallest_cause,
    with_exact_sums,
)
from tersor.frontends.onnx import import_model
from tersor.ir import DType, Graph
from tersor.target import Target

AVX2, VNNI = Target.parse("cpu:avx2"), Target.parse("cpu:avx512_vnni")
K, N = 12, 5


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def weights(largest: int, shape: tuple[int, ...] = (K, N)) -> np.ndarray:
    return rng().integers(-largest, largest + 1, shape).astype(np.int8)


def activations(dtype: type = np.uint8, shape: tuple[int, ...] = (3, K)) -> np.ndarray:
    limits = np.iinfo(dtype)
    return rng().integers(limits.min, limits.max + 1, shape).astype(dtype)


def model(node: onnx.NodeProto, x: np.ndarray, held: dict[str, np.ndarray]) -> bytes:
    """Of one node, with operand x given at run time."""
    dtype = helper.np_dtype_to_tensor_dtype(x.dtype)
    inputs = [helper.make_tensor_value_info("x", dtype, ["n", *x.shape[1:]])]
    constants = [numpy_helper.from_array(np.asarray(a), name) for name, a in held.items()]
    outputs = [onnx.ValueInfoProto(name="y")]
    graph = helper.make_graph([node], "g", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return made


def matmul(w: np.ndarray, x: np.ndarray, zero: np.ndarray | None = None) -> Graph:
    names = ["x", "w", "z", *(["wz"] if zero is not None else [])]
    held = {"w": w, "z": x.dtype.type(7), **({"wz": zero} if zero is not None else {})}
    return import_model(model(helper.make_node("MatMulInteger", names, ["y"]), x, held))


def built(graph: Graph, x: np.ndarray, *, unsigned: bool = True) -> tuple[list[DType], np.ndarray]:
    """Types of the weights that are written, and what comes out."""
    options = LowerOptions(unsigned_weights=unsigned)
    written = lower(graph, options)
    types = [v.tensor.dtype for v in written.constants.values() if len(v.tensor.shape) > 1]
    return types, open_session(build(graph, Choice(lower=options))).run({"x": x})["y"]


def saturates(w: np.ndarray) -> bool:
    """Whether some activations make vpmaddubsw's sums of neighbours saturate."""
    pairs = w.astype(np.int64).reshape(-1, 2, w.shape[1])
    reached = np.stack([np.maximum(s * pairs, 0).sum(1) for s in (1, -1)])
    return bool((255 * reached > 32767).any())


@pytest.mark.parametrize("largest", [30, 60, 64, 70, 127])
def test_what_can_overflow_is_found(largest: int) -> None:
    w = weights(largest)
    found = overflowing(matmul(w, activations()))
    assert bool(found) or not saturates(w)
    assert bool(found) == (largest > 64)


@pytest.mark.parametrize("zero", [None, np.int8(-3), np.arange(-2, 3, dtype=np.int8)])
def test_their_weights_lose_the_sign_and_the_sums_are_exact(zero: np.ndarray | None) -> None:
    w, x = weights(127), activations()
    types, got = built(matmul(w, x, zero), x)
    assert types == [DType.U8]
    minus = 0 if zero is None else zero.astype(np.int32)
    assert (got == (x.astype(np.int32) - 7) @ (w.astype(np.int32) - minus)).all()


def test_what_cannot_overflow_and_what_has_signed_activations_stays() -> None:
    x = activations()
    assert built(matmul(weights(60), x), x)[0] == [DType.I8]
    assert built(matmul(weights(127), x), x, unsigned=False)[0] == [DType.I8]
    signed = activations(np.int8)
    graph = matmul(weights(127), signed)
    assert built(graph, signed)[0] == [DType.I8]
    (told,) = overflow_remarks(graph, AVX2, "ort")
    assert told.endswith("except for 1 with signed activations")


@pytest.mark.parametrize("op", ["QLinearMatMul", "QLinearConv"])
def test_products_that_quantize_their_results(op: str) -> None:
    convolves = op == "QLinearConv"
    w = weights(127, (4, 3, 1, 2)) if convolves else weights(127)
    x = activations(shape=(2, 3, 1, 6)) if convolves else activations()
    s, small = np.float32(1), np.float32(1 / 512)
    held = {
        "xs": s,
        "xz": np.uint8(9),
        "w": w,
        "ws": small,
        "wz": np.int8(0),
        "ys": s,
        "yz": np.uint8(100),
    }
    node = helper.make_node(op, ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"])
    types, got = built(import_model(model(node, x, held)), x)
    assert types == [DType.U8]
    a = x.astype(np.int64) - 9
    if convolves:
        windows = np.stack([a[..., i : i + 5] for i in (0, 1)], axis=-1)  # [b, c, 1, 5, 2]
        sums = np.einsum("bchwk,mcjk->bmhw", windows, w.astype(np.int64))
    else:
        sums = a @ w.astype(np.int64)
    assert (got == np.clip(np.rint(sums / 512) + 100, 0, 255)).all()


def test_products_of_float_activations() -> None:
    w, x = weights(127), rng().standard_normal((3, K)).astype(np.float32)
    held = {"w": w, "s": np.full(N, 0.01, np.float32)}
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s"], ["y"], domain="com.microsoft")
    types, got = built(import_model(model(node, x, held)), x)
    assert types == [DType.U8]
    scale = (max(x.max(), 0) - min(x.min(), 0)) / 255
    # One step of the activations at each of K weights, at most, if one were rounded the other way.
    np.testing.assert_allclose(
        got, x @ (w * 0.01), atol=float(scale * 0.5 * np.abs(w * 0.01).sum(0).max())
    )


def dequantized(x_type: type = np.uint8) -> Graph:
    """A float product of dequantized operands, of which ONNX Runtime makes one of integers."""
    held = {"w": weights(127), "s": np.float32(0.1), "z": x_type(3), "wz": np.int8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    data = model(nodes[0], activations(x_type), held)
    proto = onnx.load_from_string(data)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return import_model(proto.SerializeToString())


@pytest.mark.parametrize("x_type", [np.uint8, np.int8])
def test_products_of_dequantized_operands_count_too(x_type: type) -> None:
    graph, x = dequantized(x_type), activations(x_type)
    assert [n.op for n in overflowing(graph)] == ["MatMul"]
    assert overflow_remarks(graph, AVX2, "ort")[0].endswith("which makes them exact")
    types, got = built(graph, x)
    assert types == [DType.U8]
    w = graph.constants["w"].numpy().astype(np.float64)
    # Products of numbers below 30 in float32, or one rounding of an exact sum.
    np.testing.assert_allclose(got, (x - 3.0) * 0.1 @ w * 0.1, rtol=1e-5, atol=1e-4)


def test_it_is_said_for_the_target_alone() -> None:
    graph = matmul(weights(127), activations())
    (told,) = overflow_remarks(graph, AVX2, "ort")
    assert "on cpu:avx2 ONNX Runtime adds u8 x s8 products in pairs into 16 bits" in told
    assert "1 of the input's 1 integer products can overflow" in told
    assert overflow_remarks(graph, AVX2, "tvm")[0].endswith("TVM's sums are exact")
    assert overflow_remarks(graph, VNNI, "ort") == []
    assert overflow_remarks(matmul(weights(60), activations()), AVX2, "ort") == []
    assert (len(products(graph)), Choice.of(AVX2).lower.unsigned_weights) == (1, True)
    assert not Choice.of(VNNI).lower.unsigned_weights


def test_a_compilation_for_such_a_target_says_so_and_is_exact(tmp_path: Path) -> None:
    w, x = weights(127), activations()
    held = {"w": w, "z": np.uint8(0)}
    data = model(helper.make_node("MatMulInteger", ["x", "w", "z"], ["y"]), x, held)
    made = compile(data, "cpu:avx2", recipe="fp32", measure=False)
    assert any("can overflow" in said.reason for said in made.report.decisions)
    assert isinstance(made.model, bytes)
    constants = onnx.load_from_string(made.model).graph.initializer
    assert TensorProto.UINT8 in {c.data_type for c in constants if len(c.dims) == 2}
    assert (made.run({"x": x})["y"] == x.astype(np.int32) @ w.astype(np.int32)).all()


def test_results_are_judged_by_exact_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = matmul(weights(127), activations()), activations()
    before = build(graph, Choice())
    assert with_exact_sums(graph, before) is before or Target.host().saturates_int8
    host = replace(Target.host(), features=AVX2.features)
    monkeypatch.setattr(Target, "host", staticmethod(lambda: host))
    given = with_exact_sums(graph, before)
    assert isinstance(given, bytes)
    assert TensorProto.UINT8 in {
        c.data_type for c in onnx.load_from_string(given).graph.initializer if len(c.dims) == 2
    }
    w = graph.constants["w"].numpy().astype(np.int32)
    assert (Evaluator()(graph, {"x": x})["y"] == (x.astype(np.int32) - 7) @ w).all()


# -- fusions ---------------------------------------------------------------------------------------


def blocks() -> tuple[bytes, dict[str, np.ndarray]]:
    """A product with weights in blocks of 4 bits, of which ONNX Runtime makes MatMulNBits: that quantizes
    the activations too, unasked."""
    x = rng().standard_normal((4, 64)).astype(np.float32)
    proto = onnx.load_from_string(model(helper.make_node("Identity", ["x"], ["y"]), x, {}))
    q = rng().integers(0, 16, (64, 32))
    proto.graph.initializer.extend([
        helper.make_tensor("q", TensorProto.UINT4, q.shape, q.reshape(-1)),
        numpy_helper.from_array(np.full((2, 32), 0.1, np.float32), "s"),
        helper.make_tensor("z", TensorProto.UINT4, (2, 32), np.full(64, 8)),
    ])  # fmt: skip
    del proto.graph.node[:]
    proto.graph.node.extend([
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ])  # fmt: skip
    return proto.SerializeToString(), {"x": x}


def test_a_fusion_that_moves_the_numbers_is_named(tmp_path: Path) -> None:
    data, feed = blocks()
    options = ort.SessionOptions()
    moved = ort.InferenceSession(data, options).run(None, feed)[0]
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(data, options).run(None, feed)[0]
    assert np.abs(moved - plain).max() > 1e-3 * np.abs(plain).max(), (
        "ONNX Runtime keeps them by now"
    )
    (told,) = fusion_remarks(data, [feed])
    assert "by QDQSelectorActionTransformer)" in told
    share = np.abs(moved - plain).max() / np.abs(plain).max()
    assert f"by {share:.2g} of the largest" in told


def test_nothing_is_said_of_rounding() -> None:
    node = helper.make_node("Gelu", ["x"], ["y"])
    x = rng().standard_normal((4, 64)).astype(np.float32)
    assert fusion_remarks(model(node, x, {}), [{"x": x}]) == []


@pytest.mark.parametrize("guilty", [set("c"), set("ag"), set("hij"), set()])
def test_the_cause_is_narrowed_down(guilty: set[str]) -> None:
    calls: list[Any] = []

    def mends(names: Any) -> bool:
        calls.append(names)
        return guilty <= set(names) and bool(guilty)

    assert set(smallest_cause("abcdefghijk", mends)) == guilty
    assert len(calls) <= 30
