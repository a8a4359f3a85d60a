"""CumSum along every axis against ONNX Runtime, with lengths that fill no whole vectors, and none at all."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from contract import compiled_in_tvm, run_in_onnx

from tersor.ir import Graph, parse
from tersor.ops import TABLE

pytest.importorskip("tvm", reason="the tvm backend is not installed")

FORMS = list(product(("f32", "i64"), (0, 1, 2), (0, 1), (0, 1)))


def graph_of(dtype: str, axis: int, exclusive: int, reverse: int) -> Graph:
    type = f"{dtype}[a, b, c]"
    return parse(
        f"""graph main(%x: {type}) -> (y = %y) {{
          @axis: i64[] = dense [{axis}]
          %y: {type} = CumSum(%x, @axis) {{exclusive = {exclusive}, reverse = {reverse}}}
        }}""",
        TABLE,
    )


def test_every_axis() -> None:
    """Sums of whole numbers are exact in every order."""
    graphs = [graph_of(*form) for form in FORMS]
    rng = np.random.default_rng(0)
    for graph, run in zip(graphs, compiled_in_tvm(*graphs), strict=True):
        dtype = graph.inputs[0].tensor.dtype.numpy
        for shape in ((3, 20, 37), (1, 1, 1), (16, 5, 48), (2, 0, 3), (2, 3, 0)):
            x = rng.integers(-9, 9, shape).astype(dtype)
            (want,) = run_in_onnx(graph, {"x": x}, False)
            (got,) = run({"x": x})
            np.testing.assert_array_equal(got, want)
