"""Sequences of tensors and optional values. In torch evaluation a sequence is a list, and an optional is its
value or None."""

from __future__ import annotations

from typing import Any

from tersor.ir import (
    Dim,
    DType,
    Node,
    OptionalType,
    SequenceType,
    TensorType,
    UnknownType,
    Value,
    ValueType,
)
from tersor.ir.dims import divide
from tersor.ops.families._symbolic import (
    axis_of,
    checked_axis,
    known,
    no_work,
    refuse,
    scalar,
    tensor,
)
from tersor.ops.families._ties import dims
from tersor.ops.onnx_schema import FROM_ONNX
from tersor.ops.opdef import OpDef

_INDEX = TensorType(DType.I64, ())
_FLAG = TensorType(DType.BOOL, ())


def _sequence(node: Node) -> ValueType:
    """Type of the elements of operand 0."""
    value = node.input(0)
    if value is None or not isinstance(value.type, SequenceType):
        refuse(node, "operand 0 is not a sequence")
    return value.type.element


def _common(node: Node, a: ValueType, b: ValueType) -> ValueType:
    """The type that includes both: dims that differ are unknown.

    Raises:
        InvalidGraph: they differ in their element type.
    """
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return a if a == b else UnknownType()
    if a.dtype is not b.dtype:
        refuse(node, f"a sequence cannot contain both {a} and {b}")
    if a.dims is None or b.dims is None or len(a.dims) != len(b.dims):
        return a.with_dims(None)
    return a.with_dims(tuple(x if x == y else None for x, y in zip(a.dims, b.dims, strict=True)))


# -- building and reading --------------------------------------------------------------------------


def _construct_infer(node: Node) -> list[ValueType]:
    element: ValueType = tensor(node)
    for i in range(1, len(node.inputs)):
        element = _common(node, element, tensor(node, i))
    return [SequenceType(element)]


def _empty_infer(node: Node) -> list[ValueType]:
    dtype = node.attrs.get("dtype")
    return [
        SequenceType(TensorType(FROM_ONNX[dtype] if isinstance(dtype, int) else DType.F32, None))
    ]


def _insert_infer(node: Node) -> list[ValueType]:
    items, new = _sequence(node), tensor(node, 1)
    producer = node.inputs[0].producer if node.inputs[0] is not None else None
    if producer is not None and producer.op == "SequenceEmpty":
        items = new if items == new.with_dims(None) else items  # Nothing else is in it.
    return [SequenceType(_common(node, items, new))]


def _insert(items: Any, new: Any, position: Any = None) -> Any:
    at = len(items) if position is None else int(position)
    at += len(items) if at < 0 else 0
    return [*items[:at], new, *items[at:]]


def _erase(items: Any, position: Any = None) -> Any:
    at = (len(items) - 1 if position is None else int(position)) % len(items)
    return [*items[:at], *items[at + 1 :]]


def _length(items: Any) -> Any:
    import torch

    return torch.tensor(len(items))


# -- tensors to sequences and back -----------------------------------------------------------------


def _concat_infer(node: Node) -> list[ValueType]:
    element, axis, new = _sequence(node), node.attrs["axis"], node.attrs["new_axis"]
    assert isinstance(axis, int)
    if not isinstance(element, TensorType) or element.dims is None:
        return [element if isinstance(element, TensorType) else UnknownType()]
    have = element.dims
    at = checked_axis(node, axis, len(have) + (1 if new else 0))
    return [element.with_dims((*have[:at], None, *have[at if new else at + 1 :]))]


def _concat(items: Any, *, axis: int, new_axis: int) -> Any:
    import torch

    return torch.stack(items, dim=axis) if new_axis else torch.cat(items, dim=axis)


def _split_infer(node: Node) -> list[ValueType]:
    x = tensor(node)
    if x.dims is None:
        return [SequenceType(x)]
    axis = axis_of(node, len(x.dims))
    if node.input(1) is None and not node.attrs["keepdims"]:
        return [SequenceType(x.with_dims((*x.dims[:axis], *x.dims[axis + 1 :])))]
    part = _part(node.input(1), x.dims[axis])
    return [SequenceType(x.with_dims((*x.dims[:axis], part, *x.dims[axis + 1 :])))]


def _part(split: Value | None, size: Dim) -> Dim:
    """The size of every part; None if they differ or it is unknown."""
    if split is None:
        return 1
    if dims(split) == ():
        part = scalar(split)
        even = None not in (part, size) and divide(size, part) is not None  # type: ignore[arg-type]
        return part if even else None
    sizes = known(split)
    return sizes[0] if sizes and all(s == sizes[0] for s in sizes) else None


def _split(x: Any, split: Any = None, *, axis: int, keepdims: int) -> Any:
    if split is None:
        return list(x.split(1, dim=axis)) if keepdims else list(x.unbind(axis))
    sizes = int(split) if split.dim() == 0 else [int(s) for s in split]
    return list(x.split(sizes, dim=axis))


# -- optionals -------------------------------------------------------------------------------------


def _optional_infer(node: Node) -> list[ValueType]:
    value, given = node.input(0), node.attrs.get("type")
    if value is not None:
        return [OptionalType(value.type)]
    if not isinstance(given, TensorType | SequenceType):
        refuse(node, "neither a value nor a type is given")
    return [OptionalType(given)]


def _get_infer(node: Node) -> list[ValueType]:
    value = node.input(0)
    if value is None:
        refuse(node, "it has no operand")
    return [value.type.element if isinstance(value.type, OptionalType) else value.type]


def _has(value: Any = None) -> Any:
    import torch

    return torch.tensor(value is not None)


def _row(op: str, since: int, infer: Any, torch: Any) -> OpDef:
    return OpDef(op, since=since, infer=infer, torch=torch, cost=no_work, ties=lambda node: [])


ROWS = [
    _row("SequenceConstruct", 11, _construct_infer, lambda *items: list(items)),
    _row("SequenceEmpty", 11, _empty_infer, lambda *, dtype=1: []),
    _row("SequenceAt", 11, lambda node: [_sequence(node)], lambda items, at: items[int(at)]),
    _row("SequenceInsert", 11, _insert_infer, _insert),
    _row("SequenceErase", 11, lambda node: [SequenceType(_sequence(node))], _erase),
    _row("SequenceLength", 11, lambda node: [_INDEX], _length),
    _row("ConcatFromSequence", 11, _concat_infer, _concat),
    _row("SplitToSequence", 11, _split_infer, _split),
    _row("Optional", 15, _optional_infer, lambda value=None, *, type=None: value),
    _row("OptionalGetElement", 18, _get_infer, lambda value: value),
    _row("OptionalHasElement", 18, lambda node: [_FLAG], _has),
]
