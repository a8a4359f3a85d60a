"""Types of what quantized models are made of: ONNX Runtime's int8 LSTM, convolutions of integers.

Behind them lie shape chains, which fold where the types are known.
"""

from __future__ import annotations

import numpy as np
import pytest

from tersor.ir import DType, Graph, TensorType, symbol
from tersor.ops import TABLE

LENGTH, BATCH, WIDTH = symbol("t"), symbol("b"), symbol("w")


def lstm(directions: int, results: int = 3, known: bool = True) -> Graph:
    graph = TABLE.graph()
    dims = (LENGTH, BATCH, 3) if known else None
    x = graph.add_input("x", TensorType(DType.F32, dims))

    def held(*shape: int, dtype: type = np.int8) -> object:
        return graph.constant(np.ones(shape, dtype))

    w, r = held(directions, 3, 20), held(directions, 5, 20)
    scale, zero = held(directions, dtype=np.float32), held(directions)
    attrs = {"hidden_size": 5, "direction": "bidirectional" if directions == 2 else "forward"}
    operands = [x, w, r, None, None, None, None, None, scale, zero, scale, zero]
    node = graph.emit_node(
        "com.microsoft.DynamicQuantizeLSTM",
        operands,
        attrs,
        names=[""] * results,  # type: ignore[arg-type]
    )
    graph.set_outputs(node.outputs, [f"y{i}" for i in range(results)])
    return graph


@pytest.mark.parametrize("directions", [1, 2])
def test_an_int8_lstm_has_the_types_of_an_lstm(directions: int) -> None:
    y, h, c = (v.tensor for v in lstm(directions).outputs)
    assert y == TensorType(DType.F32, (LENGTH, directions, BATCH, 5))
    assert h == c == TensorType(DType.F32, (directions, BATCH, 5))


def test_of_an_operand_that_is_not_known_the_rest_is() -> None:
    (y,) = (v.tensor for v in lstm(2, results=1, known=False).outputs)
    assert y == TensorType(DType.F32, (None, 2, None, 5))


def test_a_convolution_of_integers_keeps_open_dims() -> None:
    graph = TABLE.graph()
    x = graph.add_input("x", TensorType(DType.U8, (BATCH, 3, 8, WIDTH)))
    w = graph.constant(np.ones((4, 3, 3, 3), np.uint8))
    y = graph.emit("ConvInteger", [x, w], {"pads": (1, 1, 1, 1), "strides": (2, 1)})
    assert y.tensor == TensorType(DType.I32, (BATCH, 4, 4, WIDTH))
