"""Quantizers and integer products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule, dtype_of
from tersor.backends.tvm.ops.broadcast import HALF, Operand, dims_of, each, kind, operand, widened
from tersor.backends.tvm.ops.contraction import Labels, contract, whole
from tersor.backends.tvm.ops.folds import Reducer, fold_or_start, folded_at, maximum, minimum
from tersor.backends.tvm.ops.matmul import matrix_labels, operands_of
from tersor.ir import DType, Node, TensorType, Value


def saturated(number: Any, dtype: str, bits: int | None = None) -> Any:
    """A whole float as an integer type, saturated to the range of ``bits`` bits (by default the type's)."""
    spare = np.dtype(dtype).itemsize * 8 - bits if bits else 0
    low, high = (
        tirx.const(bound.value >> spare, kind(number))
        for bound in (tirx.min_value(dtype), tirx.max_value(dtype))
    )
    return tirx.min(tirx.max(number, low), high).astype("int32").astype(dtype)


# -- QuantizeLinear, DequantizeLinear --------------------------------------------------------------


def _along(node: Node, parameter: Value) -> Callable[[te.Tensor, Sequence[Any]], Any]:
    """A reader of an element's scale or zero point: one for all, one per index of an axis, or one per
    block."""
    rank, axis, block = len(dims_of(node.output)), node.attrs["axis"], node.attrs["block_size"]
    assert isinstance(axis, int) and isinstance(block, int)
    zero, have = tirx.IntImm("int64", 0), dims_of(parameter)
    at = axis % rank if rank else 0

    def read(tensor: te.Tensor, index: Sequence[Any]) -> Any:
        if len(have) == 1 and not block:
            return tensor(zero if have == (1,) else index[at])
        place = list(index if have else ())
        if place and have[at] != 1:
            place[at] = tirx.floordiv(place[at], block)
        return tensor(*(zero if size == 1 else i for size, i in zip(have, place, strict=True)))

    return read


def _with_parameters(
    lowering: Lowering, node: Node, name: str, scalar: Callable[..., Any]
) -> Sequence[Any]:
    """``scalar`` of each element, its scale, and its zero point if any."""
    given = [v for v in node.inputs if v is not None]
    readers = [_along(node, v) for v in given[1:]]

    def compute(x: te.Tensor, *parameters: te.Tensor) -> te.Tensor:
        def one(*index: Any) -> Any:
            read = zip(readers, parameters, strict=True)
            return scalar(x(*index), *(reader(tensor, index) for reader, tensor in read))

        return te.compute(x.shape, one, name=name)

    sources = [lowering[v] for v in given]
    return [lowering.te(compute, *sources, primfunc_name_hint=name)]


def _real(number: Any) -> Any:
    """A scale in the type that is computed in; integers are allowed too."""
    return widened(number) if kind(number).startswith(("float", "bf")) else number.astype("float32")


def _quantize(lowering: Lowering, node: Node) -> Sequence[Any]:
    dtype, exact = dtype_of(node.output.type), bool(node.attrs.get("precision"))
    bits = node.output.tensor.dtype.bits

    def quantized(x: Any, scale: Any, zero: Any = None) -> Any:
        real = _real(scale)
        quotient = x.astype(kind(real)) / real
        if kind(scale) in HALF and not exact:
            # The division has the scale's precision, unless another is given.
            quotient = quotient.astype(kind(scale)).astype(kind(real))
        level = tirx.nearbyint(quotient)
        return saturated(level if zero is None else level + zero.astype(kind(real)), dtype, bits)

    return _with_parameters(lowering, node, "quantize", quantized)


def _dequantize(lowering: Lowering, node: Node) -> Sequence[Any]:
    dtype = dtype_of(node.output.type)

    def number(x: Any, scale: Any, zero: Any = None) -> Any:
        # Integers are subtracted as integers: exact whatever the scale's type.
        level = x.astype("int32")
        level = level if zero is None else level - zero.astype("int32")
        return (level.astype(kind(_real(scale))) * _real(scale)).astype(dtype)

    return _with_parameters(lowering, node, "dequantize", number)


# -- dynamic quantization --------------------------------------------------------------------------


def _folded(x: te.Tensor, axes: list[int], reducer: Reducer, name: str) -> te.Tensor:
    """Folded along rows first, which vectorize and run on all threads."""
    if len(axes) < 2:
        return fold_or_start(x.shape, axes, x, reducer, name)
    rows = fold_or_start(x.shape, axes[-1:], x, reducer, f"{name}_of_rows")
    return fold_or_start(rows.shape, axes, rows, reducer, name)


def _dynamic(lowering: Lowering, node: Node) -> Sequence[Any]:
    """With one scale, or one per row; the range is extended to include zero."""
    (value,) = operands_of(node, 1)
    rank = len(dims_of(value))
    rows = node.op == "tersor.DynamicQuantizeRows"
    axes = [rank - 1] if rows else list(range(rank))

    def compute(x: te.Tensor) -> list[te.Tensor]:
        zero, most = (tirx.const(c, str(x.dtype)) for c in (0, 255))
        low, high = (
            _folded(x, axes, reducer, name)
            for reducer, name in ((minimum, "low"), (maximum, "high"))
        )

        def below(*index: Any) -> Any:
            return tirx.min(low(*index), zero)

        def step(*index: Any) -> Any:
            size = (tirx.max(high(*index), zero) - below(*index)) / most
            return tirx.Select(tirx.EQ(size, zero), tirx.const(1, kind(size)), size)

        scale = te.compute(low.shape, step, name="scale")
        level = te.compute(
            low.shape, lambda *i: tirx.nearbyint((zero - below(*i)) / scale(*i)), name="level"
        )

        def quantized(*index: Any) -> Any:
            number = tirx.nearbyint(x(*index) / folded_at(scale, index, axes))
            return saturated(number + folded_at(level, index, axes), "uint8")

        def parameter(of: te.Tensor, made: Callable[[Any], Any], name: str) -> te.Tensor:
            def one(*index: Any) -> Any:
                return made(of(*(index or [tirx.IntImm("int64", 0)] * rank)))

            return te.compute(of.shape if rows else (), one, name=name)

        return [
            te.compute(x.shape, quantized, name="quantized"),
            parameter(scale, lambda s: s, "y_scale"),
            parameter(level, lambda z: saturated(z, "uint8"), "y_zero_point"),
        ]

    made = lowering.te(compute, lowering[value], primfunc_name_hint="dynamic_quantize")
    return [made[i] for i in range(3)]


# -- products --------------------------------------------------------------------------------------


def _rank(value: Value) -> int:
    return len(dims_of(value))


def _zero_labels(zero: Value, own: Labels, axis: str) -> Labels:
    """Labels of a zero point: none, one axis, or its operand's."""
    return [axis] if _rank(zero) == 1 else own[len(own) - _rank(zero) :]


def _exact(
    lowering: Lowering,
    a: Value,
    b: Value,
    a_zero: Value | None,
    b_zero: Value | None,
    result: TensorType,
) -> Any:
    """The product of integers minus their zero points, as int32."""
    own_a, own_b, made = matrix_labels(_rank(a), _rank(b))
    values, labels = [a, b], [own_a, own_b]
    for zero, own, axis in ((a_zero, own_a, "m"), (b_zero, own_b, "n")):
        if zero is not None:
            values.append(zero)
            labels.append(_zero_labels(zero, own, axis))

    def product(a: Any, b: Any, *zeros: Any) -> Any:
        numbers, rest = [a.astype("int32"), b.astype("int32")], iter(zeros)
        for i, zero in enumerate((a_zero, b_zero)):
            if zero is not None:
                numbers[i] = numbers[i] - next(rest).astype("int32")
        return numbers[0] * numbers[1]

    operands = [whole(lowering, v) for v in values]
    type = TensorType(DType.I32, result.dims)
    return contract(lowering, "matmul_integer", operands, labels, made, type, product, ("k",))


def _matmul_integer(lowering: Lowering, node: Node) -> Sequence[Any]:
    a, b = operands_of(node)
    return [_exact(lowering, a, b, node.input(2), node.input(3), node.output.tensor)]


def _rows(lowering: Lowering, value: Value) -> Operand:
    """A parameter of rows: one for all, or a column of one per row."""
    have = operand(lowering, value)
    if len(have.dims) != 1 or have.dims == (1,):
        return have
    return Operand(lowering.emit(relax.op.expand_dims(have.source, -1)), (*have.dims, 1))


def _qlinear_matmul(lowering: Lowering, node: Node) -> Sequence[Any]:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = operands_of(node, 8)
    dtype = dtype_of(node.output.type)
    if min(_rank(a), _rank(b)) < 2:
        raise Refused("a product with a vector")
    exact = _exact(lowering, a, b, a_zero, b_zero, node.output.tensor)

    def scaled(y: Any, of_a: Any, of_b: Any, of_y: Any, zero: Any) -> Any:
        number = tirx.nearbyint(y.astype(kind(of_y)) * (of_a * of_b / of_y))
        return saturated(number + zero.astype(kind(number)), dtype)

    operands = [
        Operand(exact, dims_of(node.output)),
        _rows(lowering, a_scale),
        operand(lowering, b_scale),
        _rows(lowering, y_scale),
        _rows(lowering, y_zero),
    ]
    return [each(lowering, "requantize", operands, node.output.tensor, scaled)]


RULES: dict[str, Rule] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
    "tersor.DynamicQuantizeRows": _dynamic,
    "MatMulInteger": _matmul_integer,
    "QLinearMatMul": _qlinear_matmul,
}
