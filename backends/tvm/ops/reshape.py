"""Reshape, Flatten, Squeeze, Unsqueeze: views given by the result's dims."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import mul
from typing import Any

from tvm import relax, tirx

from tersor.backends.tvm.lowering import Lowering, Rule, dtype_of
from tersor.backends.tvm.ops._elements import element, operand
from tersor.backends.tvm.ops._sizes import compute_sizes
from tersor.backends.tvm.ops.broadcast import dims_of
from tersor.ir import Dim, Node, Sym, Value
from tersor.ir.dims import Call
from tersor.ops import contents_of


def _reshape(lowering: Lowering, node: Node) -> Sequence[Any]:
    if node.op == "Reshape":
        _compute_target(lowering, node)
    x, dims = lowering[node.inputs[0]], lowering.shape_of(node.output)
    if node.op == "Squeeze":
        x = _checked(lowering, node, x)
    if node.output.tensor.numel == 0:
        # To Relax a dim of 0 means a copied one.
        return [lowering.emit(relax.op.zeros(dims, dtype_of(node.output.type)))]
    if node.op == "Reshape" and _has_quotients(node.output.tensor.dims):
        return [_view(lowering, x, node.output)]
    return [lowering.emit(relax.op.reshape(x, dims))]


def _has_quotients(dims: Sequence[Dim] | None) -> bool:
    """Whether a dim is no polynomial of sizes: a quotient, say."""
    syms = [dim for dim in dims or () if isinstance(dim, Sym)]
    return any(
        isinstance(atom, Call) for sym in syms for monomial, _ in sym.terms for atom in monomial
    )


def _view(lowering: Lowering, x: Any, value: Value) -> Any:
    """The same memory with other dims. Relax's reshape is a view only where TVM can prove that both have as
    many elements; else it is a kernel that divides positions by such dims, which LLVM does not finish."""
    type = lowering.relax_type(value.tensor)
    shape = relax.ShapeExpr(lowering.shape_of(value))
    return lowering.emit(relax.op.call_pure_packed("vm.builtin.reshape", x, shape, ty_args=[type]))


def _compute_target(lowering: Lowering, node: Node) -> None:
    """The target's numbers, of which 0 is the operand's size and -1 what is left."""
    x, target = node.inputs
    assert x is not None and target is not None
    rank, copies = len(dims_of(node.output)), not node.attrs.get("allowzero")

    def sizes(have: list[Any], target: Any) -> list[Any]:
        asked = [element(target, n) for n in range(rank)]
        if copies:
            for n, size in enumerate(have[:rank]):
                asked[n] = tirx.Select(asked[n] == 0, size, asked[n])
        one = tirx.IntImm("int64", 1)
        total = reduce(mul, have, one)
        told = reduce(mul, (tirx.Select(n < 0, one, n) for n in asked), one)
        left = tirx.floordiv(total, tirx.max(told, one))
        return [tirx.Select(n < 0, left, n) for n in asked]

    compute_sizes(lowering, node, sizes, lowering.shape_of(x), operand(lowering, target))


def _checked(lowering: Lowering, node: Node, x: Any) -> Any:
    """The operand; removed dims that are not known to be 1 are checked at run time."""
    value, axes = node.inputs[0], contents_of(node.input(1))
    have = value.tensor.dims if value is not None else None
    if have is None or axes is None or not all(isinstance(a, int) for a in axes.reshape(-1)):
        return x
    gone = {int(a) % len(have) for a in axes.reshape(-1)}
    if all(have[a] == 1 for a in gone):
        return x
    wanted = [
        tirx.IntImm("int64", 1) if a in gone else d for a, d in enumerate(lowering.dims(have))
    ]
    type = relax.TensorType(wanted, x.ty.dtype)
    return lowering.builder.match_cast(lowering.builder.normalize(x), type)


RULES: dict[str, Rule] = dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape)
