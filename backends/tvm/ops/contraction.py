"""Sums of products along labelled axes, for matrix products and Einsum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tvm import relax, te

from tersor.backends.tvm.lowering import Lowering, dtype_of
from tersor.backends.tvm.ops.broadcast import HALF, Operand, dims_of, element
from tersor.backends.tvm.ops.folds import count, or_start, total
from tersor.ir import Dim, DType, TensorType, Value
from tersor.ops.families._symbolic import broadcast_dim

Labels = Sequence[str]
Product = Callable[..., Any]


def whole(lowering: Lowering, value: Value) -> Operand:
    """A value as a tensor operand, even where it is one number."""
    return Operand(lowering[value], dims_of(value))


def contract(
    lowering: Lowering,
    name: str,
    operands: Sequence[Operand],
    labels: Sequence[Labels],
    result: Labels,
    type: TensorType,
    product: Product = lambda *numbers: prod(numbers[1:], start=numbers[0]),
) -> Any:
    """An expression of ``type`` with an axis for each label of ``result``: the sum over all other labels
    of the ``product`` of the operands' elements. Axes of size 1 broadcast.

    Halves are summed in float32; other numbers in the product's type.
    """
    sizes = common_sizes(operands, labels) | dict(zip(result, type.dims or (), strict=True))
    operands = [
        _checked(lowering, o, [sizes[label] for label in own])
        for o, own in zip(operands, labels, strict=True)
    ]
    names, dtype = list(sizes), dtype_of(type)

    def compute(shape: dict[str, Any], *tensors: te.Tensor) -> te.Tensor:
        summed = {
            n: te.reduce_axis((0, shape[n]), name=n.strip(".")) for n in names if n not in result
        }

        def one(*index: Any) -> Any:
            at = dict(zip(result, index, strict=True)) | summed
            numbers = [
                element(t, [at[n] for n in own], o.dims, [sizes[n] for n in own])
                for t, own, o in zip(tensors, labels, operands, strict=True)
            ]
            term = product(*numbers)
            return te.sum(term, list(summed.values())) if summed else term

        made = te.compute([shape[n] for n in result], one, name=name)
        number = count(list(shape.values()), [i for i, n in enumerate(shape) if n in summed])
        made = or_start(made, number, total)
        if str(made.dtype) == dtype:
            return made
        return te.compute(made.shape, lambda *i: made(*i).astype(dtype), name="rounded")

    shape = {n: lowering.dim(size) for n, size in sizes.items()}
    return lowering.te(compute, shape, *(o.source for o in operands), primfunc_name_hint=name)


def accumulated(type: TensorType) -> TensorType:
    """The type of a sum before it is rounded to ``type``."""
    return TensorType(DType.F32, type.dims) if dtype_of(type) in HALF else type


def common_sizes(operands: Sequence[Operand], labels: Sequence[Labels]) -> dict[str, Dim]:
    """The broadcast size of each label; of two sizes not known to be equal, the first."""
    sizes: dict[str, Dim] = {}
    for operand, own in zip(operands, labels, strict=True):
        for label, dim in zip(own, operand.dims, strict=True):
            have = sizes.get(label, 1)
            sizes[label] = have if (joined := broadcast_dim(have, dim)) is None else joined
    return sizes


def _checked(lowering: Lowering, operand: Operand, want: Sequence[Dim]) -> Operand:
    """The operand, its dims checked against ``want`` at run time where they are not known to be equal."""
    pairs = list(zip(operand.dims, want, strict=True))
    if all(broadcast_dim(have, size) is not None for have, size in pairs):
        return operand
    dims = tuple(size if broadcast_dim(have, size) is None else have for have, size in pairs)
    type = relax.TensorType(lowering.dims(dims), operand.source.ty.dtype)
    return Operand(lowering.builder.match_cast(operand.source, type), dims)
