"""ONNX Runtime's own ops on TVM, against ONNX Runtime: equal in float; where ONNX Runtime quantizes their operands,
closer to the float model than it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm", reason="the tvm backend is not installed")

from contract import compiled_in_tvm

from tersor.backends.tvm.build import build
from tersor.backends.tvm.contrib import RULES, expand
from tersor.built import Split
from tersor.frontends.onnx import import_model
from tersor.ir import Affine

ROWS, WIDTH = 5, 16
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, ROWS, WIDTH)).astype(np.float32)
VECTOR = RNG.standard_normal(WIDTH).astype(np.float32)
MATRIX = RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32)
CODES = RNG.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
SCALES = RNG.uniform(0.001, 0.01, WIDTH).astype(np.float32)


Operands = list[tuple[str, np.ndarray | None]]


def model(
    op: str,
    operands: Operands,
    attrs: dict[str, Any] | None = None,
    results: tuple[str, ...] = ("y",),
) -> onnx.ModelProto:
    """A node on x[batch, rows, WIDTH] and constants; results without a name are omitted."""
    constants = {name: array for name, array in operands if array is not None and name != "x"}
    names = [name if array is not None else "" for name, array in operands]
    node = helper.make_node(op, names, results, domain="com.microsoft", **(attrs or {}))
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "rows", WIDTH])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in results if n],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


SUM = ("y", "", "", "sum")
NORM: Operands = [("x", X), ("x", X), ("g", VECTOR)]
FLOAT: dict[str, tuple[Any, ...]] = {
    "Gelu": ([("x", X)],),
    "BiasGelu": ([("x", X), ("b", VECTOR)],),
    "FastGelu": ([("x", X)],),
    "FastGelu with bias": ([("x", X), ("b", VECTOR)],),
    "QuickGelu": ([("x", X)],),
    "QuickGelu of another slope": ([("x", X)], {"alpha": 1.0}),
    "FusedMatMul": ([("x", X), ("w", MATRIX)], {"alpha": 0.25}),
    "FusedMatMul turned": ([("x", X), ("w", MATRIX)], {"transB": 1}),
    "FusedMatMul of itself": ([("x", X), ("x", X)], {"transA": 1}),
    "SkipLayerNormalization": (
        [*NORM, ("beta", VECTOR), ("b", VECTOR)], {"epsilon": 1e-5}, SUM),
    "SkipLayerNormalization without bias": (NORM,),
    "SkipSimplifiedLayerNormalization": ([*NORM, ("b", VECTOR)], {"epsilon": 1e-6}, SUM),
    "DynamicQuantizeMatMul": (
        [("x", X), ("w", CODES), ("s", SCALES), ("z", None), ("b", VECTOR)],),
    "DynamicQuantizeMatMul of a zero point": (
        [("x", X), ("w", CODES.view(np.uint8)), ("s", SCALES[:1]), ("z", np.array([128], np.uint8))],),
}  # fmt: skip


def model_of(name: str) -> onnx.ModelProto:
    operands, *more = FLOAT[name]
    return model(name.partition(" ")[0], operands, *more)


def by_runtime(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feed))


@pytest.fixture(scope="module")
def runs() -> dict[str, Callable[[dict[str, np.ndarray]], list[np.ndarray]]]:
    """All models, in one module."""
    return dict(
        zip(
            FLOAT, compiled_in_tvm(*(expand(import_model(model_of(n))) for n in FLOAT)), strict=True
        )
    )


@pytest.mark.parametrize("name", FLOAT)
def test_results_agree_with_onnx_runtime(name: str, runs: Any) -> None:
    proto = model_of(name)
    # Sums of 16 products in another order; the products of integers are exact.
    for got, expected in zip(runs[name]({"x": X}), by_runtime(proto, {"x": X}), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


def lstm(directions: int, per_column: bool) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A quantized LSTM, and the float LSTM of its decoded weights."""
    hidden, rng = 24, np.random.default_rng(1)
    shapes = {"w": (directions, WIDTH, 4 * hidden), "r": (directions, hidden, 4 * hidden)}
    ends = (directions, 4 * hidden) if per_column else (directions,)
    bias = rng.standard_normal((directions, 8 * hidden)).astype(np.float32) / 8
    parts: dict[str, np.ndarray] = {}
    real: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        parts[name] = rng.integers(-127, 128, shape).astype(np.int8)
        scale = rng.uniform(0.001, 0.004, ends).astype(np.float32)
        parts |= {f"{name}_scale": scale, f"{name}_zero": np.zeros(ends, np.int8)}
        scales = scale[:, None, :] if per_column else scale[:, None, None]
        real[name] = np.ascontiguousarray((parts[name] * scales).transpose(0, 2, 1))
    way = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    names = ["w_scale", "w_zero", "r_scale", "r_zero"]
    proto = model(
        "DynamicQuantizeLSTM",
        [
            *(("x", X), ("w", parts["w"]), ("r", parts["r"]), ("b", bias)),
            *[("", None)] * 4,
            *((n, parts[n]) for n in names),
        ],
        way,
    )
    floats = model("LSTM", [("x", X), ("w", real["w"]), ("r", real["r"]), ("b", bias)], way)
    floats.graph.node[0].domain = ""
    return proto, floats


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_a_quantized_lstm_equals_the_float_one_of_its_decoded_weights(
    directions: int, per_column: bool
) -> None:
    proto, floats = lstm(directions, per_column)
    (run,) = compiled_in_tvm(expand(import_model(proto)))
    (got,), (want,) = run({"x": X}), by_runtime(floats, {"x": X})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    (expected,) = by_runtime(proto, {"x": X})
    assert np.abs(expected - want).max() > 10 * np.abs(got - want).max()  # What it quantizes shows.


def test_its_weights_stay_integers_in_the_file() -> None:
    proto, floats = lstm(2, per_column=False)
    graph = expand(import_model(proto))
    (node,) = (n for n in graph.nodes if n.op == "LSTM")
    assert all(isinstance(v.encoding, Affine) for v in node.inputs[1:3] if v is not None)
    sizes = []
    for each in (proto, floats):
        library = build(import_model(each))
        assert isinstance(library, Split)
        sizes.append(sum(array.nbytes for array in library.weights.arrays))
    assert sizes[0] < 0.4 * sizes[1]


def test_rules_are_of_the_runtime_s_ops() -> None:
    assert all(op.startswith("com.microsoft.") for op in RULES)
