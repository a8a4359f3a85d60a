"""Transcendentals without the C library.

A call of ``exp``, ``log``, ``tanh``, ``erf`` or ``sigmoid`` becomes the polynomial of
in :mod:`tersor.backends.tvm.kernels.vector` (derived there), for all lanes at once; LLVM would call libm's
scalar function for each.  float16 and bfloat16 go through float32; float64
keeps libm, for its accuracy.

The pass runs once loops are vectorized and no longer copied, so that an operand can be bound to a
variable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from tersor.backends.tvm.kernels import vector

POLYNOMIALS: dict[str, Callable[[Any], Any]] = {
    "tirx.exp": vector.exp,
    "tirx.log": vector.log,
    "tirx.tanh": vector.tanh,
    "tirx.erf": vector.erf,
    "tirx.sigmoid": vector.sigmoid,
}
_HALVES = ("float16", "bfloat16")


@tirx.transform.prim_func_pass(opt_level=0)
def fast_math(func: tirx.PrimFunc, module: tvm.IRModule, context: object) -> tirx.PrimFunc:
    """Replaces calls within a function."""
    return func.with_body(tvm_ffi.structural_map(func.body, (tvm.ir.Call, _replaced)))


def _replaced(call: Any) -> Any:
    polynomial = POLYNOMIALS.get(getattr(call.op, "name", ""))
    if polynomial is None:
        return call
    dtype = str(call.ty.dtype)
    element = dtype.partition("x")[0]
    if element in _HALVES:
        wide = dtype.replace(element, "float32")
        return tirx.Cast(dtype, _bound(polynomial, tirx.Cast(wide, call.args[0])))
    return _bound(polynomial, call.args[0]) if element == "float32" else call


def _bound(polynomial: Callable[[Any], Any], operand: Any) -> Any:
    x = tirx.Var("x", str(operand.ty.dtype))
    return tirx.Let(x, operand, polynomial(x))
