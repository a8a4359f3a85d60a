"""Normalization, alone or after a residual sum or embeddings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule, dtype_of
from tersor.backends.tvm.ops._agreement import broadcast_sizes, check_equal, check_fits
from tersor.backends.tvm.ops._elements import fitting, looked_up
from tersor.backends.tvm.ops.broadcast import (
    Operand,
    dims_of,
    each,
    element,
    kind,
    name_of,
    operand,
    widened,
)
from tersor.backends.tvm.ops.folds import Read, count, fold, folded_at, total
from tersor.backends.tvm.ops.movement import axis_of
from tersor.backends.tvm.ops.reduce import read
from tersor.ir import Dim, Node, Value


@dataclass(frozen=True)
class _Moments:
    """``mean`` (None where nothing is subtracted) and the inverse deviation, both with the folded axes of
    size 1."""

    mean: te.Tensor | None
    inverse: te.Tensor
    axes: Collection[int]

    def normalized(self, number: Any, index: Sequence[Any]) -> Any:
        if self.mean is not None:
            number = number - folded_at(self.mean, index, self.axes)
        return number * folded_at(self.inverse, index, self.axes)


def _moments(
    shape: Sequence[Any], axes: Collection[int], of: Read, epsilon: float, centered: bool
) -> _Moments:
    """The moments over ``axes``, in two passes: a difference of squares would cancel."""

    def average(summed: te.Tensor, index: Sequence[Any]) -> Any:
        number = summed(*index)
        return number / count(shape, axes).astype(kind(number))

    mean = None
    if centered:
        summed = fold(shape, axes, of, total, "sum")
        mean = te.compute(summed.shape, lambda *i: average(summed, i), name="mean")

    def square(*index: Any) -> Any:
        number = of(*index)
        if mean is not None:
            number = number - folded_at(mean, index, axes)
        return number * number

    squares = fold(shape, axes, square, total, "squares")

    def inverse(*index: Any) -> Any:
        variance = average(squares, index)
        one, room = (tirx.const(c, kind(variance)) for c in (1, epsilon))
        return one / tirx.sqrt(variance + room)

    return _Moments(mean, te.compute(squares.shape, inverse, name="inverse"), axes)


# -- over the last axes ----------------------------------------------------------------------------


def _normalize(
    lowering: Lowering,
    node: Node,
    x: Operand,
    axis: int,
    parameters: Sequence[Value | None],
    moments: int = 0,
) -> list[Any]:
    """``x`` normalized over the axes from ``axis`` on, times scale plus bias (``parameters``); then the first
    ``moments`` of mean and inverse deviation."""
    centered, name = "RMS" not in node.op, name_of(node.op)
    dtype, epsilon = dtype_of(node.output.type), float(node.attrs["epsilon"])  # type: ignore[arg-type]
    given = [v for v in parameters if v is not None]
    have = [dims_of(v) for v in given]
    check_fits(lowering, have, x.dims)

    def compute(x_: te.Tensor, *tensors: te.Tensor) -> Any:
        of = read(x_)
        stats = _moments(x_.shape, range(axis, len(x_.shape)), of, epsilon, centered)

        def one(*index: Any) -> Any:
            number = stats.normalized(of(*index), index)
            for i, (tensor, dims) in enumerate(zip(tensors, have, strict=True)):
                parameter = element(tensor, index, dims, x.dims)
                number = number + parameter if i else number * parameter
            return number.astype(dtype)

        made = te.compute(x_.shape, one, name=name)
        rest = [_float32(t) for t in (stats.mean, stats.inverse) if t is not None][:moments]
        return [made, *rest] if moments else made

    made = lowering.te(compute, x.source, *(lowering[v] for v in given), primfunc_name_hint=name)
    return [made[i] for i in range(moments + 1)] if moments else [made]


def _float32(moment: te.Tensor) -> te.Tensor:
    return te.compute(moment.shape, lambda *i: moment(*i).astype("float32"), name="moment")


def _over_last_axes(lowering: Lowering, node: Node) -> Sequence[Any]:
    value, rank = node.inputs[0], len(dims_of(node.output))
    assert value is not None
    x = Operand(lowering[value], dims_of(value))
    more = sum(bool(v.uses) for v in node.outputs[1:]) and len(node.outputs) - 1
    return _normalize(lowering, node, x, axis_of(node, rank), node.inputs[1:], more)


def _after_residual(lowering: Lowering, node: Node) -> Sequence[Any]:
    """The sum is a result too, so it is rounded to the operands' type."""
    operands = [operand(lowering, v) for v in node.inputs[:2] if v is not None]
    type = node.output.tensor
    summed = each(lowering, "residual", operands, type, lambda a, b: a + b)
    x = Operand(summed, dims_of(node.output))
    return [*_normalize(lowering, node, x, axis_of(node, len(x.dims)), node.inputs[2:]), summed]


def _after_embedding(lowering: Lowering, node: Node) -> Sequence[Any]:
    type, want = node.output.tensor, dims_of(node.output)
    pairs = [v for v in node.inputs[2:] if v is not None]
    have = [dims_of(ids) for ids in pairs[::2]]
    dtype = dtype_of(type)

    def compute(shape: Sequence[Any], *tensors: te.Tensor) -> te.Tensor:
        def one(*index: Any) -> Any:
            summed: Any = None
            for ids, table, dims in zip(tensors[::2], tensors[1::2], have, strict=True):
                at = looked_up(element(ids, index[:-1], dims, want[:-1]), table.shape[0])
                row = widened(table(at, index[-1]))
                summed = row if summed is None else summed + row
            return summed.astype(dtype)

        return te.compute(tuple(shape), one, name="embedding")

    sources = [lowering[v] for v in pairs]
    shape = [*broadcast_sizes(lowering, have, want[:-1]), lowering.dim(want[-1])]
    made = lowering.te(compute, shape, *sources, primfunc_name_hint="embedding")
    summed = lowering.sized(made, type)
    return _normalize(lowering, node, Operand(summed, want), len(want) - 1, node.inputs[:2])


# -- over channels ---------------------------------------------------------------------------------


def _batch_norm(lowering: Lowering, node: Node) -> Sequence[Any]:
    if node.attrs.get("training_mode"):
        raise Refused("it is in training mode")
    dtype, epsilon = dtype_of(node.output.type), node.attrs["epsilon"]

    def compute(
        x: te.Tensor, scale: te.Tensor, bias: te.Tensor, mean: te.Tensor, variance: te.Tensor
    ) -> te.Tensor:
        def factor(c: Any) -> Any:
            spread = widened(variance(c))
            return widened(scale(c)) / tirx.sqrt(spread + tirx.const(epsilon, kind(spread)))

        factors = te.compute(scale.shape, factor, name="factor")

        def one(*index: Any) -> Any:
            c = index[1]
            centered = widened(x(*index)) - widened(mean(c))
            return (centered * factors(c) + widened(bias(c))).astype(dtype)

        return te.compute(x.shape, one, name="batch_norm")

    sources = [lowering[v] for v in node.inputs]
    return [lowering.te(compute, *sources, primfunc_name_hint="batch_norm")]


def _group_norm(lowering: Lowering, node: Node) -> Sequence[Any]:
    """Channels of a group share their moments; InstanceNormalization's each have their own."""
    value = node.inputs[0]
    assert value is not None
    channels: Dim = dims_of(value)[1]
    given = node.attrs.get("num_groups")
    groups = given if isinstance(given, int) else channels
    assert groups is not None and channels is not None  # Sizes have names before they are lowered.
    if groups != channels:
        check_equal(lowering, [(channels, channels // groups * groups)])
    dtype, epsilon = dtype_of(node.output.type), float(node.attrs["epsilon"])  # type: ignore[arg-type]

    def compute(x: te.Tensor, scale: te.Tensor, bias: te.Tensor, groups: Any) -> te.Tensor:
        each = 1 if given is None else tirx.max(tirx.floordiv(x.shape[1], groups), 1)
        shape = [x.shape[0], groups, each, *x.shape[2:]]

        def of(n: Any, group: Any, i: Any, *rest: Any) -> Any:
            return widened(x(n, group * each + i, *rest))

        stats = _moments(shape, range(2, len(shape)), of, epsilon, True)

        def one(n: Any, c: Any, *rest: Any) -> Any:
            split = (n, tirx.floordiv(c, each), tirx.floormod(c, each), *rest)
            number = stats.normalized(of(*split), split)
            return (number * widened(scale(c)) + widened(bias(c))).astype(dtype)

        return te.compute(x.shape, one, name="group_norm")

    parameters = [fitting(lowering, v, {0: channels}) for v in node.inputs[1:]]
    sources = [lowering[value], *parameters, lowering.dim(groups)]
    return [lowering.te(compute, *sources, primfunc_name_hint=name_of(node.op))]


def _lp_norm(lowering: Lowering, node: Node) -> Sequence[Any]:
    value = node.inputs[0]
    assert value is not None
    axis, power = axis_of(node, len(dims_of(value))), node.attrs["p"]
    assert isinstance(power, int)
    if power not in (1, 2):
        raise Refused(f"p is {power}")
    dtype = dtype_of(value.type)

    def compute(x: te.Tensor) -> te.Tensor:
        of = read(x)
        part: Callable[[Any], Any] = tirx.abs if power == 1 else lambda a: a * a
        summed = fold(x.shape, [axis], lambda *i: part(of(*i)), total, "sum")

        def norm(*index: Any) -> Any:
            number = summed(*index) if power == 1 else tirx.sqrt(summed(*index))
            zero, one = (tirx.const(c, kind(number)) for c in (0, 1))
            return tirx.Select(tirx.EQ(number, zero), one, number)

        norms = te.compute(summed.shape, norm, name="norm")
        return te.compute(
            x.shape, lambda *i: (of(*i) / folded_at(norms, i, [axis])).astype(dtype), name="lp_norm"
        )

    return [lowering.te(compute, lowering[value], primfunc_name_hint="lp_norm")]


RULES: dict[str, Rule] = {
    "LayerNormalization": _over_last_axes,
    "RMSNormalization": _over_last_axes,
    "tersor.AddLayerNormalization": _after_residual,
    "tersor.AddRMSNormalization": _after_residual,
    "tersor.EmbeddingLayerNormalization": _after_embedding,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _group_norm,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_norm,
}
