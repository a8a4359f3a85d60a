"""ConvTranspose against ONNX Runtime: strides that do and do not divide the kernel, dilations, groups, crops."""

from __future__ import annotations

import numpy as np
import pytest
from contract import compiled_in_tvm, run_in_onnx

from tersor.ir import Graph, parse
from tersor.ops import TABLE

pytest.importorskip("tvm", reason="the tvm backend is not installed")

# Sizes of the operand without its batch, of the weight, the attributes, and the result's spatial dims.
FORMS = {
    "a stride that divides the kernel": ("4, 19", "4, 3, 16", "strides = [8], pads = [4, 4]", "152"),
    "a longer kernel": ("4, 19", "4, 3, 5", "strides = [2]", "41"),
    "a shorter kernel": ("4, 19", "4, 3, 2", "strides = [3]", "56"),
    "dilation": ("4, 19", "4, 3, 3", "strides = [2], dilations = [3]", "43"),
    "groups": ("4, 19", "4, 3, 4", "strides = [2], group = 2", "40"),
    "output padding": ("4, 19", "4, 3, 4", "strides = [3], output_padding = [2]", "60"),
    "two axes": ("4, 7, 9", "4, 3, 3, 4", "strides = [2, 3], pads = [1, 0, 0, 2]", "14, 26"),
    "one of two dilated": ("4, 7, 9", "4, 3, 3, 2", "strides = [2, 1], dilations = [1, 4]", "15, 13"),
    "same size": ("4, 7, 9", "4, 3, 3, 3", 'strides = [2, 2], auto_pad = "SAME_LOWER"', "14, 18"),
}  # fmt: skip


def graph_of(name: str) -> Graph:
    x, weight, attributes, result = FORMS[name]
    groups = 2 if "group" in attributes else 1
    return parse(
        f"""graph main(%x: f32[n, {x}], %w: f32[{weight}], %b: f32[{3 * groups}]) -> (y = %y) {{
          %y: f32[n, {3 * groups}, {result}] = ConvTranspose(%x, %w, %b) {{{attributes}}}
        }}""",
        TABLE,
    )


def test_every_form() -> None:
    """Sums of small whole numbers are exact in every order."""
    graphs = [graph_of(name) for name in FORMS]
    rng = np.random.default_rng(0)
    for name, graph, run in zip(FORMS, graphs, compiled_in_tvm(*graphs), strict=True):
        for rows in (2, 1):
            inputs = {
                v.name: rng.integers(-9, 9, v.tensor.at({"n": rows})).astype(np.float32)
                for v in graph.inputs
            }
            (want,) = run_in_onnx(graph, inputs, False)
            (got,) = run(inputs)
            np.testing.assert_array_equal(got, want, err_msg=name)
