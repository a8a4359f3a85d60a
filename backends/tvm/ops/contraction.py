"""Sums of products along labelled axes, for matrix products and Einsum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from tvm import relax, te

from tersor.backends.tvm.lowering import Lowering, dtype_of
from tersor.backends.tvm.ops._agreement import broadcast_sizes, check_equal
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
    equal: Labels = (),
) -> Any:
    """An expression of ``type`` with an axis for each label of ``result``: the sum over all other labels
    of the ``product`` of the operands' elements. Axes broadcast, but for those of labels ``equal``, which the
    first two operands have.

    Halves are summed in float32; other numbers in the product's type.
    """
    if equal:
        a, b, *rest = operands
        operands = [*_equalized(lowering, a, b, labels, equal), *rest]
    sizes = common_sizes(operands, labels) | dict(zip(result, type.dims or (), strict=True))
    shape = {n: _size(lowering, n, size, operands, labels) for n, size in sizes.items()}
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

    sources = [o.source for o in operands]
    return lowering.sized(lowering.te(compute, shape, *sources, primfunc_name_hint=name), type)


def accumulated(type: TensorType) -> TensorType:
    """The type of a sum before it is rounded to ``type``."""
    return TensorType(DType.F32, type.dims) if dtype_of(type) in HALF else type


def common_sizes(operands: Sequence[Operand], labels: Sequence[Labels]) -> dict[str, Dim]:
    """The broadcast size of each label; None where only a run tells it."""
    sizes: dict[str, Dim] = {}
    for operand, own in zip(operands, labels, strict=True):
        for label, dim in zip(own, operand.dims, strict=True):
            sizes[label] = broadcast_dim(sizes.get(label, 1), dim)
    return sizes


def _size(
    lowering: Lowering, label: str, size: Dim, operands: Sequence[Operand], labels: Sequence[Labels]
) -> Any:
    """The size of a label, after a check that the operands' sizes broadcast to it."""
    pairs = [
        p for o, own in zip(operands, labels, strict=True) for p in zip(own, o.dims, strict=True)
    ]
    (made,) = broadcast_sizes(lowering, [(dim,) for name, dim in pairs if name == label], (size,))
    return made


def _equalized(
    lowering: Lowering, a: Operand, b: Operand, labels: Sequence[Labels], equal: Labels
) -> tuple[Operand, Operand]:
    """The operands, their axes of labels ``equal`` of the same dims: a run fails where they differ."""
    first, second = (
        dict(zip(n, o.dims, strict=True)) for n, o in zip(labels, (a, b), strict=False)
    )
    wanted = {n: second[n] if isinstance(second[n], int) else first[n] for n in equal}
    return _cast(lowering, a, labels[0], wanted), _cast(lowering, b, labels[1], wanted)


def _cast(lowering: Lowering, operand: Operand, own: Labels, wanted: Mapping[str, Dim]) -> Operand:
    dims = tuple(wanted.get(n, dim) for n, dim in zip(own, operand.dims, strict=True))
    if dims == operand.dims:
        return operand
    check_equal(lowering, zip(operand.dims, dims, strict=True))
    type = relax.TensorType(lowering.dims(dims), operand.source.ty.dtype)
    return Operand(lowering.builder.match_cast(operand.source, type), dims)
