"""Models of half precision in int8: their linear layers multiply integers, all other weights are stored in int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from contract import compiled_in_tvm
from onnx import TensorProto, helper, numpy_helper

import tersor
from tersor.backends.tvm.fuse import fuse
from tersor.backends.tvm.kernels.emit import Isa
from tersor.ir import Graph, parse
from tersor.numerics.affine import relative_error
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.quantize.quantize_dynamic import QuantizeDynamic
from tersor.passes.quantize.quantize_embedding import QuantizeEmbedding
from tersor.passes.quantize.quantize_weights import QuantizeWeights
from tersor.passes.quantize.widen_linear import WidenLinear
from tersor.pipeline import Pipeline
from tersor.target import Target

# Two that read one value, one with a bias; a third reads what they give.
LAYERS = """graph main(%x: f16[n, 16]) -> (y = %y) {
  @a: f16[16, 32] = dense normal(0)
  @b: f16[16, 32] = dense normal(1)
  @c: f16[32, 16] = dense normal(2)
  @bias: f16[32] = dense normal(3)
  %p: f16[n, 32] = tersor.Linear(%x, @a, @bias) {activation = "relu"}
  %q: f16[n, 32] = tersor.Linear(%x, @b)
  %s: f16[n, 32] = Add(%p, %q)
  %y: f16[n, 16] = tersor.Linear(%s, @c)
}"""


def widened(text: str = LAYERS) -> Graph:
    return Pipeline([WidenLinear(min_elements=1)], level="text").run(parse(text, TABLE))


def test_what_several_layers_read_is_cast_once_and_weights_stay_halves() -> None:
    after = widened()
    ops = [node.op for node in after.nodes]
    assert ops.count("Cast") == 2 + 3  # What is read twice, and what is read once; each result.
    weights = [n.input(1) for n in after.nodes if n.op == "tersor.Linear"]
    assert [str(w.tensor.dtype.value) for w in weights if w] == ["f32"] * 3
    assert all(w is not None and w.encoding and w.encoding.storage.value == "f16" for w in weights)
    before = parse(LAYERS, TABLE)
    assert {"a", "b", "c", "bias"}.isdisjoint(after.constants)  # None is stored twice.
    feed = {"x": np.random.default_rng(0).standard_normal((5, 16)).astype(np.float16)}
    # Halves have 11 bits; sums of 32 of them are rounded once in one form, twice in the other.
    assert relative_error(evaluate(before, feed)["y"], evaluate(after, feed)["y"]) < 2e-3


def test_floats_and_what_others_read_stay() -> None:
    text = LAYERS.replace("f16", "f32")
    assert [n.op for n in widened(text).nodes] == [n.op for n in parse(text, TABLE).nodes]
    shared = LAYERS.replace("-> (y = %y)", "-> (y = %y, w = @c)")
    assert [n.op for n in widened(shared).nodes].count("Cast") == 1 + 2


def test_kernels_of_tvm_multiply_their_integers() -> None:
    steps = [WidenLinear(min_elements=1), QuantizeDynamic(min_elements=1, granularity="token")]
    graph = Pipeline(steps, level="text").run(parse(LAYERS, TABLE))
    fused = fuse(graph, Isa.of(Target.host().features, threads=1))
    formats = [n.attrs["format"] for n in fused.walk() if n.op == "tvm.Linear"]
    assert formats == ["int8"] * 3


def test_tables_and_filters_of_halves_are_read_by_tvm_as_they_are_meant() -> None:
    table = """graph main(%i: i64[n]) -> (y = %y) {
      @t: f16[300, 16] = dense normal(0)
      %y: f16[n, 16] = Gather(@t, %i) {axis = 0}
    }"""
    filters = """graph main(%x: f16[n, 8, 6]) -> (y = %y) {
      @w: f16[16, 8, 3] = dense normal(0)
      %y: f16[n, 16, 4] = Conv(%x, @w)
    }"""
    looked_up = Pipeline([QuantizeEmbedding()], level="text").run(parse(table, TABLE))
    convolved = Pipeline([QuantizeWeights(min_elements=1)], level="text").run(parse(filters, TABLE))
    for graph in (looked_up, convolved):
        assert {e.storage.value for c in graph.constants.values() if (e := c.encoding)} == {"i8"}
    rng = np.random.default_rng(0)
    feeds = [{"i": np.arange(7)}, {"x": rng.standard_normal((2, 8, 6)).astype(np.float16)}]
    for graph, run, feed in zip(
        (looked_up, convolved), compiled_in_tvm(looked_up, convolved), feeds, strict=True
    ):
        (made,) = run(feed)
        assert made.dtype == np.float16
        # Rounded to 11 bits at the end, or at each sum.
        assert relative_error(evaluate(graph, feed)["y"], made) < 2e-3


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, two linear layers and a convolution, all of float16."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        array = rng.standard_normal(shape) / np.sqrt(shape[-1])
        return numpy_helper.from_array(array.astype(np.float16), name)

    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w1"], ["a"]),
        helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["d"]),
        helper.make_node("Transpose", ["d"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["t", "w3"], ["y"]),
    ]
    weights = (
        ("table", 300, 64), ("w1", 64, 128), ("b1", 128), ("w2", 128, 64), ("w3", 32, 64, 3)
    )  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "halves",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "l"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["b", 32, "m"])],
        [weight(*given) for given in weights],
    )
    path = tmp_path_factory.mktemp("halves") / "m.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_a_model_of_halves_is_half_as_large_in_int8(halves: Path, tmp_path: Path) -> None:
    feeds = [{"ids": np.random.default_rng(i).integers(0, 300, (2, 9))} for i in range(8)]
    artifact = tersor.compile(halves, recipe="int8", calibration=feeds[:7], measure=False)
    changed = {k for step in artifact.report.passes for k in step.changed}
    assert len(changed) == 4
    # Weights take half of what they did, and their scales and the graph some more.
    saved = artifact.save(tmp_path / "m.onnx")
    assert saved.stat().st_size < 0.6 * halves.stat().st_size
    wanted = onnxruntime.InferenceSession(halves, providers=["CPUExecutionProvider"])
    (want,) = wanted.run(["y"], feeds[7])
    got = artifact.run(feeds[7])["y"]
    assert got.dtype == np.float16
    assert relative_error(want, got) < 0.03  # Two products of 8 bits, and a convolution.
