"""A deterministic order of the size arguments of TVM's TE functions.

    y = cumsum(x) for x [past + sequence]:    cumsum(x, past, sequence), by name

A size that is not itself a dim of an operand is passed as a number.  TVM takes the order of several from a
set of objects, hashed by address: the same graph would give other bytes in another process.  Relax's own
lowering does so too, so the order is set where TVM creates the function.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.relax import block_builder, utils

_make = utils.gen_call_tir_inputs


def _in_order(*args: Any, **kwargs: Any) -> tuple[tirx.PrimFunc, list[Any], Any]:
    """A TE function's PrimFunc, its arguments and the type of its results."""
    function, operands, type = _make(*args, **kwargs)
    first = len(operands)
    while first and _is_size(function.params[first - 1]):
        first -= 1
    # Sizes come after the tensors and before the results.
    order = sorted(range(first, len(operands)), key=lambda place: function.params[place].name)
    if order == list(range(first, len(operands))):
        return function, operands, type
    places = [*range(first), *order, *range(len(operands), len(function.params))]
    parameters = [function.params[place] for place in places]
    ordered = tirx.PrimFunc(
        parameters, function.body, function.ret_type, attrs=function.attrs, span=function.span
    )
    return ordered, [*operands[:first], *(operands[place] for place in order)], type


def _is_size(parameter: tirx.Var) -> bool:
    return isinstance(parameter.ty, tvm.ir.PrimType) and parameter.ty.dtype == "int64"


# Patches TVM for all callers: it has no option for an order.
block_builder.gen_call_tir_inputs = _in_order
