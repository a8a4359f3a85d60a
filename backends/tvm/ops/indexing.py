"""Looking up and writing by index: Gather, GatherElements, GatherND, ScatterElements, ScatterND,
TensorScatter.

An index out of range is an error in ONNX. Here reads are clipped to the nearest element, and writes are
skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tersor.backends.tvm.derive import values_of
from tersor.backends.tvm.lowering import Lowering, Refused, Rule, dtype_of
from tersor.backends.tvm.ops._elements import fitting, from_end, looked_up, within
from tersor.backends.tvm.ops.broadcast import dims_of
from tersor.backends.tvm.ops.movement import axis_of
from tersor.ir import Affine, Cast, Dim, Encoding, Node, Value

# -- Gather, GatherElements, GatherND --------------------------------------------------------------


def _gather(lowering: Lowering, node: Node) -> Sequence[Any]:
    table = node.inputs[0]
    encoding = table.encoding if table is not None else None
    if encoding is not None and has_rows(encoding) and axis_of(node, len(_dims(table))) == 0:
        return [_compact_rows(lowering, node, encoding)]
    x, where = (lowering[v] for v in node.inputs)
    axis = axis_of(node, len(x.ty.shape))
    return [lowering.te(_gathered, x, where, lowering.shape_of(node.output), axis)]


def has_rows(encoding: Encoding) -> bool:
    """Whether rows of a table can be looked up as they are stored."""
    return isinstance(encoding, Cast) or (isinstance(encoding, Affine) and not encoding.block)


def _compact_rows(lowering: Lowering, node: Node, encoding: Encoding) -> Any:
    """Rows of a compressed table: only those that are looked up become floats."""
    table, where = node.inputs[0], lowering[node.inputs[1]]
    assert table is not None
    dtype, leading = dtype_of(table.type), len(where.ty.shape)
    parameters: list[Any] = []
    if isinstance(encoding, Affine):
        values = lowering.derived(*values_of(encoding), table.name)
        zero = None if encoding.is_symmetric else encoding.zero_point
        parameters = [lowering.constant(p) for p in (encoding.scale, zero) if p is not None]
    else:
        assert isinstance(encoding, Cast)
        values = lowering.parameter(encoding.array, table.name)

    def rows(values: Any, where: Any, *given: Any) -> Any:
        def one(*index: Any) -> Any:
            place = (looked_up(where(*index[:leading]), values.shape[0]), *index[leading:])
            if not isinstance(encoding, Affine):
                return values(*place).astype(dtype)
            scale, *zero = (
                p() if encoding.axis is None else p(place[encoding.axis]) for p in given
            )
            counted = "int32" if encoding.is_standard else dtype
            level = values(*place).astype(counted)
            if zero:
                level = level - zero[0].astype(counted)
            return level.astype(dtype) * scale

        return te.compute(lowering.shape_of(node.output), one, name="rows")

    return lowering.te(rows, values, where, *parameters, primfunc_name_hint="gather_compact")


def _gathered(x: Any, where: Any, dims: list[Any], axis: int) -> Any:
    behind = axis + len(where.shape)

    def pick(*index: Any) -> Any:
        place = looked_up(where(*index[axis:behind]), x.shape[axis])
        return x(*index[:axis], place, *index[behind:])

    return te.compute(dims, pick, name="gather")


def _gather_elements(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, where = (lowering[v] for v in node.inputs)
    axis = axis_of(node, len(x.ty.shape))
    pairs = zip(_dims(node.inputs[0]), _dims(node.inputs[1]), strict=True)
    return [lowering.te(_gathered_elements, x, where, axis, [a == b for a, b in pairs])]


def _gathered_elements(x: Any, where: Any, axis: int, equal: list[bool]) -> Any:
    def pick(*index: Any) -> Any:
        places = [
            i if same else within(i, 0, size - 1)
            for i, size, same in zip(index, x.shape, equal, strict=True)
        ]
        places[axis] = looked_up(where(*index), x.shape[axis])
        return x(*places)

    return te.compute(where.shape, pick, name="gather_elements")


def _dims(value: Value | None) -> tuple[Dim, ...]:
    assert value is not None
    return dims_of(value)


def _depth(node: Node) -> int:
    """The number of axes that an index tuple of GatherND and ScatterND addresses."""
    depth = _dims(node.inputs[1])[-1]
    if not isinstance(depth, int):
        raise Refused("the length of the index tuples is known at run time only")
    return depth


def _gather_nd(lowering: Lowering, node: Node) -> Sequence[Any]:
    dims, batch = lowering.shape_of(node.output), node.attrs["batch_dims"]
    assert isinstance(batch, int)
    x, where = (
        fitting(lowering, v, dict(enumerate(_dims(node.output)[:batch]))) for v in node.inputs
    )
    return [lowering.te(_gathered_nd, x, where, dims, batch, _depth(node))]


def _gathered_nd(x: Any, where: Any, dims: list[Any], batch: int, depth: int) -> Any:
    lead = len(where.shape) - 1

    def pick(*index: Any) -> Any:
        places = [
            looked_up(where(*index[:lead], tirx.IntImm("int64", n)), x.shape[batch + n])
            for n in range(depth)
        ]
        return x(*index[:batch], *places, *index[lead:])

    return te.compute(dims, pick, name="gather_nd")


# -- ScatterElements, ScatterND, TensorScatter -----------------------------------------------------

_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": tirx.max,
    "min": tirx.min,
}


def scattered(
    x: Any, updates: Any, operands: list[Any], target: Callable[..., Sequence[Any]], reduction: str
) -> Any:
    """``x`` with ``updates`` written into it, one after the other.

    ``target(operands, *index)`` is the place of an update, which is skipped where that is out of range.
    """
    combine = _logical(reduction) if str(x.dtype) == "bool" else _COMBINE[reduction]

    def body(ins: Any, outs: Any) -> Any:
        data, new, out = ins[0], ins[1], outs[0]

        def copy(*index: Any) -> None:
            T.buffer_store(out, data[tuple(index)], list(index))

        def write(*index: Any) -> None:
            place = target(list(ins[2:]), *index)
            inside = [tirx.all(p >= 0, p < size) for p, size in zip(place, data.shape, strict=True)]
            with T.If(tirx.all(*inside)), T.Then():
                T.buffer_store(out, combine(out[tuple(place)], new[index]), place)

        with IRBuilder() as builder, T.seq_scope():
            _loops(data.shape, copy)
            _loops(new.shape, write)
        return builder.get()

    return te.extern([x.shape], [x, updates, *operands], body, dtype=str(x.dtype), name="scatter")


def _loops(shape: Sequence[Any], body: Callable[..., None]) -> None:
    """A loop for each axis around ``body(*index)``."""
    with ExitStack() as stack:
        body(*(stack.enter_context(T.serial(0, size)) for size in shape))


def _logical(reduction: str) -> Callable[[Any, Any], Any]:
    """Reductions of truth values: a sum is true where any is, a product where all are."""
    combine: dict[str, Callable[[Any, Any], Any]] = {
        "none": _COMBINE["none"],
        "add": tirx.any,
        "max": tirx.any,
        "mul": tirx.all,
        "min": tirx.all,
    }
    return combine[reduction]


def _scatter_elements(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, where = (lowering[v] for v in node.inputs[:2])
    updates = fitting(lowering, node.inputs[2], dict(enumerate(_dims(node.inputs[1]))))
    axis = axis_of(node, len(x.ty.shape))

    def compute(x: Any, where: Any, updates: Any) -> Any:
        def target(operands: list[Any], *index: Any) -> Sequence[Any]:
            place = from_end(operands[0][index].astype("int64"), x.shape[axis])
            return [*index[:axis], place, *index[axis + 1 :]]

        return scattered(x, updates, [where], target, str(node.attrs["reduction"]))

    return [lowering.te(compute, x, where, updates)]


def _scatter_nd(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, where = (lowering[v] for v in node.inputs[:2])
    depth, lead = _depth(node), len(where.ty.shape) - 1
    wanted = (*_dims(node.inputs[1])[:lead], *_dims(node.inputs[0])[depth:])
    updates = fitting(lowering, node.inputs[2], dict(enumerate(wanted)))

    def compute(x: Any, where: Any, updates: Any) -> Any:
        def target(operands: list[Any], *index: Any) -> Sequence[Any]:
            places = [
                from_end(operands[0][(*index[:lead], n)].astype("int64"), x.shape[n])
                for n in range(depth)
            ]
            return [*places, *index[lead:]]

        return scattered(x, updates, [where], target, str(node.attrs["reduction"]))

    return [lowering.te(compute, x, where, updates)]


def _tensor_scatter(lowering: Lowering, node: Node) -> Sequence[Any]:
    past, have = lowering[node.inputs[0]], _dims(node.inputs[0])
    axis, circular = axis_of(node, len(have)), node.attrs["mode"] == "circular"
    others = {i: d for i, d in enumerate(have) if i != axis}
    update = fitting(lowering, node.inputs[1], others)
    at = [fitting(lowering, node.inputs[2], {0: have[0]})] if node.input(2) is not None else []

    def compute(past: Any, update: Any, at: list[Any]) -> Any:
        def target(operands: list[Any], *index: Any) -> Sequence[Any]:
            start = operands[0][index[0]].astype("int64") if operands else 0
            place = start + index[axis]
            place = tirx.floormod(place, past.shape[axis]) if circular else place
            return [*index[:axis], place, *index[axis + 1 :]]

        return scattered(past, update, at, target, "none")

    return [lowering.te(compute, past, update, at)]


RULES: dict[str, Rule] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TensorScatter": _tensor_scatter,
}
