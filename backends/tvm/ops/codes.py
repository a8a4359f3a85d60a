"""Floats of eight and four bits, which TVM stores as codes: conversion by tables.

Codes of positive numbers ascend with the numbers, so a number's code is the count of borders between
neighbours that it exceeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused
from tersor.ir import DType, Value

_NAN = {
    DType.F8E4M3FN: 0x7F, DType.F8E5M2: 0x7E, DType.F8E4M3FNUZ: 0x80, DType.F8E5M2FNUZ: 0x80,
    DType.F4E2M1: 0x8,  # It has no NaN: this is -0.
}  # fmt: skip
_UNSIGNED_ZERO = (DType.F8E4M3FNUZ, DType.F8E5M2FNUZ)


def _numbers(dtype: DType) -> np.ndarray:
    """The value of each code, in single precision."""
    codes = np.arange(2**dtype.bits, dtype=np.uint8).view(dtype.numpy)
    return codes.astype(np.float32)


def _borders(dtype: DType, saturate: bool) -> np.ndarray:
    """Border k: numbers above it round to code k + 1 or more. It is the midpoint, or the float below it where
    the midpoint rounds up, to an even code. Without ``saturate`` the last border ends the finite range."""
    positive = _numbers(dtype)[: 2 ** (dtype.bits - 1)]
    finite = positive[np.isfinite(positive)].astype(np.float64)
    beyond = 2 * finite[-1] - finite[-2]
    above = [*finite[1:], *([] if saturate else [beyond])]
    middle = ((finite[: len(above)] + above) / 2).astype(np.float32)
    odd = np.arange(len(middle)) % 2 == 1
    borders: np.ndarray = np.where(odd, np.nextafter(middle, np.float32(0)), middle)
    return borders


def decoded(lowering: Lowering, value: Value, convert: Callable[[Any], Any]) -> Any:
    """``convert`` of the number of each code."""
    dtype = value.tensor.dtype
    table = lowering.constant(_numbers(dtype), "numbers")
    mask = tirx.const(2**dtype.bits - 1, "uint8")

    def compute(x: te.Tensor, table: te.Tensor) -> te.Tensor:
        return te.compute(
            x.shape, lambda *i: convert(table((x(*i) & mask).astype("int64"))), name="decoded"
        )

    return lowering.te(compute, lowering[value], table, primfunc_name_hint="decode")


def encoded(lowering: Lowering, value: Value, dtype: DType, saturate: bool) -> Any:
    """The code of the nearest number, ties to even. What exceeds the largest number becomes that or, without
    ``saturate``, infinity, or NaN in types without one.

    Raises:
        Refused: double precision, which would be rounded twice.
    """
    if value.tensor.dtype is DType.F64:
        raise Refused("double precision to small floats")
    borders = lowering.constant(_borders(dtype, saturate or dtype is DType.F4E2M1), "borders")
    sign_bit = tirx.const(2 ** (dtype.bits - 1), "int32")

    def compute(x: te.Tensor, borders: te.Tensor) -> te.Tensor:
        step = te.reduce_axis((0, borders.shape[0]), name="k")

        def over(*index: Any) -> Any:
            far = tirx.abs(x(*index).astype("float32"))
            return te.sum((far > borders(step)).astype("int32"), axis=step)

        size = te.compute(x.shape, over, name="size")

        def code(*index: Any) -> Any:
            number = x(*index).astype("float32")
            bits = tirx.reinterpret("int32", number)
            signed = bits < 0
            if dtype in _UNSIGNED_ZERO:
                signed = tirx.all(signed, size(*index) > 0)
            made = size(*index) | tirx.Select(signed, sign_bit, tirx.const(0, "int32"))
            nan = tirx.const(_NAN[dtype], "int32")
            return tirx.Select(tirx.isnan(number), nan, made).astype("uint8")

        return te.compute(x.shape, code, name="code")

    return lowering.te(compute, lowering[value], borders, primfunc_name_hint="encode")
