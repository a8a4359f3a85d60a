"""Steps with ops that nothing is known of, and standard ops that read what those make."""

from __future__ import annotations

import numpy as np

from strategies.builder import Builder
from tersor.ir import UnknownType, Value

READERS = [
    "Relu", "Add", "Mul", "MatMul", "Transpose", "Reshape", "Softmax", "LayerNormalization", "Gather", "Concat",
    "ReduceMean", "Where", "Shape", "Cast", "Identity", "Unsqueeze", "Slice", "Split", "Attention", "Gemm", "Pow",
]  # fmt: skip


def opaque(b: Builder) -> None:
    """A foreign op with one or two results of unknown type."""
    count = b.integer(1, 2)
    made = b.graph.emit_node(
        "com.foreign.Odd",
        [b.float(), None, b.weight(4)][: b.integer(1, 3)],
        {"k": b.integer(0, 3), "raw": b"\x00\xff"},
        names=[""] * count,
        types=[UnknownType()] * count,
    )
    for _ in range(b.integer(0, 3)):
        reader(b, made.outputs[b.integer(0, count - 1)])


def reader(b: Builder, x: Value) -> Value:
    """A standard op on a value that may be anything."""
    op = str(b.pick(READERS))
    match op:
        case "Add" | "Mul" | "MatMul" | "Pow" | "Gemm":
            y = b.float() if b.integer(0, 1) else b.weight(4, 4)
            return b.emit(op, *((x, y) if b.integer(0, 1) else (y, x)))
        case "Reshape" | "Unsqueeze" | "ReduceMean":
            return b.emit(op, x, b.ints(-1))
        case "Slice":
            return b.emit(op, x, b.ints(0), b.ints(1), b.ints(0), b.ints(1))
        case "Gather":
            return b.emit(op, x, b.graph.constant(np.array(0)), axis=0)
        case "LayerNormalization":
            return b.emit(op, x, b.weight(4))
        case "Concat":
            return b.emit(op, x, x, axis=0)
        case "Where":
            return b.emit(op, b.emit("Greater", x, b.number(0.0)), x, b.number(1.0))
        case "Cast":
            return b.emit(op, x, to=1)
        case "Split":
            return b.node(op, [x], {"axis": 0, "num_outputs": 2}, 2).outputs[0]
        case "Attention":
            return b.emit(op, x, x, x)
    return b.emit(op, x)
