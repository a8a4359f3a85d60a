"""Weights that several nodes read are held once, in every recipe and in the file: layers that share their
weights (ALBERT), and a head that is tied to the embedding, whichever way an exporter writes that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

import tersor
from tersor.built import built_size, main_file
from tersor.ir import Graph, parse
from tersor.ops import TABLE
from tersor.passes.quantize.quantize_dynamic import QuantizeDynamic
from tersor.pipeline import Pipeline
from tersor.structure.links import links
from tersor.structure.slicing import slice_graph
from tersor.structure.ties import axis_order, tied_sets, why_shared
from tersor.target import Target

RNG = np.random.default_rng(0)
D, WIDE, VOCABULARY = 48, 96, 400


def _f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _model(
    nodes: Sequence[onnx.NodeProto], x: Any, y: Sequence[Any], constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [x],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(y))],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def shared_layers(count: int, width: int = D, inner: int = WIDE, table: int = 0) -> onnx.ModelProto:
    """The same feed-forward layer, ``count`` times; on rows of a table, where that has any."""
    nodes, at = [], "x"
    if table:
        nodes.append(helper.make_node("Gather", ["E", "x"], ["rows"]))
        at = "rows"
    for i in range(count):
        nodes += [
            helper.make_node("MatMul", [at, "wa"], [f"a{i}"]),
            helper.make_node("Relu", [f"a{i}"], [f"b{i}"]),
            helper.make_node("MatMul", [f"b{i}", "wb"], [f"c{i}"]),
            helper.make_node("Add", [f"c{i}", at], [f"d{i}"]),
            helper.make_node("LayerNormalization", [f"d{i}", "g"], [f"e{i}"]),
        ]
        at = f"e{i}"
    nodes[-1].output[0] = "y"
    constants = {
        "wa": _f(width, inner) / 7,
        "wb": _f(inner, width) / 10,
        "g": np.ones(width, np.float32),
    }
    if not table:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])
        return _model(nodes, x, ["n", width], constants)
    x = helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])
    return _model(nodes, x, ["n", width], {**constants, "E": _f(table, width)})


HEADS = {
    "transpose": [
        helper.make_node("Transpose", ["E"], ["Et"], perm=[1, 0]),
        helper.make_node("MatMul", ["z", "Et"], ["y"]),
    ],
    "transB": [helper.make_node("Gemm", ["z", "E"], ["y"], transB=1)],
    "written twice": [helper.make_node("MatMul", ["z", "copy"], ["y"])],
}


def tied_head(form: str) -> onnx.ModelProto:
    """A lookup in a table [VOCABULARY, D], a layer, and the product with the transposed table."""
    nodes = [
        helper.make_node("Gather", ["E", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["p"]),
        helper.make_node("Tanh", ["p"], ["z"]),
        *HEADS[form],
    ]
    table = _f(VOCABULARY, D)
    constants = {"E": table, "w": _f(D, D) / 7}
    if form == "written twice":
        constants["copy"] = np.ascontiguousarray(table.T)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    return _model(nodes, ids, ["n", VOCABULARY], constants)


def outputs(given: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(given.SerializeToString(), options)
    return np.asarray(session.run(None, feed)[0])


def test_int8_holds_a_shared_weight_once() -> None:
    """What more layers add to the file are nodes."""
    sizes = []
    for count in (1, 4):
        given = shared_layers(count)
        made = tersor.compile(given, recipe="int8", measure=False)
        sizes.append(built_size(made.model))
        x = _f(5, D)
        want = outputs(given, {"x": x})
        assert np.abs(made.run({"x": x})["y"] - want).max() < 0.1 * np.abs(want).max()
    weights = 2 * D * WIDE
    assert sizes[0] > weights
    assert sizes[1] - sizes[0] < weights / 2


def test_shared_weights_are_not_smoothed_apart() -> None:
    x = _f(64, D)
    x[:, 3] *= 30  # An outlier, for which each layer alone would be smoothed.
    given = shared_layers(3)
    made = tersor.compile(given, recipe="int8", calibration=[{"x": x}], measure=False)
    assert built_size(made.model) < 2 * D * WIDE * 1.5
    reasons = [skip.reason for p in made.report.passes for skip in p.skips]
    assert "@wa is shared with other layers, and would be stored twice" in reasons


@pytest.mark.parametrize("form", HEADS)
@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_a_tied_head_stays_tied_in_the_file(form: str, recipe: str) -> None:
    given = tied_head(form)
    least = {f"quantize-{kind}.min_elements": 1024 for kind in ("embedding", "dynamic")}
    settings = least if recipe == "int8" else {}
    made = tersor.compile(given, recipe=recipe, settings=settings, measure=False)
    feed = {"ids": np.array([0, 3, VOCABULARY - 1, 3])}
    want = outputs(given, feed)
    tolerance = 1e-5 if recipe == "fp32" else 0.05  # Of int8: its own error.
    assert np.abs(made.run(feed)["y"] - want).max() < tolerance * np.abs(want).max()
    numbers = (VOCABULARY * D + D * D) * (4 if recipe == "fp32" else 1)
    scales = 0 if recipe == "fp32" else 4 * (VOCABULARY + D)
    assert built_size(made.model) < numbers + scales + 1500
    # Read by a runtime that is given nothing but the file.
    assert [i.name for i in ort.InferenceSession(main_file(made.model)).get_inputs()] == ["ids"]


TIED = f"""graph main(%ids: i64[n], %h: f32[n, {D}]) -> (r = %r, y = %y) {{
  @table: f32[{VOCABULARY}, {D}] = dense normal(0)
  @head: f32[{D}, {VOCABULARY}] = dense normal(1)
  %r: f32[n, {D}] = Gather(@table, %ids) {{axis = 0}}
  %y: f32[n, {VOCABULARY}] = tersor.Linear(%h, @head)
}}"""


def tied_graph() -> Graph:
    graph = parse(TIED, TABLE)
    table, head = graph.constants["table"], graph.constants["head"]
    assert table.encoding is not None
    graph.set_encoding(head, table.encoding.permute((1, 0)))
    return graph


@pytest.mark.parametrize("target", ["cpu:avx2", "cpu:avx512_vnni"])
def test_a_table_becomes_the_integers_of_its_head(target: str) -> None:
    """Also where the head's scales are such that products cannot saturate, which a table's own are not."""
    pipeline = Pipeline([QuantizeDynamic()], target=Target.parse(target))
    graph = pipeline.run(tied_graph())
    table, head = graph.constants["table"], graph.constants["head"]
    assert table.encoding is not None
    assert table.encoding.describe() == "affine(i8, axis=0)"
    assert tied_sets(graph) == [[table, head]]
    np.testing.assert_array_equal(table.numpy(), head.numpy().T)


def test_what_is_tied_is_told() -> None:
    graph = tied_graph()
    table, head = graph.constants["table"], graph.constants["head"]
    assert tied_sets(graph) == [[table, head]]
    assert axis_order(head, table) == (1, 0)
    (linear,) = [n for n in graph.nodes if n.op == "tersor.Linear"]
    assert why_shared(linear, head) == "@head is tied to @table"
    assert tied_sets(graph.copy())  # Copies share their numbers.
    graph.set_encoding(head, parse(TIED, TABLE).constants["head"].encoding)  # type: ignore[arg-type]
    assert not tied_sets(graph)
    assert why_shared(linear, head) == ""


@pytest.mark.parametrize("recipe", ["prune", "lowrank"])
def test_lossy_recipes_do_not_take_a_table_and_its_head_apart(recipe: str) -> None:
    """Cut alike, or left as they are: never two matrices where there was one."""
    given = tied_head("transB")
    ids = [{"ids": RNG.integers(0, VOCABULARY, 64)} for _ in range(4)]
    made = tersor.compile(given, recipe=recipe, calibration=ids, measure=False)
    assert built_size(made.model) < 1.01 * len(given.SerializeToString())


def test_a_cut_of_a_tied_matrix_is_one_of_both() -> None:
    graph = tied_graph()
    table, head = graph.constants["table"], graph.constants["head"]
    ends = [link.ends for link in links(graph) if link.ends[0].place[0] == "tied"]
    assert {tuple(end.axis for end in pair) for pair in ends} == {
        ((table, 0), (head, 1)),
        ((table, 1), (head, 0)),
    }
    rows = np.array([0, 5, 7])
    slice_graph(graph, {(table, 0): rows, (head, 1): rows})
    assert tied_sets(graph) == [[table, head]]
    assert head.tensor.shape == (D, VOCABULARY - 3)
    np.testing.assert_array_equal(table.numpy(), head.numpy().T)


def test_int8_is_no_larger_than_onnx_runtimes_own(tmp_path: Path) -> None:
    """Shared layers and a table of its own; node names and scales are the 2%."""
    given = shared_layers(3, width=192, inner=384, table=300)
    onnx.save(given, tmp_path / "given.onnx")
    quantize_dynamic(
        tmp_path / "given.onnx",
        tmp_path / "theirs.onnx",
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    made = tersor.compile(given, recipe="int8", measure=False)
    assert built_size(made.model) <= 1.02 * (tmp_path / "theirs.onnx").stat().st_size
