"""Forms of standard ops that ended before opset 11, brought to what followed them.

Mostly attributes that became operands; before 7, operands were not broadcast as numpy does it.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tersor.errors import Unsupported
from tersor.frontends.onnx.old import Adapter, Old, to_operand
from tersor.ir import Graph, TensorType, UnknownType, Value, ValueType


def _batch_normalization(old: Old) -> None:
    """Before 9, ``spatial=0`` gave every place of a channel statistics of its own."""
    old.attrs.pop("is_test", None)  # Before 7; the number of outputs said the same.
    if old.attrs.pop("spatial", 1):
        return
    x, scale, bias, mean, variance = old.inputs
    dtype = old.dtype(0)
    epsilon = old.constant(
        old.attrs.get("epsilon", 1e-5), "epsilon", dtype.numpy if dtype else np.float32
    )
    deviation = old.emit("Sqrt", old.emit("Add", variance, epsilon))
    normalized = old.emit("Div", old.emit("Sub", x, mean), deviation)
    old.op, old.inputs, old.attrs = "Add", [old.emit("Mul", normalized, scale), bias], {}


def _broadcast(old: Old) -> None:
    """Before 7, operand 1 was spread over operand 0 if ``broadcast`` said so, with its first dim at
    ``axis``, or without one its last dim at the last."""
    axis, spread = old.attrs.pop("axis", None), old.attrs.pop("broadcast", 0)
    if not spread or not isinstance(axis, int):
        return
    wide, narrow = old.rank(0), old.rank(1)
    if wide is None or narrow is None:
        raise Unsupported(f"{old.op} of opset < 7 with an axis, whose operands' ranks are unknown")
    missing = wide - (axis % wide if wide else 0) - narrow
    if missing > 0:
        axes = old.constant(range(narrow, narrow + missing), "axes")
        old.set_operand(1, old.emit("Unsqueeze", old.operand(1), axes))


def _cast(old: Old) -> None:
    """Before 6, ``to`` was the type's name."""
    name = old.attrs.get("to")
    if isinstance(name, str) and name.upper() in dict(TensorProto.DataType.items()):
        old.attrs["to"] = int(TensorProto.DataType.Value(name.upper()))


def _limit(name: str, index: int) -> Adapter:
    """The number ``name`` was an attribute, and is an operand of the first operand's type today."""

    def adapt(old: Old) -> None:
        if name in old.attrs:
            dtype = old.dtype(0)
            number = old.attrs.pop(name)
            kind = dtype.numpy if dtype else np.float32
            old.set_operand(index, old.constant(number, name, kind))

    return adapt


def _concat(old: Old) -> None:
    """Before 4, ``axis`` could be left out and was 1."""
    old.attrs.setdefault("axis", 1)


def _dropout(old: Old) -> None:
    """Before 7, it dropped unless ``is_test``."""
    if not old.attrs.pop("is_test", 0):
        old.set_operand(2, old.constant(True, "training_mode", np.bool_))


def _dropout_mask(old: Old) -> None:
    """Before 10, the mask was of the data's type; today it is boolean."""
    dtype = old.dtype(0)
    if old.outputs > 1 and dtype is not None:
        old.casts[1] = dtype


def _gemm(old: Old) -> None:
    """Before 7, ``broadcast`` had to say that the third operand is spread."""
    old.attrs.pop("broadcast", None)


def _norm_order(old: Old) -> None:
    """Before 2, ``p`` was a float."""
    if "p" in old.attrs:
        order = float(old.attrs["p"])  # type: ignore[arg-type]
        if not order.is_integer():
            raise Unsupported(f"{old.op} of opset 1 with p={order}: only whole p are left in ONNX")
        old.attrs["p"] = int(order)


def _pad(old: Old) -> None:
    """Before 2, ``pads`` were called ``paddings``."""
    if "paddings" in old.attrs:
        old.attrs["pads"] = old.attrs.pop("paddings")


def _prelu(old: Old) -> None:
    """Before 7, the slope had one entry, or one a channel (axis 1)."""
    rank, slope = old.rank(0), old.operand(1)
    if slope is None or not isinstance(slope.type, TensorType) or slope.type.dims in ((), (1,)):
        return
    if rank is None or slope.type.rank != 1:
        raise Unsupported("PRelu of opset < 7 whose operands' ranks are unknown")
    if rank > 2:
        axes = old.constant(range(1, rank - 1), "axes")
        old.set_operand(1, old.emit("Unsqueeze", slope, axes))


def _recurrent(old: Old) -> None:
    """Before 7, ``output_sequence`` said what the presence of the first result says."""
    old.attrs.pop("output_sequence", None)


def _resize(old: Old) -> None:
    """Resize-10 had no ``roi``, and the positions of ``asymmetric``. The nearest was the one below, and
    of an axis that shrinks the one above, as ONNX Runtime has it: today, one Resize after the other."""
    x, scales = old.operand(0), old.operand(1)
    old.attrs.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    old.inputs = [x, None, scales]
    if old.attrs.get("mode", "nearest") != "nearest" or scales is None:
        return
    held = scales.numpy() if scales.is_constant else None
    if held is None or (held < 1).any():
        if held is None or (held > 1).any():
            one = old.constant([1], "one", np.float32)
            old.inputs[0] = old.emit("Resize", x, None, old.emit("Max", scales, one), **old.attrs)
            old.inputs[2] = old.emit("Min", scales, one)
        old.attrs["nearest_mode"] = "ceil"


def _scan(old: Old) -> None:
    """Scan-8 had a batch axis before the scanned one: today, a Scan over the batch around the Scan."""
    if old.operand(0) is not None:
        raise Unsupported("Scan of opset 8 with sequence_lens: export the model at a newer opset")
    operands = old.inputs[1:]
    body = old.attrs.pop("body")
    assert isinstance(body, Graph)
    batch = Graph(f"{body.name}_batch", None, old.graph)
    inner: list[Value | None] = [
        batch.add_input(v.name if v is not None else "x", _without_batch(v)) for v in operands
    ]
    attrs = {"body": body, "num_scan_inputs": old.attrs["num_scan_inputs"]}
    if "directions" in old.attrs:
        attrs["scan_input_directions"] = old.attrs.pop("directions")
    made = batch.emit_node("Scan", inner, attrs, names=[""] * old.outputs, scope=old.scope)
    batch.set_outputs(made.outputs)
    old.inputs, old.attrs = operands, {"body": batch, "num_scan_inputs": len(operands)}


def _without_batch(value: Value | None) -> ValueType:
    if value is None or not isinstance(value.type, TensorType):
        return UnknownType()
    return value.type.with_dims(value.type.dims[1:] if value.type.dims else None)


def _selu(old: Old) -> None:
    """The defaults have gained digits at 6."""
    old.attrs.setdefault("alpha", 1.6732)
    old.attrs.setdefault("gamma", 1.0507)


def _tile(old: Old) -> None:
    """Before 6, it repeated along one axis: operands ``tiles`` and ``axis``."""
    tiles, axis, rank = old.operand(1), old.operand(2), old.rank(0)
    if tiles is None or axis is None or rank is None or not axis.is_constant:
        raise Unsupported("Tile of opset < 6 whose axis is no constant: export at a newer opset")
    at = int(axis.numpy().reshape(-1)[0]) % rank
    count = old.emit("Reshape", old.emit("Cast", tiles, to=TensorProto.INT64), _vector(old))
    ones = [old.constant([1] * n, "ones") for n in (at, rank - 1 - at)]
    old.inputs = [old.operand(0), old.emit("Concat", ones[0], count, ones[1], axis=0)]


def _vector(old: Old) -> Value:
    return old.constant([1], "shape")


def _top_k(old: Old) -> None:
    """Before 10, ``k`` was an attribute."""
    if "k" in old.attrs:
        old.set_operand(1, old.constant([old.attrs.pop("k")], "k"))


def _upsample_1(old: Old) -> None:
    """Before 7, scales were those of height and width."""
    scales = [1.0, 1.0, old.attrs.pop("height_scale", 1.0), old.attrs.pop("width_scale", 1.0)]
    old.attrs.setdefault("scales", tuple(scales))  # type: ignore[arg-type]
    if old.attrs.get("mode") == "bilinear":
        old.attrs["mode"] = "linear"


def _upsample_7(old: Old) -> None:
    """Before 9, ``scales`` was an attribute."""
    if "scales" in old.attrs:
        old.set_operand(1, old.constant(old.attrs.pop("scales"), "scales", np.float32))


_BROADCAST = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")

# As ``normalize.ADAPTERS``, which has these before its own.
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
