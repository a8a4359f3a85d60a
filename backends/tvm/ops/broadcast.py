"""Elementwise results over broadcast operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import is_prim_expr

from tersor.backends.tvm.lowering import Lowering, Refused, dtype_of
from tersor.backends.tvm.ops._agreement import broadcast_sizes
from tersor.ir import Dim, DType, TensorType, Value

HALF = ("float16", "bfloat16")  # Read as float32, so that results are rounded once, when written.

Scalar = Callable[..., Any]
"""From TIR expressions of the operands' elements to the result's. Omitted operands are None."""


@dataclass(frozen=True)
class Operand:
    """An operand whose elements are read.

    Attributes:
        source: a Relax expression, or a TIR one for a number that is part of the code.
        dims: of the IR; empty for a number.
    """

    source: Any
    dims: tuple[Dim, ...] = ()

    @property
    def is_number(self) -> bool:
        return bool(is_prim_expr(self.source))


def operand(lowering: Lowering, value: Value) -> Operand:
    """A value as an operand: a number where it is a constant of one element."""
    if value.is_constant and value.tensor.numel == 1:
        number = value.numpy().reshape(()).item()
        dtype = dtype_of(value.type)
        # TIR's immediates are signed 64-bit.
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
    """A number in the type that is computed in: float32 for the halves."""
    return number.astype("float32") if kind(number) in HALF else number


def element(
    tensor: te.Tensor, index: Sequence[Any], have: Sequence[Dim], want: Sequence[Dim]
) -> Any:
    """The element of a tensor of dims ``have``, which are known to broadcast to ``want``, at ``index``."""
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
    """An expression of ``type``: ``scalar`` of the elements of the broadcast operands."""
    dtype, want = dtype_of(type), type.dims
    tensors = [o for o in operands if o is not None and not o.is_number]
    if want is None:
        raise Refused("a rank is known at run time only")
    shape = broadcast_sizes(lowering, [o.dims for o in tensors], want)

    def compute(shape: Sequence[Any], *sources: te.Tensor) -> te.Tensor:
        source = {id(o): t for o, t in zip(tensors, sources, strict=True)}

        def one(*index: Any) -> Any:
            numbers = [
                None if o is None
                else o.source if o.is_number
                else element(source[id(o)], index, o.dims, want)
                for o in operands
            ]  # fmt: skip
            result = scalar(*numbers)
            return result if kind(result) == dtype else result.astype(dtype)

        return te.compute(tuple(shape), one, name=name)

    sources = [o.source for o in tensors]
    return lowering.sized(lowering.te(compute, shape, *sources, primfunc_name_hint=name), type)


def constant_scalar(value: Value | None) -> Any:
    """The number of a constant of one element; None for anything else."""
    if value is None or not value.is_constant or value.tensor.numel != 1:
        return None
    return value.numpy().reshape(()).item()


def name_of(op: str) -> str:
    """A TIR function's name, from the op's."""
    return op.removeprefix("tersor.").lower()


def float_type(dtype: DType) -> str:
    """The type that floats of ``dtype`` are computed in."""
    name = dtype_of(TensorType(dtype, ()))
    return "float32" if name in HALF else name


def differ(a: Any, b: Any) -> Any:
    """Whether two truth values differ. (TVM would compare them as floats.)"""
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
