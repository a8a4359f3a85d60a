"""What ONNX Runtime's optimizer fused is decomposed: same numbers, known types, layers that are compressed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import tersor
from tersor.errors import InvalidModel
from tersor.frontends.onnx import import_model
from tersor.ir import TensorType
from tersor.ops.evaluate import evaluate

RNG = np.random.default_rng(0)
WIDTH = 16


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def one(op: str, operands: Mapping[str, np.ndarray | None], *results: str, **attrs: Any) -> bytes:
    """A model of one fused node: the first operand is the input ``x``, the others are constants; an operand
    that is None is left out."""
    x, *rest = operands
    names = [name if array is not None else "" for name, array in operands.items()]
    node = helper.make_node(op, names, results or ["y"], domain="com.microsoft", **attrs)
    held = {name: operands[name] for name in rest}
    given = operands[x]
    assert given is not None
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", *given.shape[1:]])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in results or ["y"] if n],
        [numpy_helper.from_array(a, n) for n, a in held.items() if a is not None],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return bytes(made.SerializeToString())


def session(model: bytes | str, level: str = "ORT_DISABLE_ALL", saved: str = "") -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = saved
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


X, VECTOR, MATRIX = numbers(2, 5, WIDTH), numbers(WIDTH), numbers(WIDTH, WIDTH)
NORM = {"x": X, "skip": numbers(2, 5, WIDTH), "g": VECTOR}
PICTURE = {"x": numbers(2, 3, 8, 8), "w": numbers(4, 3, 3, 3)}
ROWS = {"x": numbers(5, WIDTH), "w": MATRIX, "b": VECTOR}
SUM = ("y", "", "", "sum")
CASES: dict[str, bytes] = {
    "Gelu": one("Gelu", {"x": X}),
    "BiasGelu": one("BiasGelu", {"x": X, "b": VECTOR}),
    "FastGelu": one("FastGelu", {"x": X, "b": VECTOR}),
    "QuickGelu": one("QuickGelu", {"x": X}),
    "FusedMatMul": one("FusedMatMul", {"x": X, "w": MATRIX}, alpha=0.25, transB=1),
    "FusedMatMul turned": one("FusedMatMul", {"x": X, "w": numbers(2, 5, 7)}, transA=1),
    "FusedConv": one("FusedConv", PICTURE, activation="Relu", pads=[1] * 4),
    "FusedConv of a sum": one(
        "FusedConv", {**PICTURE, "b": numbers(4), "z": numbers(2, 4, 6, 6)}, activation="Sigmoid"),
    "FusedConv clipped": one(
        "FusedConv", PICTURE, activation="Clip", activation_params=[-0.5, 0.5]),
    "FusedConv leaking": one("FusedConv", PICTURE, activation="LeakyRelu", activation_params=[0.1]),
    "FusedConv hard": one(
        "FusedConv", PICTURE, activation="HardSigmoid", activation_params=[0.2, 0.4]),
    "FusedGemm": one("FusedGemm", ROWS, activation="Relu", alpha=0.5, transB=1),
    "FusedGemm leaking": one("FusedGemm", ROWS, activation="LeakyRelu", activation_alpha=0.2),
    "SkipLayerNormalization": one(
        "SkipLayerNormalization", {**NORM, "beta": VECTOR, "b": VECTOR}, *SUM, epsilon=1e-5),
    "SkipLayerNormalization alone": one("SkipLayerNormalization", NORM),
    "SkipSimplifiedLayerNormalization": one(
        "SkipSimplifiedLayerNormalization", {**NORM, "b": VECTOR}, *SUM, epsilon=1e-6),
}  # fmt: skip


def feed_of(model: bytes) -> dict[str, np.ndarray]:
    dims = onnx.load_from_string(model).graph.input[0].type.tensor_type.shape.dim
    rows = 5 if len(dims) == 2 else 2
    return {"x": numbers(*(d.dim_value or rows for d in dims))}


@pytest.mark.parametrize("name", CASES)
def test_it_is_decomposed_and_gives_the_same_numbers(name: str) -> None:
    graph = import_model(onnx.load_from_string(CASES[name]))
    assert not any(n.op.startswith("com.microsoft.") for n in graph.walk())
    assert all(isinstance(v.type, TensorType) and v.type.dims for v in graph.outputs)
    feed = feed_of(CASES[name])
    got = list(evaluate(graph, feed).values())
    # Sums of 27 products in another order.
    for mine, theirs in zip(got, session(CASES[name]).run(None, feed), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "model",
    [
        one("FusedMatMul", {"x": X, "w": MATRIX}, transBatchA=1),
        one("FusedConv", PICTURE, activation="Softplus"),
        one("SkipLayerNormalization", NORM, "y", "mean"),
    ],
)
def test_what_has_no_formula_stays_as_it_is(model: bytes) -> None:
    graph = import_model(onnx.load_from_string(model))
    assert [n.op for n in graph.nodes][-1].startswith("com.microsoft.")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (one("FusedConv", PICTURE, activation="Clip", activation_params=1), "is not numbers"),
        (one("FusedMatMul", {"x": X, "w": MATRIX}, alpha="a"), "attribute 'alpha' is not numbers"),
        (one("BiasGelu", {"x": X, "b": numbers(3)}), "BiasGelu"),
        (one("FusedMatMul", {"x": X}), "needs operand 1, which is left out"),
    ],
)
def test_what_is_not_well_formed_is_refused_with_the_node(model: bytes, message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        import_model(onnx.load_from_string(model))


def network() -> bytes:
    """Convolutions and layers that ONNX Runtime's optimizer fuses."""
    weights = {"c": numbers(64, 3, 3, 3) / 5, "d": numbers(64, 64, 3, 3) / 24, "b": numbers(64),
               "w": numbers(64, 256) / 8, "u": numbers(256), "v": numbers(256, 64) / 16}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "c", "b"], ["1"], pads=[1] * 4),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "d", "b"], ["3"]),
        helper.make_node("Relu", ["3"], ["4"]),
        helper.make_node("ReduceMean", ["4"], ["5"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["5", "w", "u"], ["6"]),
        helper.make_node("Relu", ["6"], ["7"]),
        helper.make_node("MatMul", ["7", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def test_an_optimized_file_is_compressed_as_what_it_was_made_of(tmp_path: Path) -> None:
    plain, fused = tmp_path / "plain.onnx", tmp_path / "fused.onnx"
    plain.write_bytes(network())
    session(str(plain), "ORT_ENABLE_EXTENDED", str(fused))
    ops = {n.op_type for n in onnx.load(fused).graph.node}
    assert {"FusedConv", "FusedGemm"} <= ops
    sizes = []
    for path in (plain, fused):
        artifact = tersor.compile(path, recipe="int8", measure=False)
        sizes.append(artifact.save(tmp_path / "made.onnx").stat().st_size)
    assert sizes[1] <= 1.02 * sizes[0]
