"""Ops that the table does not know (a runtime's own): what they compute has no known type, and neither has all
that is computed from it. The rest of a model is compressed around them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import tersor

ROWS, WIDTH, HEADS = 6, 32, 4


def _model(seed: int = 0) -> onnx.ModelProto:
    """A transformer's layer between ops that change nothing, of which the table has no row."""
    rng = np.random.default_rng(seed)
    weights = {
        "table": rng.normal(size=(40, WIDTH)),
        **{f"w{i}": rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5 for i in range(4)},
        "up": rng.normal(size=(WIDTH, 4 * WIDTH)) / WIDTH**0.5,
        "bias": rng.normal(size=4 * WIDTH),
        "down": rng.normal(size=(WIDTH, 4 * WIDTH)) / WIDTH,
        "gain": 1 + rng.normal(size=WIDTH) / 9,
        "scale": np.asarray((WIDTH // HEADS) ** -0.5),
    }
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
    sizes = {
        "heads": [0, 0, HEADS, WIDTH // HEADS],
        "merged": [0, 0, WIDTH],
        "flat": [-1, WIDTH],
        "last": [2],
    }
    tensors += [numpy_helper.from_array(np.array(a, np.int64), n) for n, a in sizes.items()]
    nodes: list[onnx.NodeProto] = []

    def emit(op: str, *inputs: str, opaque: bool = False, **attrs: object) -> str:
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], **attrs))
        if not opaque:
            return name
        nodes.append(helper.make_node("SampleOp", [name], [f"{name}h"], domain="com.microsoft"))
        return f"{name}h"

    x = emit("Gather", "table", "ids", opaque=True)
    q, k, v = (
        emit("Transpose", emit("Reshape", emit("MatMul", x, f"w{i}"), "heads"), perm=[0, 2, 1, 3])
        for i in range(3)
    )
    scores = emit("Mul", emit("MatMul", q, emit("Transpose", k, perm=[0, 1, 3, 2])), "scale")
    mixed = emit("MatMul", emit("Softmax", scores, axis=-1), v, opaque=True)
    merged = emit("Reshape", emit("Transpose", mixed, perm=[0, 2, 1, 3]), "merged")
    x = emit("LayerNormalization", emit("Add", emit("MatMul", merged, "w3"), x), "gain", axis=-1)
    flat = emit("Reshape", emit("Add", x, x, opaque=True), "flat")
    hidden = emit("Relu", emit("Gemm", flat, "up", "bias"))
    y = emit("Reshape", emit("Gemm", hidden, "down", transB=1), emit("Shape", x))
    nodes.append(helper.make_node("Add", [y, x], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", ROWS])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        tensors,
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=9)


@pytest.mark.parametrize("recipe", ["fp32", "int8", "prune", "lowrank"])
def test_a_model_is_compressed_around_ops_that_nobody_knows(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_model(), path)
    rng = np.random.default_rng(1)
    feeds = [{"ids": rng.integers(0, 40, (i + 2, ROWS))} for i in range(6)]
    artifact = tersor.compile(path, recipe=recipe, calibration=feeds, measure=False)
    reference = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    # Rounding; steps of 8 bits; the default floor of a cosine of 0.95.
    most = {"fp32": 1e-5, "int8": 0.03}.get(recipe, 0.32)
    for feed in feeds:
        (want,), got = reference.run(None, feed), artifact.run(feed)["y"]
        assert np.linalg.norm(got - want) <= most * np.linalg.norm(want)


def test_what_is_compiled_can_be_compiled_again(tmp_path: Path) -> None:
    """Its int8 layers are ONNX Runtime's own ops, whose results reach Shape."""
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    onnx.save(_model(), tmp_path / "m.onnx")
    feed = {"ids": np.arange(2 * ROWS).reshape(2, ROWS)}
    tersor.compile(tmp_path / "m.onnx", recipe="int8", measure=False).save(first)
    once = tersor.compile(first, recipe="fp32", measure=False)
    once.save(again)
    want = ort.InferenceSession(first, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    assert np.allclose(once.run(feed)["y"], want, atol=1e-5)
