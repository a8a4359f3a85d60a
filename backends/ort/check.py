"""Whether the installed ONNX Runtime runs what this backend builds."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tersor.backends.ort.session import build, open_session
from tersor.errors import InvalidModel, TersorError
from tersor.ir import DType, TensorType
from tersor.ops import TABLE


def check() -> list[str]:
    """Builds and runs a one-node model; returns remarks, one line each.

    Raises:
        InvalidModel: ONNX Runtime refuses the model, or computes a wrong result.
    """
    graph = TABLE.graph("check")
    x = graph.add_input("x", TensorType(DType.F32, (2,)))
    graph.set_outputs([graph.emit("Add", [x, x])], ["y"])
    outputs = open_session(build(graph)).run({"x": np.array([1, 2], np.float32)})
    if (y := outputs["y"].tolist()) != [2, 4]:
        raise InvalidModel(f"ONNX Runtime computed [1, 2] + [1, 2] = {y}")
    return _newer_onnx()


def _newer_onnx() -> list[str]:
    """A remark where onnx's default IR version or opset is too new for this ONNX Runtime."""
    info = helper.make_tensor_value_info
    x, y = info("x", TensorProto.FLOAT, [2]), info("y", TensorProto.FLOAT, [2])
    model = helper.make_model(
        helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "check", [x], [y])
    )
    try:
        open_session(model.SerializeToString())
    except TersorError:
        opset = max(o.version for o in model.opset_import)
        return [
            f"onnx {onnx.__version__} makes models of IR version {model.ir_version} and opset {opset} "
            "by default, which the installed onnxruntime cannot load; models written by tersor load"
        ]
    return []
