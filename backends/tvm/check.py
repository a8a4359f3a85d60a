"""Whether the installed TVM runs what this backend builds."""

from __future__ import annotations

import numpy as np

from tersor.backends.tvm.build import build
from tersor.backends.tvm.session import open_session
from tersor.errors import InvalidModel
from tersor.ir import DType, TensorType
from tersor.ops import TABLE


def check() -> list[str]:
    """Builds and runs a one-node model; returns remarks, one line each.

    Raises:
        Unsupported: there is no C compiler.
        InvalidModel: the system does not load the library, or it computes a wrong result.
    """
    graph = TABLE.graph("check")
    x = graph.add_input("x", TensorType(DType.F32, (2,)))
    graph.set_outputs([graph.emit("Add", [x, x])], ["y"])
    outputs = open_session(build(graph)).run({"x": np.array([1, 2], np.float32)})
    if (y := outputs["y"].tolist()) != [2, 4]:
        raise InvalidModel(f"TVM computed [1, 2] + [1, 2] = {y}")
    return []
