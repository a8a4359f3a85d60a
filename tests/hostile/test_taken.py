"""Unusual but valid models are accepted, and compute what ONNX Runtime computes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hostile.external import cache, external, in_folder
from hostile.graphs import declared, nested
from hostile.table import text
from onnx import ModelProto, helper, numpy_helper

import tersor
from tersor.frontends.onnx import import_model
from tersor.pipeline.report import Decision

X = np.array([1.0, -2.0], np.float32)


def run(model: bytes, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return dict(
        zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True)
    )


def converted(model: ModelProto | Path, **options: bool) -> bytes:
    artifact = tersor.convert(model, **options).model
    assert isinstance(artifact, bytes)
    return artifact


@contextmanager
def recursion_limit(frames: int) -> Iterator[None]:
    """At most ``frames`` calls in addition to the current ones."""
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + frames)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def chain(count: int) -> ModelProto:
    """Alternating Neg and Abs, in reverse order."""
    nodes = [
        helper.make_node(("Neg", "Abs")[i % 2], [f"v{i}"], [f"v{i + 1}"], name="same")
        for i in range(count)
    ]
    model = text("(float[2] v0) => (float[2] y) { y = Relu (v0) }")
    model.graph.node[0].input[0] = f"v{count}"
    model.graph.node.extend(reversed(nodes))
    return model


@pytest.mark.slow
def test_a_chain_of_20_000_nodes_in_reverse_order() -> None:
    model = chain(20_000)
    start = time.perf_counter()
    artifact = converted(model)
    assert time.perf_counter() - start < 120  # About 20 seconds on a slow machine.
    np.testing.assert_array_equal(run(artifact, v0=X)["y"], np.abs(X))


def test_nothing_recurses_by_the_number_of_nodes() -> None:
    model = chain(3000).SerializeToString()
    # The first use of onnx, numpy and pydantic needs deeper calls.
    converted(chain(2))
    with recursion_limit(120):
        artifact = converted(onnx.load_from_string(model))
    np.testing.assert_array_equal(run(artifact, v0=X)["y"], np.abs(X))


def test_thirty_nested_ifs() -> None:
    model = nested(30)
    onnx.ModelProto().ParseFromString(model.SerializeToString())
    artifact = converted(model)
    for flag in (True, False):
        expected = run(model.SerializeToString(), c=np.array(flag), x=X)
        np.testing.assert_array_equal(run(artifact, c=np.array(flag), x=X)["y"], expected["y"])


def test_nodes_of_one_name_are_renamed() -> None:
    model = onnx.load_from_string(converted(chain(3)))
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names)


def shadowing() -> ModelProto:
    """A subgraph that defines a value with the name of one in the outer graph."""
    return text(
        """(bool c, float[2] x) => (float[2] y) {
            h = Neg (x)
            z = If (c) <then_branch = t () => (float[2] a) { h = Abs (x)  a = Add (h, h) },
                        else_branch = e () => (float[2] b) { b = Neg (h) }>
            y = Add (z, h)
        }"""
    )


def test_a_subgraph_may_shadow_a_name() -> None:
    artifact = converted(shadowing())
    np.testing.assert_array_equal(run(artifact, c=np.array(True), x=X)["y"], 2 * np.abs(X) - X)
    np.testing.assert_array_equal(run(artifact, c=np.array(False), x=X)["y"], X - X)


def with_default() -> ModelProto:
    model = text("(float[2] x, float[2] w) => (float[2] y) { y = Add (x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    return model


def same_opset_twice() -> ModelProto:
    model = text("(float[2] x) => (float[2] y) { y = Identity (x) }")
    model.opset_import.add(domain="ai.onnx", version=17)
    return model


def no_nodes() -> ModelProto:
    model = text("(float[2] x) => (float[2] x) { }")
    return model


def unsorted_function() -> ModelProto:
    return onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[2] x) => (float[2] y) { y = local.f (x) }
        <domain: "local", opset_import: ["": 17]>
        f (a) => (b) { b = Neg (c)  c = Abs (a) }"""
    )


@pytest.mark.parametrize(
    ("make", "name", "expected"),
    [
        (with_default, "y", X + 1),
        (same_opset_twice, "y", X),
        (no_nodes, "x", X),
        (unsorted_function, "y", -np.abs(X)),
    ],
)
def test_unusual_models_are_accepted(
    make: Callable[[], ModelProto], name: str, expected: np.ndarray
) -> None:
    np.testing.assert_array_equal(run(converted(make()), x=X)[name], expected)


def test_a_link_of_the_hugging_face_cache_where_it_is_allowed(tmp_path: Path) -> None:
    path = cache(tmp_path)
    artifact = converted(path, allow_hf_cache=True)
    np.testing.assert_array_equal(run(artifact, x=X)["y"], X)
    assert tersor.inspect(path, allow_hf_cache=True).parameters == 2


def test_a_linked_model_has_its_data_next_to_the_file(tmp_path: Path) -> None:
    path = in_folder(external())(tmp_path)
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    np.testing.assert_array_equal(run(converted(link), x=X)["y"], X)


def test_a_checksum_that_is_right(tmp_path: Path) -> None:
    sha1_of_eight_zeros = "05fe405753166f125559e7c9ac558654f107c7e9"
    path = in_folder(external(checksum=sha1_of_eight_zeros))(tmp_path)
    np.testing.assert_array_equal(run(converted(path), x=X)["y"], X)


def test_many_external_files_do_not_use_up_descriptors(tmp_path: Path) -> None:
    model = text("(float[2] x) => (float[2] y) { y = Relu (x) }")
    for i in range(300):
        tensor = onnx.TensorProto()
        tensor.CopyFrom(external(f"w{i}.bin").graph.initializer[0])
        tensor.name = f"w{i}"
        model.graph.initializer.append(tensor)
        (tmp_path / f"w{i}.bin").write_bytes(bytes(8))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    before = len(os.listdir("/proc/self/fd"))
    graph = import_model(path)
    assert len(graph.constants) == 300
    assert len(os.listdir("/proc/self/fd")) < before + 20


# Declared shapes that contradict the inferred ones: ONNX Runtime only warns.
CONFLICTS = {
    "value_info of another shape": (declared("h", [3]), "Relu %h: 'h' is f32[2], but the model declares f32[3]"),
    "value_info of another rank": (declared("h", [2, 1]), "Relu %h: 'h' is f32[2], but the model declares f32[2, 1]"),
    "an output of another shape": (text("(float[2] x) => (float[3] y) { y = Relu (x) }"), "Relu %y: 'y' is f32[2], but the model declares f32[3]"),
    "an output of another rank": (text("(float[2] x) => (float[1, n] y) { y = Relu (x) }"), "Relu %y: 'y' is f32[2], but the model declares f32[1, n]"),
    "two outputs": (text("(float[2] x) => (float[3] y, float[4] z) { y = Relu (x)  z = Neg (x) }"), "Relu %y: 'y' is f32[2], but the model declares f32[3] (and 1 more)"),
    "an input returned as another type": (text("(float[2] x) => (float[3] x, float[2] y) { y = Relu (x) }"), "value 'x' is f32[2], but the model declares f32[3]"),
    "a shape in a branch": (text("(float[2] x) => (float[2] y) { c = Constant <value = bool {1}> () y = If (c) <then_branch = a () => (float[3] t) { t = Relu (x) }, else_branch = b () => (float[2] e) { e = Neg (x) }> }"), "Relu %t: 't' is f32[2], but the model declares f32[3]"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFLICTS)
def test_a_conflicting_shape_is_a_remark(name: str) -> None:
    model, remark = CONFLICTS[name]
    artifact = tersor.convert(model)
    decision = Decision("import", f"{remark}: using the inferred shape")
    assert decision in artifact.report.decisions
    assert isinstance(artifact.model, bytes)
    want, got = run(model.SerializeToString(), x=X), run(artifact.model, x=X)
    assert {k: v.tolist() for k, v in want.items()} == {k: v.tolist() for k, v in got.items()}


@pytest.mark.parametrize(("ir_version", "remarked"), [(3, False), (8, True)])
def test_inputs_with_defaults_become_constants(ir_version: int, remarked: bool) -> None:
    model = text(
        "(float[2] x, float[2] k, float[2] l) => (float[2] y) { h = Mul (x, k)  y = Add (h, l) }"
    )
    for name in ("k", "l"):
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.float32), name))
    model.ir_version = ir_version
    artifact = tersor.convert(model)
    line = "the default of input 'k' and 1 more became a constant: callers cannot override it"
    assert (Decision("import", line) in artifact.report.decisions) == remarked
    assert artifact.run({"x": X})["y"].tolist() == [4.0, -3.0]
