"""Ops along axes: reductions, softmax, positions of extremes, running sums, the top k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tersor.backends.tvm.loops import VECTOR
from tersor.backends.tvm.lowering import Lowering, Refused, Rule, dtype_of
from tersor.backends.tvm.ops.axes import by_axes, chosen
from tersor.backends.tvm.ops.broadcast import HALF, dims_of, kind, name_of, widened
from tersor.backends.tvm.ops.casting import convert
from tersor.backends.tvm.ops.elementwise import quotient
from tersor.backends.tvm.ops.folds import (
    Reducer,
    count,
    fold,
    fold_or_start,
    folded_at,
    largest,
    maximum,
    product,
    smallest,
    total,
)
from tersor.backends.tvm.ops.integer import divide
from tersor.backends.tvm.ops.movement import axis_of
from tersor.ir import Node, Value
from tersor.ops.families._symbolic import ints

# -- reductions ------------------------------------------------------------------------------------


def _same(x: Any) -> Any:
    return x


def _average(sum: Any, n: Any) -> Any:
    number = n.astype(kind(sum))
    return quotient(sum, number) if kind(sum).startswith("float") else divide(sum, number)


@dataclass(frozen=True)
class _Reduction:
    """A fold, a function of each element before it, and one of the result (and the count) after it."""

    reducer: Reducer
    before: Callable[[Any], Any] = _same
    after: Callable[[Any, Any], Any] = lambda number, n: number


def _square(x: Any) -> Any:
    return x * x


def _real(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Roots and logarithms in double precision, where integers are folded."""
    return lambda x, n: function(x if kind(x).startswith("float") else x.astype("float64"))


_REDUCTIONS: dict[str, _Reduction] = {
    "ReduceSum": _Reduction(total),
    "ReduceMean": _Reduction(total, after=_average),
    "ReduceMax": _Reduction(largest),
    "ReduceMin": _Reduction(smallest),
    "ReduceProd": _Reduction(product),
    "ReduceL1": _Reduction(total, tirx.abs),
    "ReduceL2": _Reduction(total, _square, _real(tirx.sqrt)),
    "ReduceSumSquare": _Reduction(total, _square),
    "ReduceLogSum": _Reduction(total, after=_real(tirx.log)),
}  # fmt: skip


def _operand(node: Node, index: int = 0) -> Value:
    value = node.input(index)
    if value is None:
        raise Refused("a required operand is missing")
    return value


def read(x: te.Tensor) -> Callable[..., Any]:
    """Reads elements in the type that is computed in: halves as float32, truth values as uint8."""

    def element(*index: Any) -> Any:
        number = widened(x(*index))
        return number.astype("uint8") if kind(number) == "bool" else number

    return element


def _kept(rank: int, axes: Sequence[int], keep: bool) -> list[int]:
    """The axes of a fold that the op's result keeps."""
    return [a for a in range(rank) if keep or a not in axes]


def _reduced(
    lowering: Lowering,
    node: Node,
    axes: Sequence[int],
    compute: Callable[[te.Tensor], tuple[te.Tensor, Callable[..., Any]]],
) -> Any:
    """The op's result, from a fold and a function of each of its results."""
    dtype, value = dtype_of(node.output.type), _operand(node)
    rank, keep = len(dims_of(value)), bool(node.attrs["keepdims"])

    def result(x: te.Tensor) -> te.Tensor:
        folded, after = compute(x)
        kept = _kept(rank, axes, keep)

        def one(*index: Any) -> Any:
            whole: list[Any] = [tirx.IntImm("int64", 0)] * rank
            for axis, i in zip(kept, index, strict=True):
                whole[axis] = i
            return convert(after(folded_at(folded, whole, axes)), dtype)

        return te.compute([folded.shape[a] for a in kept], one, name=name_of(node.op))

    return lowering.te(result, lowering[value], primfunc_name_hint=name_of(node.op))


def _reduction(way: _Reduction) -> Rule:
    def reduce(lowering: Lowering, node: Node, axes: Sequence[int]) -> Any:
        def compute(x: te.Tensor) -> tuple[te.Tensor, Callable[..., Any]]:
            element = read(x)
            folded = fold_or_start(
                x.shape, axes, lambda *i: way.before(element(*i)), way.reducer, "fold"
            )
            return folded, lambda number: way.after(number, count(x.shape, axes))

        return _reduced(lowering, node, axes, compute)

    return by_axes(reduce)


def _log_sum_exp(lowering: Lowering, node: Node, axes: Sequence[int]) -> Any:
    """log(sum(exp(x - m))) + m, where m is the maximum, or 0 where that is infinite."""

    def compute(x: te.Tensor) -> tuple[te.Tensor, Callable[..., Any]]:
        element = _floating(read(x))
        highest = fold_or_start(x.shape, axes, element, largest, "highest")

        def shift(*index: Any) -> Any:
            m = folded_at(highest, index, axes)
            return tirx.Select(tirx.isinf(m), tirx.const(0, kind(m)), m)

        def term(*index: Any) -> Any:
            return tirx.exp(element(*index) - shift(*index))

        summed = fold_or_start(x.shape, axes, term, total, "sum_exp")
        logarithm = te.compute(
            summed.shape, lambda *i: tirx.log(summed(*i)) + shift(*i), name="log_sum_exp"
        )
        return logarithm, _same

    return _reduced(lowering, node, axes, compute)


def _floating(element: Callable[..., Any]) -> Callable[..., Any]:
    def number(*index: Any) -> Any:
        x = element(*index)
        return x if kind(x).startswith("float") else x.astype("float64")

    return number


# -- positions of extremes -------------------------------------------------------------------------


def extreme_positions(x: te.Tensor, axis: int, reducer: Reducer, last: bool = False) -> te.Tensor:
    """The position of the extreme along an axis: of equals the first or last; a NaN's if there is one."""
    element = read(x)
    extreme = fold(x.shape, [axis], element, reducer, "extreme")
    # Of an empty axis: no position.
    outside = tirx.IntImm("int64", -1) if last else x.shape[axis]

    def position(*index: Any) -> Any:
        number = element(*index)
        is_extreme = tirx.EQ(number, folded_at(extreme, index, [axis]))
        if kind(number).startswith("float"):
            is_extreme = tirx.Or(is_extreme, tirx.isnan(number))
        return tirx.Select(is_extreme, index[axis], outside)

    return fold(x.shape, [axis], position, largest if last else smallest, "position")


def _arg(reducer: Reducer) -> Rule:
    def rule(lowering: Lowering, node: Node) -> Sequence[Any]:
        axis = axis_of(node, len(dims_of(_operand(node))))
        last = bool(node.attrs["select_last_index"])

        def compute(x: te.Tensor) -> tuple[te.Tensor, Callable[..., Any]]:
            return extreme_positions(x, axis, reducer, last), _same

        return [_reduced(lowering, node, [axis], compute)]

    return rule


# -- softmax ---------------------------------------------------------------------------------------


def _along_axis(
    compute: Callable[[te.Tensor, int, str], te.Tensor],
) -> Rule:
    """A rule for an op whose result is shaped like its operand."""

    def rule(lowering: Lowering, node: Node) -> Sequence[Any]:
        value = _operand(node)
        axis, dtype = axis_of(node, len(dims_of(value))), dtype_of(value.type)
        name = name_of(node.op)
        return [lowering.te(compute, lowering[value], axis, dtype, primfunc_name_hint=name)]

    return rule


def softmax(x: te.Tensor, axis: int, dtype: str) -> te.Tensor:
    """exp(x - max) / sum(exp(x - max)) along an axis."""
    powers, _, summed = _powers(x, axis)

    def one(*index: Any) -> Any:
        return (powers(*index) / folded_at(summed, index, [axis])).astype(dtype)

    return te.compute(x.shape, one, name="softmax")


def _log_softmax(x: te.Tensor, axis: int, dtype: str) -> te.Tensor:
    _, shifted, summed = _powers(x, axis)

    def one(*index: Any) -> Any:
        return (shifted(*index) - tirx.log(folded_at(summed, index, [axis]))).astype(dtype)

    return te.compute(x.shape, one, name="log_softmax")


def _powers(x: te.Tensor, axis: int) -> tuple[te.Tensor, Callable[..., Any], te.Tensor]:
    """exp(x - max), x - max, and the sum of the powers."""
    element = read(x)
    # A row with NaN becomes NaN, whatever its maximum.
    highest = fold(x.shape, [axis], element, maximum, "highest")

    def shifted(*index: Any) -> Any:
        return element(*index) - folded_at(highest, index, [axis])

    powers = te.compute(x.shape, lambda *i: tirx.exp(shifted(*i)), name="powers")
    return powers, shifted, fold(x.shape, [axis], powers, total, "sum_exp")


def _hardmax(x: te.Tensor, axis: int, dtype: str) -> te.Tensor:
    """1 where the first maximum is, else 0."""
    position = extreme_positions(x, axis, largest)
    one, zero = tirx.const(1, dtype), tirx.const(0, dtype)

    def hard(*index: Any) -> Any:
        return tirx.Select(tirx.EQ(folded_at(position, index, [axis]), index[axis]), one, zero)

    return te.compute(x.shape, hard, name="hardmax")


# -- running sums, the top k -----------------------------------------------------------------------


def _cumsum(lowering: Lowering, node: Node) -> Sequence[Any]:
    value, named = _operand(node), _operand(node, 1)
    rank, dtype = len(dims_of(value)), dtype_of(node.output.type)
    if not rank:
        raise Refused("a scalar has no axis")
    exclusive, reverse = bool(node.attrs["exclusive"]), bool(node.attrs["reverse"])

    def summed(axes: Sequence[int]) -> Any:
        def compute(x: te.Tensor) -> te.Tensor:
            wide = te.compute(x.shape, lambda *i: widened(x(*i)), name="read")
            summed = _running_sum(wide, axes[0], exclusive, reverse)
            return te.compute(x.shape, lambda *i: summed(*i).astype(dtype), name="cumsum")

        return lowering.te(compute, lowering[value], primfunc_name_hint="cumsum")

    axis = ints(named)
    choices = [[axis[0] % rank]] if axis else [[a] for a in range(rank)]
    return [chosen(lowering, named, value, choices, summed)]


def _running_sum(x: te.Tensor, axis: int, exclusive: bool, reverse: bool) -> te.Tensor:
    """Element by element along ``axis``; the axes behind it are vectors, those before it in parallel."""
    length, dtype = x.shape[axis], str(x.dtype)
    before, behind = list(x.shape[:axis]), list(x.shape[axis + 1 :])

    def body(source: Any, target: Any) -> Any:
        read, write = T.buffer_proxy(source), T.buffer_proxy(target)

        def step(outer: tuple[Any, ...], at: Any) -> None:
            here = length - 1 - at if reverse else at
            last = here + 1 if reverse else here - 1

            def further(*inner: Any) -> None:
                taken = read[(*outer, last if exclusive else here, *inner)]
                write[(*outer, here, *inner)] = write[(*outer, last, *inner)] + taken

            def first(*inner: Any) -> None:
                begin = tirx.const(0, dtype) if exclusive else read[(*outer, here, *inner)]
                write[(*outer, here, *inner)] = begin

            with T.If(at > 0):
                with T.Then():
                    _vector(behind, further)
                with T.Else():
                    _vector(behind, first)

        def line(*outer: Any) -> None:
            with T.serial(0, length) as at:
                step(outer, at)

        with IRBuilder() as builder:
            _parallel(before, line)
            return builder.get()

    return te.extern(
        [x.shape], [x], lambda ins, outs: body(ins[0], outs[0]), dtype=[dtype], name="running_sum"
    )


def _parallel(shape: Sequence[Any], body: Callable[..., None]) -> None:
    """Loops around ``body(*index)``; the first that is longer than 1 is parallel."""
    spread = next((i for i, extent in enumerate(shape) if not _is(extent, 1)), 0)
    with ExitStack() as stack:
        loops = [T.parallel if i == spread else T.serial for i in range(len(shape))]
        body(*(stack.enter_context(f(0, n)) for f, n in zip(loops, shape, strict=True)))


def _vector(shape: Sequence[Any], body: Callable[..., None]) -> None:
    """Loops around ``body(*index)``, the last by vectors."""
    with ExitStack() as stack:
        outer = [stack.enter_context(T.serial(0, n)) for n in shape[:-1]]
        inner = [
            stack.enter_context(T.serial(0, n, annotations={VECTOR: _LANES})) for n in shape[-1:]
        ]
        body(*outer, *inner)


# Of a running sum's vectors: LLVM splits those that are too wide for the processor.
_LANES = 16
# Types that TVM's sort takes.
_SORTED = ("float32", "float64", "int32", "int64")


def _top_k(lowering: Lowering, node: Node) -> Sequence[Any]:
    value = _operand(node)
    axis, dtype = axis_of(node, len(dims_of(value))), dtype_of(value.type)
    shape = lowering.shape_of(node.outputs[0])
    wide = dtype if dtype in _SORTED else "float32" if dtype in HALF else "int64"
    if dtype == "uint64":
        raise Refused("TVM sorts no uint64")
    largest = bool(node.attrs["largest"])

    # Rows are addressed in operands only: TVM may keep elements of temporary arrays in registers.
    by_row = dtype == wide and axis == len(dims_of(value)) - 1 > 0
    sort = _sorted_by_row if by_row else _sorted

    def compute(x: te.Tensor, shape: Sequence[Any]) -> Any:
        read = (
            x if dtype == wide else te.compute(x.shape, lambda *i: x(*i).astype(wide), name="read")
        )
        values, places = te.extern(
            [tuple(shape), tuple(shape)],
            [read],
            lambda ins, outs: sort(ins[0], outs, shape[axis], axis, largest),
            in_buffers=[_whole(x.shape, wide)],
            out_buffers=[_whole(shape, wide), _whole(shape, "int64")],
            name="topk",
        )
        if dtype == wide:
            return [values, places]
        return [te.compute(shape, lambda *i: values(*i).astype(dtype), name="values"), places]

    made = lowering.te(compute, lowering[value], shape, primfunc_name_hint="topk")
    return [made[0], made[1]]


def _whole(shape: Sequence[Any], dtype: str) -> Any:
    """A buffer as TVM's sort requires it: without an offset."""
    return tirx.decl_buffer(tuple(shape), dtype, data_alignment=8, layout=None)


def _sorted(source: Any, results: Sequence[Any], k: Any, axis: int, largest: bool) -> Any:
    with IRBuilder() as builder:
        # For k = 0 TVM's function would return all.
        with T.If(k > 0), T.Then():
            T.evaluate(_topk([source, *results], k, axis, largest))
        return builder.get()


def _sorted_by_row(source: Any, results: Sequence[Any], k: Any, axis: int, largest: bool) -> Any:
    """A call for each row, in parallel: TVM's function sorts its rows on one thread."""

    def row(*index: Any) -> None:
        T.evaluate(_topk([_row(b, index) for b in (source, *results)], k, 0, largest))

    with IRBuilder() as builder:
        with T.If(k > 0), T.Then():
            if _is(k, 0):
                T.evaluate(0)  # An empty row has no address.
            else:
                _parallel(source.shape[:-1], row)
        return builder.get()


def _is(extent: Any, value: int) -> bool:
    return isinstance(extent, int | tirx.IntImm) and int(extent) == value


def _row(buffer: Any, index: tuple[Any, ...]) -> Any:
    """A row as an array with its own pointer: TVM's function ignores the byte offset."""
    return tirx.tvm_stack_make_array(
        T.address_of(buffer[(*index, 0)]),
        tirx.tvm_stack_make_shape(buffer.shape[-1]),
        tirx.const(0, "uint64"),
        1,
        tirx.const(0, buffer.dtype),
        0,
    )


def _topk(arrays: Sequence[Any], k: Any, axis: int, largest: bool) -> Any:
    return tirx.call_packed("tvm.contrib.sort.topk", *arrays, k, axis, "both", not largest)


RULES: dict[str, Rule] = {
    **{op: _reduction(way) for op, way in _REDUCTIONS.items()},
    "ReduceLogSumExp": by_axes(_log_sum_exp),
    "ArgMax": _arg(largest),
    "ArgMin": _arg(smallest),
    "Softmax": _along_axis(softmax),
    "LogSoftmax": _along_axis(_log_softmax),
    "Hardmax": _along_axis(_hardmax),
    "CumSum": _cumsum,
    "TopK": _top_k,
}
