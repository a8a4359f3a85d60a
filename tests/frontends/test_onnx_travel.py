"""An exported file preserves element types, types, domains and metadata of the imported one."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tersor.frontends.onnx import export_model, import_model
from tersor.ir import DType, parse, print_graph, weights_of
from tersor.ops import TABLE
from tersor.ops.onnx_schema import TO_ONNX
from tersor.passes import optimization
from tersor.pipeline import Pipeline

info = helper.make_tensor_value_info


def every_code(dtype: DType) -> np.ndarray:
    """All bit patterns of a type, with NaNs and both zeros; of wide types a sample."""
    if dtype is DType.STRING:
        return np.array(["", "a", "é", "x" * 300, "\x1b[0m"], object)
    if dtype is DType.BOOL:
        return np.array([True, False, True])
    if dtype.bits >= 8:
        random = np.random.default_rng(0).integers(0, 256, 257 * dtype.numpy.itemsize, np.uint8)
        codes = np.arange(256, dtype=np.uint8) if dtype.bits == 8 else random
        return codes.view(dtype.numpy)
    if dtype.is_float:
        return np.arange(16, dtype=np.uint8).view(dtype.numpy)
    low = -(2 ** (dtype.bits - 1)) if dtype.value[0] == "i" else 0
    return np.arange(low, low + 2**dtype.bits).astype(dtype.numpy)[:-1]  # not a whole byte's


def tensor(dtype: DType, name: str = "") -> TensorProto:
    return numpy_helper.from_array(every_code(dtype), name)


def same(exported: TensorProto, original: TensorProto) -> bool:
    """The same type, dims and bits."""
    a, b = numpy_helper.to_array(exported), numpy_helper.to_array(original)
    equal = a.tolist() == b.tolist() if a.dtype.hasobject else a.tobytes() == b.tobytes()
    return equal and (exported.data_type, list(exported.dims)) == (
        original.data_type,
        list(original.dims),
    )


def model(
    nodes: list, inputs: list, outputs: list, initializers: list | None = None, ml: int = 3
) -> ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers or [])
    opsets = {"": 21, "org.example": 7, "ai.onnx.ml": ml}
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*o) for o in opsets.items()], ir_version=10
    )


@pytest.mark.parametrize("dtype", DType, ids=lambda d: d.value)
def test_every_element_type_is_preserved(dtype: DType) -> None:
    """As an initializer, the value of a Constant, an attribute of an opaque op, and an element of a list attribute."""
    n = len(every_code(dtype))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor(dtype)),
        helper.make_node(
            "Op",
            ["i", "c"],
            ["y"],
            domain="org.example",
            one=tensor(dtype),
            many=[tensor(dtype)] * 2,
        ),
    ]
    original = model(nodes, [], [info("y", TO_ONNX[dtype], [n])], [tensor(dtype, "i")])
    graph = Pipeline(optimization()).run(import_model(original))
    assert print_graph(parse(print_graph(graph), TABLE, weights_of(graph))) == print_graph(graph)
    exported = export_model(graph)
    (node,) = exported.graph.node
    initializers = {t.name: t for t in exported.graph.initializer}
    attributes = {a.name: a for a in node.attribute}
    tensors = [
        *(initializers[name] for name in node.input),
        attributes["one"].t,
        *attributes["many"].tensors,
    ]
    assert len(tensors) == 5
    assert all(same(t, tensor(dtype)) for t in tensors)
    assert exported.graph.output[0] == original.graph.output[0]


TYPES = {
    "no-shape": helper.make_tensor_type_proto(TensorProto.FLOAT, None),
    "no-dims": helper.make_tensor_type_proto(TensorProto.FLOAT, []),
    "symbols": helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 3, "2*batch"]),
    "sequence": helper.make_sequence_type_proto(
        helper.make_tensor_type_proto(TensorProto.STRING, ["n"])
    ),
    "optional": helper.make_optional_type_proto(
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.INT64, [2]))
    ),
    "map": helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    ),
    "sequence-of-maps": helper.make_sequence_type_proto(
        helper.make_map_type_proto(
            TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
    ),
}


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_preserved(kind: str) -> None:
    def value(name: str) -> ValueInfoProto:
        return helper.make_value_info(name, TYPES[kind])

    node = helper.make_node("Op", ["x"], ["y"], domain="org.example", type=TYPES[kind])
    original = model([node], [value("x")], [value("y")])
    graph = Pipeline(optimization(), level="text").run(import_model(original))
    exported = export_model(graph)
    assert list(exported.graph.input) == list(original.graph.input)
    assert list(exported.graph.output) == list(original.graph.output)
    assert exported.graph.node[0].attribute == original.graph.node[0].attribute


def test_domains_keep_their_versions() -> None:
    node = helper.make_node("Op", ["x"], ["y"], domain="org.example")
    original = model([node], [info("x", 1, [2])], [info("y", 1, [2])])
    notes = {"author": "me", "opset_import.org.example": "many"}
    helper.set_model_props(original, notes)
    exported = export_model(import_model(original))
    assert {o.domain: o.version for o in exported.opset_import}["org.example"] == 7
    assert {p.key: p.value for p in exported.metadata_props} == notes


_LEAVES = {
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_values": [0.5, 0.0, 0.0],
    "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0, 0, 0],
    "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
    "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0],
    "target_weights": [1.0, 2.0], "n_targets": 1,
}  # fmt: skip
_ROWS = np.array([[0.2, 0.8], [0.7, 0.3]], np.float32)
CLASSICAL = {
    "LabelEncoder-1": ({"classes_strings": ["b", "a"], "default_int64": -1}, np.array(["a", "c"], object), 7),
    "LabelEncoder-2": ({"keys_strings": ["a", "b"], "values_int64s": [5, 6]}, np.array(["b", "a"], object), 7),
    "TreeEnsembleRegressor-3": (_LEAVES, _ROWS, 1),
    "Normalizer-1": ({"norm": "L1"}, _ROWS, 1),
    "ArrayFeatureExtractor-1": ({}, _ROWS, 1),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASSICAL)
def test_classical_models_keep_their_version(case: str) -> None:
    attributes, x, kind = CLASSICAL[case]
    op, version = case.split("-")
    operands = ["x", "at"] if op == "ArrayFeatureExtractor" else ["x"]
    node = helper.make_node(op, operands, ["y"], domain="ai.onnx.ml", **attributes)
    at = numpy_helper.from_array(np.array([1]), "at")
    dims = [None] * (2 if x.ndim == 2 else 1)
    original = model(
        [node],
        [info("x", 8 if x.dtype == object else 1, ["n", *x.shape[1:]])],
        [info("y", kind, dims)],
        [at][: len(operands) - 1],
        int(version),
    )
    exported = export_model(Pipeline(optimization()).run(import_model(original)))
    a, b = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x})
        for m in (original, exported)
    )
    np.testing.assert_array_equal(a[0], b[0])


def test_a_classifier_with_maps_runs() -> None:
    """ZipMap, the last op of converted scikit-learn classifiers."""
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[4, 9])
    y = helper.make_value_info("y", TYPES["sequence-of-maps"])
    exported = export_model(import_model(model([node], [info("x", 1, ["n", 2])], [y], ml=1)))
    (rows,) = onnxruntime.InferenceSession(exported.SerializeToString()).run(None, {"x": _ROWS})
    assert [list(row) for row in rows] == [[4, 9], [4, 9]]
