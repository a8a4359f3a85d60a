"""Updates forms of standard ops that ended before opset 11.

Mostly attributes that became operands; and before 7, ONNX did not broadcast as numpy does.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tersor.errors import Unsupported
from tersor.frontends.onnx.legacy import Adapter, LegacyNode, to_operand
from tersor.ir import Graph, TensorType, UnknownType, Value, ValueType


def _batch_normalization(node: LegacyNode) -> None:
    """Before 9, ``spatial=0`` meant separate statistics for every position of a channel."""
    node.attrs.pop("is_test", None)  # Before 7; redundant with the number of outputs.
    if node.attrs.pop("spatial", 1):
        return
    x, scale, bias, mean, variance = node.inputs
    dtype = node.dtype(0)
    epsilon = node.constant(
        node.attrs.get("epsilon", 1e-5), "epsilon", dtype.numpy if dtype else np.float32
    )
    deviation = node.emit("Sqrt", node.emit("Add", variance, epsilon))
    normalized = node.emit("Div", node.emit("Sub", x, mean), deviation)
    node.op, node.inputs, node.attrs = "Add", [node.emit("Mul", normalized, scale), bias], {}


def _broadcast(node: LegacyNode) -> None:
    """Before 7, operand 1 was broadcast to operand 0 if ``broadcast`` was set, its first axis aligned with
    ``axis``; without ``axis``, the last axes were aligned."""
    axis, broadcast = node.attrs.pop("axis", None), node.attrs.pop("broadcast", 0)
    if not broadcast or not isinstance(axis, int):
        return
    rank, inner = node.rank(0), node.rank(1)
    if rank is None or inner is None:
        raise Unsupported(
            "broadcasts along an axis (opset < 7), but its operands' ranks are unknown: export the "
            "model at a newer opset"
        )
    missing = rank - (axis % rank if rank else 0) - inner
    if missing > 0:
        axes = node.constant(range(inner, inner + missing), "axes")
        node.set_operand(1, node.emit("Unsqueeze", node.operand(1), axes))


def _cast(node: LegacyNode) -> None:
    """Before 6, ``to`` was the type's name."""
    name = node.attrs.get("to")
    if isinstance(name, str) and name.upper() in dict(TensorProto.DataType.items()):
        node.attrs["to"] = int(TensorProto.DataType.Value(name.upper()))


def _limit(name: str, index: int) -> Adapter:
    """The attribute ``name``, a number, became operand ``index``, of the first operand's type."""

    def adapt(node: LegacyNode) -> None:
        if name in node.attrs:
            dtype = node.dtype(0)
            number = node.attrs.pop(name)
            kind = dtype.numpy if dtype else np.float32
            node.set_operand(index, node.constant(number, name, kind))

    return adapt


def _concat(node: LegacyNode) -> None:
    """Before 4, ``axis`` could be left out and was 1."""
    node.attrs.setdefault("axis", 1)


def _dropout(node: LegacyNode) -> None:
    """Before 7, it dropped elements unless ``is_test`` was set."""
    if not node.attrs.pop("is_test", 0):
        node.set_operand(2, node.constant(True, "training_mode", np.bool_))


def _dropout_mask(node: LegacyNode) -> None:
    """Before 10, the mask had the data's type; now it is boolean."""
    dtype = node.dtype(0)
    if node.outputs > 1 and dtype is not None:
        node.casts[1] = dtype


def _gemm(node: LegacyNode) -> None:
    """Before 7, ``broadcast`` had to be set if the third operand is broadcast."""
    node.attrs.pop("broadcast", None)


def _norm_order(node: LegacyNode) -> None:
    """Before 2, ``p`` was a float."""
    if "p" in node.attrs:
        order = float(node.attrs["p"])  # type: ignore[arg-type]
        if not order.is_integer():
            raise Unsupported(f"p is {order} (opset 1): ONNX now supports only integers")
        node.attrs["p"] = int(order)


def _pad(node: LegacyNode) -> None:
    """Before 2, ``pads`` was named ``paddings``."""
    if "paddings" in node.attrs:
        node.attrs["pads"] = node.attrs.pop("paddings")


def _prelu(node: LegacyNode) -> None:
    """Before 7, the slope had one element, or one per channel (axis 1)."""
    rank, slope = node.rank(0), node.tensor_type(1)
    if slope is None or slope.dims in ((), (1,)):
        return
    if rank is None or slope.rank != 1:
        raise Unsupported(
            "its operands' ranks are unknown (opset < 7): export the model at a newer opset"
        )
    if rank > 2:
        axes = node.constant(range(1, rank - 1), "axes")
        node.set_operand(1, node.emit("Unsqueeze", node.operand(1), axes))


def _recurrent(node: LegacyNode) -> None:
    """Before 7, ``output_sequence`` stated whether the first result is present."""
    node.attrs.pop("output_sequence", None)


def _resize(node: LegacyNode) -> None:
    """Resize-10 had no ``roi`` and used ``asymmetric`` coordinates. In mode ``nearest``, ONNX Runtime rounds
    down along axes that grow and up along axes that shrink: two Resizes, if both can occur."""
    x, scales = node.operand(0), node.operand(1)
    node.attrs.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    node.inputs = [x, None, scales]
    if node.attrs.get("mode", "nearest") != "nearest" or scales is None:
        return
    known = scales.numpy() if scales.is_constant else None
    if known is None or (known < 1).any():
        if known is None or (known > 1).any():
            one = node.constant([1], "one", np.float32)
            node.inputs[0] = node.emit(
                "Resize", x, None, node.emit("Max", scales, one), **node.attrs
            )
            node.inputs[2] = node.emit("Min", scales, one)
        node.attrs["nearest_mode"] = "ceil"


def _scan(node: LegacyNode) -> None:
    """Scan-8 had a batch axis before the scanned one: a Scan over the batch around the Scan replaces it."""
    if node.operand(0) is not None:
        raise Unsupported("has sequence_lens (opset 8): export the model at a newer opset")
    operands = node.inputs[1:]
    body = node.attrs.pop("body")
    assert isinstance(body, Graph)
    batch = Graph(f"{body.name}_batch", None, node.graph)
    inner: list[Value | None] = [
        batch.add_input(v.name if v is not None else "x", _without_batch(v)) for v in operands
    ]
    attrs = {"body": body, "num_scan_inputs": node.attrs["num_scan_inputs"]}
    if "directions" in node.attrs:
        attrs["scan_input_directions"] = node.attrs.pop("directions")
    scan = batch.emit_node("Scan", inner, attrs, names=[""] * node.outputs, scope=node.scope)
    batch.set_outputs(scan.outputs)
    node.inputs, node.attrs = operands, {"body": batch, "num_scan_inputs": len(operands)}


def _without_batch(value: Value | None) -> ValueType:
    if value is None or not isinstance(value.type, TensorType):
        return UnknownType()
    return value.type.with_dims(value.type.dims[1:] if value.type.dims else None)


def _selu(node: LegacyNode) -> None:
    """The defaults gained digits at 6."""
    node.attrs.setdefault("alpha", 1.6732)
    node.attrs.setdefault("gamma", 1.0507)


def _tile(node: LegacyNode) -> None:
    """Before 6, it repeated along one axis; its operands were ``tiles`` and ``axis``."""
    tiles, axis, rank = node.operand(1), node.operand(2), node.rank(0)
    if tiles is None or axis is None or rank is None or not axis.is_constant:
        raise Unsupported(
            "its axis is not constant, or its operand's rank unknown (opset < 6): export the model at a "
            "newer opset"
        )
    at = int(axis.numpy().reshape(-1)[0]) % rank
    count = node.emit("Cast", tiles, to=TensorProto.INT64)
    count = node.emit("Reshape", count, node.constant([1], "shape"))
    before, after = (node.constant([1] * n, "ones") for n in (at, rank - 1 - at))
    node.inputs = [node.operand(0), node.emit("Concat", before, count, after, axis=0)]


def _top_k(node: LegacyNode) -> None:
    """Before 10, ``k`` was an attribute."""
    if "k" in node.attrs:
        node.set_operand(1, node.constant([node.attrs.pop("k")], "k"))


def _upsample_1(node: LegacyNode) -> None:
    """Before 7, there was one scale for height and one for width."""
    scales = [1.0, 1.0, node.attrs.pop("height_scale", 1.0), node.attrs.pop("width_scale", 1.0)]
    node.attrs.setdefault("scales", tuple(scales))  # type: ignore[arg-type]
    if node.attrs.get("mode") == "bilinear":
        node.attrs["mode"] = "linear"


def _upsample_7(node: LegacyNode) -> None:
    """Before 9, ``scales`` was an attribute."""
    if "scales" in node.attrs:
        node.set_operand(1, node.constant(node.attrs.pop("scales"), "scales", np.float32))


_BROADCAST = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")

# As ``normalize.ADAPTERS``, which applies these first.
BEFORE_11: dict[str, tuple[tuple[int, Adapter], ...]] = {
    "BatchNormalization": ((9, _batch_normalization),),
    "Cast": ((6, _cast),),
    "Clip": ((11, _limit("min", 1)), (11, _limit("max", 2))),
    "Concat": ((4, _concat),),
    "Dropout": ((7, _dropout), (10, _dropout_mask)),
    "GRU": ((7, _recurrent),),
    "Gemm": ((7, _gemm),),
    "GlobalLpPool": ((2, _norm_order),),
    "LSTM": ((7, _recurrent),),
    "LpPool": ((2, _norm_order),),
    "PRelu": ((7, _prelu),),
    "Pad": ((2, _pad), (11, to_operand("pads", 1)), (11, _limit("value", 2))),
    "RNN": ((7, _recurrent),),
    "Reshape": ((5, to_operand("shape", 1)),),
    "Resize": ((11, _resize),),
    "Scan": ((9, _scan),),
    "Selu": ((6, _selu),),
    "Slice": (
        (10, to_operand("starts", 1)),
        (10, to_operand("ends", 2)),
        (10, to_operand("axes", 3)),
    ),
    "Tile": ((6, _tile),),
    "TopK": ((10, _top_k),),
    "Upsample": ((7, _upsample_1), (9, _upsample_7)),
    **dict.fromkeys(_BROADCAST, ((7, _broadcast),)),
}
