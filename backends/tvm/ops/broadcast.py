"""Elements of operands that broadcast, and results that are made one element at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import is_prim_expr

from tersor.backends.tvm.lowering import Lowering, Refused, dtype_of
from tersor.ir import Dim, DType, TensorType, Value

HALF = (
    "float16",
    "bfloat16",
)  # Read as float32: what is computed is rounded once, when it is written.

Scalar = Callable[..., Any]
"""From TIR's numbers to one, an element of the result. An operand that is left out is None."""


@dataclass(frozen=True)
class Operand:
    """What elements are read of.

    Attributes:
        source: an expression of Relax, or of TIR where it is one number that is part of the code.
        dims: the IR's; empty for a number.
    """

    source: Any
    dims: tuple[Dim, ...] = ()

    @property
    def is_number(self) -> bool:
        return bool(is_prim_expr(self.source))


def operand(lowering: Lowering, value: Value) -> Operand:
    """The operand that a value is: a number where it is a constant of one element."""
    if value.is_constant and value.tensor.numel == 1:
        number = value.numpy().reshape(()).item()
        dtype = dtype_of(value.type)
        # Immediates of TIR are of 64 bits, with a sign.
        if not isinstance(number, int) or abs(number) < 2**63:
            return Operand(widened(tirx.const(number, "float32" if dtype in HALF else dtype)))
    return Operand(lowering[value], dims_of(value))


def dims_of(value: Value) -> tuple[Dim, ...]:
    """Dims of a value.

    Raises:
        Refused: its rank is unknown.
    """
    if value.tensor.dims is None:
        raise Refused("a rank is known at run time only")
    return value.tensor.dims


def kind(number: Any) -> str:
    """The type of a TIR number."""
    return str(number.ty.dtype)


def widened(number: Any) -> Any:
    """A number as what is computed with: float32 for the halves."""
    return number.astype("float32") if kind(number) in HALF else number


def element(
    tensor: te.Tensor, index: Sequence[Any], have: Sequence[Dim], want: Sequence[Dim]
) -> Any:
    """The element of a tensor of dims ``have`` that is broadcast to ``index`` within ``want``."""
    own = index[len(index) - len(have) :]
    wanted = want[len(want) - len(have) :]
    place = [
        i if a == b else tirx.IntImm("int64", 0) if a == 1 else tirx.min(i, size - 1)
        for i, a, b, size in zip(own, have, wanted, tensor.shape, strict=True)
    ]
    return widened(tensor(*place))


def each(
    lowering: Lowering,
    name: str,
    operands: Sequence[Operand | None],
    type: TensorType,
    scalar: Scalar,
) -> Any:
    """An expression of ``type`` whose elements are ``scalar`` of those of the operands, broadcast."""
    dtype, want = dtype_of(type), type.dims
    read = [o for o in operands if o is not None and not o.is_number]
    if want is None:
        raise Refused("a rank is known at run time only")
    shape = [_size(lowering, dim, i - len(want), read) for i, dim in enumerate(want)]

    def compute(shape: Sequence[Any], *tensors: te.Tensor) -> te.Tensor:
        at = {id(o): t for o, t in zip(read, tensors, strict=True)}

        def one(*index: Any) -> Any:
            numbers = [
                None if o is None
                else o.source if o.is_number
                else element(at[id(o)], index, o.dims, want)
                for o in operands
            ]  # fmt: skip
            made = scalar(*numbers)
            return made if kind(made) == dtype else made.astype(dtype)

        return te.compute(tuple(shape), one, name=name)

    return lowering.te(compute, shape, *(o.source for o in read), primfunc_name_hint=name)


def _size(lowering: Lowering, dim: Dim, axis: int, operands: Sequence[Operand]) -> Any:
    """The size of a result's ``axis``, counted from the end. Where only a file's own name stands for it,
    it is what the operands' sizes give: the one that is not 1, or 0 where one is 0."""
    if lowering.is_known(dim):
        return lowering.dim(dim)
    have = [o.dims[axis] for o in operands if len(o.dims) >= -axis]
    sizes = [lowering.dim(d) for d in dict.fromkeys(have) if d != 1]
    size = sizes[0] if sizes else tirx.IntImm("int64", 1)
    for other in sizes[1:]:
        least, most = tirx.min(size, other), tirx.max(size, other)
        size = tirx.min(most, least * most)
    return size


def constant_scalar(value: Value | None) -> Any:
    """The number that a constant of one element is; None for anything else."""
    if value is None or not value.is_constant or value.tensor.numel != 1:
        return None
    return value.numpy().reshape(()).item()


def name_of(op: str) -> str:
    """A TIR function's name, from an op's."""
    return op.removeprefix("tersor.").lower()


def float_type(dtype: DType) -> str:
    """What floats of that type are computed in."""
    name = dtype_of(TensorType(dtype, ()))
    return "float32" if name in HALF else name


def differ(a: Any, b: Any) -> Any:
    """Whether two truth values differ. (TVM compares them as if they were floats.)"""
    return tirx.Or(tirx.And(a, tirx.Not(b)), tirx.And(tirx.Not(a), b))


def nan_max(a: Any, b: Any) -> Any:
    """The maximum; NaN where one is."""
    return _extreme(a > b, a, b)


def nan_min(a: Any, b: Any) -> Any:
    """The minimum; NaN where one is."""
    return _extreme(a < b, a, b)


def _extreme(first: Any, a: Any, b: Any) -> Any:
    if kind(a).startswith("float"):
        first = tirx.Or(first, tirx.isnan(a))
    return tirx.Select(first, a, b)
