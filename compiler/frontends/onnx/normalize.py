"""Older forms of standard ops, brought to what they are at ``IR_OPSET``.

Only forms matter here: where a newer opset merely admits more types or has one more optional
attribute or operand, a node means the same. The table at the end says what changed, and when.
"""

from __future__ import annotations

import numpy as np

from tersor.errors import Unsupported
from tersor.frontends.onnx.before_11 import BEFORE_11
from tersor.frontends.onnx.old import Adapter, Old, to_operand
from tersor.ir import TensorType


def normalize(old: Old, opset: int) -> None:
    """Brings a standard node, written at ``opset``, to its form at ``IR_OPSET``.

    Raises:
        Unsupported: a form that has no equal today.
    """
    if opset < 6:
        old.attrs.pop("consumed_inputs", None)  # A hint on memory that any op could have.
    for until, adapter in ADAPTERS.get(old.op, ()):
        if opset < until:
            adapter(old)


def form_since(op: str) -> int:
    """The opset since which a standard op has had the form that it has at ``IR_OPSET``."""
    return max((until for until, _ in ADAPTERS.get(op, ()) if until != _ALWAYS), default=1)


def _batch_normalization(old: Old) -> None:
    """Before 14, more than one output meant training; today the attribute ``training_mode`` does,
    and there are two such outputs in place of four."""
    if old.outputs > 1:
        raise Unsupported(
            "BatchNormalization in training form (with more than one output) of opset < 14: "
            "export the model in eval mode"
        )


def _dft(old: Old) -> None:
    """Before 20, ``axis`` was an attribute, 1 by default; today it is operand 2, -2 by default."""
    old.set_operand(2, old.constant(old.attrs.pop("axis", 1), "axis"))


def _dropout(old: Old) -> None:
    """Before 12, ``ratio`` was an attribute; today it is operand 1. Neither matters in inference."""
    if "ratio" in old.attrs:
        old.set_operand(1, old.constant(old.attrs.pop("ratio"), "ratio", np.float32))


def _flattening(old: Old) -> None:
    """Before 13, Softmax, LogSoftmax and Hardmax saw a matrix: the dims before ``axis`` times those
    from it on, 1 by default. Today they work along ``axis`` alone: the same on the last axis."""
    x = old.operand(0)
    axis = old.attrs.get("axis", 1)
    rank = x.type.rank if x is not None and isinstance(x.type, TensorType) else None
    if axis == -1 or (rank is not None and axis == rank - 1):
        old.attrs["axis"] = -1
        return
    matrix = old.emit("Flatten", x, axis=axis)
    old.inputs = [old.emit(old.op, matrix, axis=-1), old.emit("Shape", x)]
    old.op, old.attrs = "Reshape", {}


def _grid_sample(old: Old) -> None:
    """Before 20, the modes ``linear`` and ``cubic`` were called ``bilinear`` and ``bicubic``."""
    mode = old.attrs.get("mode", "bilinear")
    if isinstance(mode, str):
        old.attrs["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)


def _group_normalization(old: Old) -> None:
    """Before 21, scale and bias had one entry a group; today they have one a channel."""
    x, groups = old.operand(0), old.attrs.get("num_groups")
    if not isinstance(groups, int) or groups < 1:
        raise Unsupported(f"GroupNormalization of {groups!r} groups")
    channels = (
        x.type.dims[1] if x is not None and isinstance(x.type, TensorType) and x.type.dims else None
    )
    for index in (1, 2):
        value = old.operand(index)
        if value is None:
            continue
        each = channels // groups if isinstance(channels, int) else 0
        if value.is_constant and each * value.numpy().size <= MAX_CHANNELS and each > 0:
            wide = np.repeat(value.numpy(), each)
            old.set_operand(index, old.graph.constant(wide, value.name))
            continue
        repeats = old.emit("Div", old.emit("Shape", x, start=1, end=2), old.emit("Shape", value))
        column = old.emit("Unsqueeze", value, old.constant([1], "axes"))
        shape = old.emit("Concat", old.emit("Shape", value), repeats, axis=0)
        spread = old.emit("Expand", column, shape)
        old.set_operand(index, old.emit("Reshape", spread, old.constant([-1], "flat")))


def _range(old: Old) -> None:
    """Start, limit and delta are scalars; files with vectors of one element are about, and taken."""
    for index in range(3):
        if old.rank(index) == 1:
            axes = old.constant([0], "axes")
            old.set_operand(index, old.emit("Squeeze", old.operand(index), axes))


def _resize(old: Old) -> None:
    """Before 13, ``roi`` and ``scales`` could not be left out and were empty tensors instead; the
    coordinate mode ``tf_half_pixel_for_nn`` has gone since."""
    if old.attrs.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise Unsupported(
            "Resize with coordinate_transformation_mode 'tf_half_pixel_for_nn', which ONNX dropped at "
            "opset 13: export the model at a newer opset"
        )
    if old.operand(3) is not None:
        old.set_operand(2, None)
    roi = old.operand(1)
    if roi is not None and old.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        old.set_operand(1, None)


def _roi_align(old: Old) -> None:
    """Before 16, there was one coordinate mode, today's ``output_half_pixel``; ``half_pixel`` is the
    default today."""
    old.attrs.setdefault("coordinate_transformation_mode", "output_half_pixel")


def _scatter(old: Old) -> None:
    """Scatter has been called ScatterElements since 11."""
    old.op = "ScatterElements"


def _split(old: Old) -> None:
    """Before 18, equal parts were asked for by giving no sizes; today by ``num_outputs``."""
    if old.operand(1) is None:
        old.attrs["num_outputs"] = old.outputs


def _upsample(old: Old) -> None:
    """Upsample became Resize at 10; its positions were those of ``asymmetric``, rounded down."""
    old.op = "Resize"
    old.inputs = [old.operand(0), None, old.operand(1)]
    old.attrs.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")


_REDUCTIONS = (
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip
MAX_CHANNELS = 1 << 20  # More are not written out.
_ALWAYS = 1_000  # Later than any opset: the op itself has gone.

_SINCE_11: dict[str, tuple[tuple[int, Adapter], ...]] = {
    "BatchNormalization": ((14, _batch_normalization),),
    "DFT": ((20, _dft),),
    "Dropout": ((12, _dropout),),
    "GridSample": ((20, _grid_sample),),
    "GroupNormalization": ((21, _group_normalization),),
    "Hardmax": ((13, _flattening),),
    "LogSoftmax": ((13, _flattening),),
    "Range": ((_ALWAYS, _range),),
    "ReduceSum": ((13, to_operand("axes", 1)),),
    "Resize": ((13, _resize),),
    "RoiAlign": ((16, _roi_align),),
    "Scatter": ((_ALWAYS, _scatter),),
    "Softmax": ((13, _flattening),),
    "Split": ((13, to_operand("split", 1)), (18, _split)),
    "Squeeze": ((13, to_operand("axes", 1)),),
    "Unsqueeze": ((13, to_operand("axes", 1)),),
    "Upsample": ((_ALWAYS, _upsample),),
    **{op: ((18, to_operand("axes", 1)),) for op in _REDUCTIONS},
}

# Op -> (opset since which the newer form holds, adapter), oldest first.
ADAPTERS = {
    op: (*BEFORE_11.get(op, ()), *_SINCE_11.get(op, ())) for op in {**BEFORE_11, **_SINCE_11}
}
