"""Small models that tests of the command line compile."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def two_layers() -> onnx.ModelProto:
    """y = relu(x W1 + b) W2 on x[batch, seq, 16], with module names."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((16, 64)).astype(np.float32) / 4,
        "b1": rng.standard_normal(64).astype(np.float32),
        "w2": rng.standard_normal((64, 16)).astype(np.float32) / 8,
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="/layer.0/up/MatMul"),
        helper.make_node("Add", ["h", "b1"], ["s"], name="/layer.0/up/Add"),
        helper.make_node("Relu", ["s"], ["r"], name="/layer.0/act/Relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="/layer.0/down/MatMul"),
    ]
    dims = ["batch", "seq", 16]
    graph = helper.make_graph(
        nodes,
        "two_layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return model_of(graph)


def one_node(op: str, inputs: list[str], name: str) -> onnx.ModelProto:
    """A node on x[batch, 4] that makes y."""
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], name=name)],
        "one_node",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    return model_of(graph)


def model_of(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
