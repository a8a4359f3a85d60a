"""Updates nodes of standard ops from older opsets to their form at ``IR_OPSET``.

An opset that only adds types, optional attributes or optional operands to an op needs no update. The table
at the end lists the other changes.
"""

from __future__ import annotations

import numpy as np

from tersor.errors import Unsupported
from tersor.frontends.onnx.before_11 import BEFORE_11
from tersor.frontends.onnx.legacy import Adapter, LegacyNode, to_operand


def normalize(node: LegacyNode, opset: int) -> None:
    """Updates a node of a standard op from ``opset`` to its form at ``IR_OPSET``.

    Raises:
        Unsupported: the current op has no equivalent.
    """
    if opset < 6:
        node.attrs.pop("consumed_inputs", None)  # A hint on memory reuse that any op could have.
    for until, adapter in ADAPTERS.get(node.op, ()):
        if opset < until:
            adapter(node)


def form_since(op: str) -> int:
    """The first opset at which a standard op has its form at ``IR_OPSET``."""
    return max((until for until, _ in ADAPTERS.get(op, ()) if until != _ALWAYS), default=1)


def _batch_normalization(node: LegacyNode) -> None:
    """Before 14, more than one output (up to five) requested training; now ``training_mode`` does."""
    if node.outputs > 1:
        raise Unsupported(
            "more than one output before opset 14, which is training mode: export the model in "
            "evaluation mode"
        )


def _dft(node: LegacyNode) -> None:
    """Before 20, ``axis`` was an attribute, by default 1; now it is operand 2, by default -2."""
    node.set_operand(2, node.constant(node.attrs.pop("axis", 1), "axis"))


def _dropout(node: LegacyNode) -> None:
    """Before 12, ``ratio`` was an attribute; now it is operand 1."""
    if "ratio" in node.attrs:
        node.set_operand(1, node.constant(node.attrs.pop("ratio"), "ratio", np.float32))


def _softmax(node: LegacyNode) -> None:
    """Before 13, Softmax, LogSoftmax and Hardmax flattened their operand to a matrix at ``axis``, by default
    1. Now they work along ``axis`` alone, which is the same for the last one."""
    x, rank = node.operand(0), node.rank(0)
    axis = node.attrs.get("axis", 1)
    if axis == -1 or (rank is not None and axis == rank - 1):
        node.attrs["axis"] = -1
        return
    matrix = node.emit("Flatten", x, axis=axis)
    node.inputs = [node.emit(node.op, matrix, axis=-1), node.emit("Shape", x)]
    node.op, node.attrs = "Reshape", {}


def _grid_sample(node: LegacyNode) -> None:
    """Before 20, the modes ``linear`` and ``cubic`` were named ``bilinear`` and ``bicubic``."""
    mode = node.attrs.get("mode", "bilinear")
    if isinstance(mode, str):
        node.attrs["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)


def _group_normalization(node: LegacyNode) -> None:
    """Before 21, scale and bias had one element per group; now one per channel."""
    x, type, groups = node.operand(0), node.tensor_type(0), node.attrs.get("num_groups")
    if not isinstance(groups, int) or groups < 1:
        raise Unsupported(f"num_groups is {groups!r}, not a positive number")
    channels = type.dims[1] if type is not None and type.dims else None
    for index in (1, 2):
        value = node.operand(index)
        if value is None:
            continue
        each = channels // groups if isinstance(channels, int) else 0
        if value.is_constant and each * value.numpy().size <= MAX_CHANNELS and each > 0:
            wide = np.repeat(value.numpy(), each)
            node.set_operand(index, node.graph.constant(wide, value.name))
            continue
        repeats = node.emit("Div", node.emit("Shape", x, start=1, end=2), node.emit("Shape", value))
        column = node.emit("Unsqueeze", value, node.constant([1], "axes"))
        shape = node.emit("Concat", node.emit("Shape", value), repeats, axis=0)
        expanded = node.emit("Expand", column, shape)
        node.set_operand(index, node.emit("Reshape", expanded, node.constant([-1], "flat")))


def _range(node: LegacyNode) -> None:
    """Start, limit and delta are scalars, but files with vectors of one element exist and runtimes accept
    them."""
    for index in range(3):
        if node.rank(index) == 1:
            axes = node.constant([0], "axes")
            node.set_operand(index, node.emit("Squeeze", node.operand(index), axes))


def _resize(node: LegacyNode) -> None:
    """Before 13, ``roi`` and ``scales`` could not be left out and were empty instead; the coordinate mode
    ``tf_half_pixel_for_nn`` has been removed since."""
    if node.attrs.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise Unsupported(
            "coordinate_transformation_mode is 'tf_half_pixel_for_nn', which ONNX removed in opset 13: "
            "export the model at a newer opset"
        )
    if node.operand(3) is not None:
        node.set_operand(2, None)
    roi = node.operand(1)
    if roi is not None and node.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        node.set_operand(1, None)


def _roi_align(node: LegacyNode) -> None:
    """Before 16, the only coordinate mode was ``output_half_pixel``; now ``half_pixel`` is the default."""
    node.attrs.setdefault("coordinate_transformation_mode", "output_half_pixel")


def _scatter(node: LegacyNode) -> None:
    """Scatter was renamed to ScatterElements at 11."""
    node.op = "ScatterElements"


def _split(node: LegacyNode) -> None:
    """Before 18, equal parts were requested by leaving out the sizes; now by ``num_outputs``."""
    if node.operand(1) is None:
        node.attrs["num_outputs"] = node.outputs


def _upsample(node: LegacyNode) -> None:
    """Upsample became Resize at 10. It used ``asymmetric`` coordinates and rounded down."""
    node.op = "Resize"
    node.inputs = [node.operand(0), None, node.operand(1)]
    node.attrs.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")


_REDUCTIONS = (
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip
MAX_CHANNELS = 1 << 20  # For more channels, scale and bias are expanded by nodes, not as constants.
_ALWAYS = 1_000  # Later than any opset.

_SINCE_11: dict[str, tuple[tuple[int, Adapter], ...]] = {
    "BatchNormalization": ((14, _batch_normalization),),
    "DFT": ((20, _dft),),
    "Dropout": ((12, _dropout),),
    "GridSample": ((20, _grid_sample),),
    "GroupNormalization": ((21, _group_normalization),),
    "Hardmax": ((13, _softmax),),
    "LogSoftmax": ((13, _softmax),),
    "Range": ((_ALWAYS, _range),),
    "ReduceSum": ((13, to_operand("axes", 1)),),
    "Resize": ((13, _resize),),
    "RoiAlign": ((16, _roi_align),),
    "Scatter": ((_ALWAYS, _scatter),),
    "Softmax": ((13, _softmax),),
    "Split": ((13, to_operand("split", 1)), (18, _split)),
    "Squeeze": ((13, to_operand("axes", 1)),),
    "Unsqueeze": ((13, to_operand("axes", 1)),),
    "Upsample": ((_ALWAYS, _upsample),),
    **{op: ((18, to_operand("axes", 1)),) for op in _REDUCTIONS},
}

# Op -> (first opset of the newer form, adapter), oldest first.
ADAPTERS = {
    op: (*BEFORE_11.get(op, ()), *_SINCE_11.get(op, ())) for op in {**BEFORE_11, **_SINCE_11}
}
