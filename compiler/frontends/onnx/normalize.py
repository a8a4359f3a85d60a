"""Older forms of standard ops, brought to what they are at ``IR_OPSET``.

Only forms matter here: where a newer opset merely admits more types, a node means the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tersor.errors import Unsupported
from tersor.ir import Attribute, Graph, TensorType, Value

Attrs = dict[str, Attribute]
Inputs = list[Value | None]
Adapter = Callable[[Graph, Inputs, Attrs, int], None]


def normalize(
    graph: Graph, op: str, inputs: Inputs, attrs: Attrs, opset: int, outputs: int
) -> tuple[str, Inputs, Attrs]:
    """Op, operands and attributes at ``IR_OPSET`` for a node written at ``opset``.

    Raises:
        Unsupported: a form that has no equal today.
    """
    inputs, attrs = list(inputs), dict(attrs)
    for until, adapter in ADAPTERS.get(op, ()):
        if opset < until:
            adapter(graph, inputs, attrs, outputs)
    return ("Resize" if op == "Upsample" else op), inputs, attrs


def _operand(inputs: Inputs, index: int, value: Value) -> None:
    inputs.extend([None] * (index + 1 - len(inputs)))
    inputs[index] = value


def _to_operand(name: str, index: int, dtype: type = np.int64) -> Adapter:
    """An attribute that has become operand ``index``."""

    def adapt(graph: Graph, inputs: Inputs, attrs: Attrs, outputs: int) -> None:
        if name in attrs:
            _operand(inputs, index, graph.constant(np.array(attrs.pop(name), dtype), name))

    return adapt


def _drop(*names: str) -> Adapter:
    """Attributes that have gone, and that say nothing about inference."""

    def adapt(graph: Graph, inputs: Inputs, attrs: Attrs, outputs: int) -> None:
        for name in names:
            attrs.pop(name, None)

    return adapt


def _flattening(op: str) -> Adapter:
    """Before 13, Softmax and its kin worked on a matrix: dims before ``axis`` times dims from it on,
    with ``axis`` 1 by default. The same as today's on the last axis; elsewhere, by reshaping."""

    def adapt(graph: Graph, inputs: Inputs, attrs: Attrs, outputs: int) -> None:
        axis, x = attrs.get("axis", 1), inputs[0]
        assert isinstance(axis, int) and x is not None
        rank = x.type.rank if isinstance(x.type, TensorType) else None
        if rank is None and axis != -1:
            raise Unsupported(f"{op} of opset < 13 on a tensor of unknown rank: its axis is not clear")
        if axis in (-1, (rank or 0) - 1):
            attrs["axis"] = -1
            return
        raise Unsupported(f"{op} of opset < 13 over axis {axis} and all later ones: export at opset 13")

    return adapt


def _split_outputs(graph: Graph, inputs: Inputs, attrs: Attrs, outputs: int) -> None:
    """Since 18, equal parts are asked for by ``num_outputs``."""
    if len(inputs) < 2 or inputs[1] is None:
        attrs["num_outputs"] = outputs


def _clip(graph: Graph, inputs: Inputs, attrs: Attrs, outputs: int) -> None:
    for index, name in ((1, "min"), (2, "max")):
        if name in attrs:
            _operand(inputs, index, graph.constant(np.array(attrs.pop(name), np.float32), name))


def _dropout(graph: Graph, inputs: Inputs, attrs: Attrs, outputs: int) -> None:
    if "ratio" in attrs:
        _operand(inputs, 1, graph.constant(np.array(attrs.pop("ratio"), np.float32), "ratio"))


def _group_norm(graph: Graph, inputs: Inputs, attrs: Attrs, outputs: int) -> None:
    """Before 21, scale and bias had one entry a group; today one a channel."""
    x = inputs[0]
    channels = x.tensor.dims[1] if x is not None and x.tensor.dims else None
    groups = attrs.get("num_groups")
    if not isinstance(channels, int) or not isinstance(groups, int):
        raise Unsupported("GroupNormalization of opset < 21 on an unknown number of channels")
    repeats = graph.constant(np.array([channels // groups]), "repeats")
    for index in (1, 2):
        value = inputs[index]
        assert value is not None
        column = graph.emit("Unsqueeze", [value, graph.constant(np.array([1]), "axes")])
        shape = graph.emit("Concat", [graph.constant(np.array([1]), "one"), repeats], {"axis": 0})
        wide = graph.emit("Tile", [column, shape])
        flat = graph.constant(np.array([-1]), "flat")
        inputs[index] = graph.emit("Reshape", [wide, flat])


_REDUCTIONS = (
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip

# Op -> (opset since which the newer form holds, adapter), oldest first.
ADAPTERS: dict[str, tuple[tuple[int, Adapter], ...]] = {
    "BatchNormalization": ((14, _drop("spatial")),),
    "Clip": ((11, _clip),),
    "Dropout": ((12, _dropout),),
    "GroupNormalization": ((21, _group_norm),),
    "Hardmax": ((13, _flattening("Hardmax")),),
    "LogSoftmax": ((13, _flattening("LogSoftmax")),),
    "Pad": ((11, _to_operand("pads", 1)),),
    "ReduceSum": ((13, _to_operand("axes", 1)),),
    "Softmax": ((13, _flattening("Softmax")),),
    "Split": ((13, _to_operand("split", 1)), (18, _split_outputs)),
    "Squeeze": ((13, _to_operand("axes", 1)),),
    "Unsqueeze": ((13, _to_operand("axes", 1)),),
    **{op: ((18, _to_operand("axes", 1)),) for op in _REDUCTIONS},
}
