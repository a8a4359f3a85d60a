"""Quantizers, and products of integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.ir import DType, Node, TensorType, ValueType
from tersor.ir.dims import product
from tersor.ops.families._symbolic import broadcast_dims, tensor
from tersor.ops.families._ties import broadcast, dims
from tersor.ops.families.elementwise import elementwise_cost
from tersor.ops.families.matmul import matmul_cost, matmul_ties
from tersor.ops.opdef import Cost, OpDef, Sample, Tie


def _along(parameter: Any, x: Any, axis: int, block: int) -> Any:
    """A scale or zero point in a shape that broadcasts against ``x``."""
    if parameter.dim() == 0 or parameter.numel() == 1:
        return parameter.reshape(())
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


def _quantize(
    x: Any, scale: Any, zero: Any = None, *, axis: int, block_size: int, saturate: int,
    output_dtype: int, precision: int,
) -> Any:  # fmt: skip
    import torch

    dtype = torch.uint8 if zero is None else zero.dtype
    s = _along(scale, x, axis, block_size)
    z = 0 if zero is None else _along(zero, x, axis, block_size).float()
    info = torch.iinfo(dtype)
    return ((x / s).round() + z).clamp(info.min, info.max).to(dtype)


def _dequantize(
    x: Any, scale: Any, zero: Any = None, *, axis: int, block_size: int, output_dtype: int = 0
) -> Any:
    s = _along(scale, x, axis, block_size)
    wide = x.to(scale.dtype)
    if zero is not None:
        wide = wide - _along(zero, x, axis, block_size).to(scale.dtype)
    return wide * s


def _dequantize_infer(node: Node) -> list[ValueType]:
    x, scale = node.inputs[0], node.inputs[1]
    assert x is not None and scale is not None
    return [TensorType(scale.tensor.dtype, x.tensor.dims)]


def _dynamic(x: Any) -> Any:
    """ONNX: range stretched to hold zero; scale = (high - low) / 255; zero point saturated."""
    import torch

    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    safe = scale.where(scale > 0, torch.ones_like(scale))
    zero = (-low / safe).round().clamp(0, 255)
    return ((x / safe).round() + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


def _dynamic_infer(node: Node) -> list[ValueType]:
    x = node.inputs[0]
    assert x is not None
    return [
        TensorType(DType.U8, x.tensor.dims),
        TensorType(DType.F32, ()),
        TensorType(DType.U8, ()),
    ]


def _matmul_integer(a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> Any:
    import torch

    wide_a, wide_b = a.to(torch.float64), b.to(torch.float64)
    if a_zero is not None:
        za = a_zero.to(torch.float64)
        wide_a = wide_a - (za.unsqueeze(-1) if za.dim() else za)
    if b_zero is not None:
        wide_b = wide_b - b_zero.to(torch.float64)
    return (wide_a @ wide_b).to(torch.int32)


def _rows(parameter: Any) -> Any:
    """A scale or zero point of the first operand of a product: one, or one for each row."""
    return parameter.unsqueeze(-1) if parameter.dim() else parameter


def _qlinear_matmul(
    a: Any, a_scale: Any, a_zero: Any, b: Any, b_scale: Any, b_zero: Any, y_scale: Any, y_zero: Any
) -> Any:
    import torch

    exact = _matmul_integer(a, b, a_zero, b_zero).to(torch.float64)
    y = (exact * _rows(a_scale) * b_scale / _rows(y_scale)).round() + _rows(y_zero)
    info = torch.iinfo(y_zero.dtype)
    return y.clamp(info.min, info.max).to(y_zero.dtype)


def _qlinear_infer(node: Node) -> list[ValueType]:
    a, b, zero = tensor(node), tensor(node, 3), tensor(node, 7)
    if a.dims is None or b.dims is None or len(a.dims) < 2 or len(b.dims) < 2:
        return [TensorType(zero.dtype, None)]
    lead = broadcast_dims(a.dims[:-2], b.dims[:-2])
    return [TensorType(zero.dtype, (*lead, a.dims[-2], b.dims[-1]))]


def _qlinear_cost(node: Node) -> Cost:
    inner = dims(node.inputs[0])[-1:]
    out = node.output.tensor
    return Cost(product([*(out.dims or (None,)), *inner]), out.numel)


def _f(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _integer_ties(node: Node) -> list[Tie]:
    """As MatMul's, where each operand has one zero point: zero itself for operands without one, and
    what is cut of the summed axis is then not zero but the zero point."""
    zeros = [node.input(i) for i in (2, 3)]
    if any(z is not None and z.tensor.numel != 1 for z in zeros):
        return []
    summed = all(z is None for z in zeros)
    return [t for t in matmul_ties(node) if t.kind != "sum" or summed]


def _scalar(node: Node) -> bool:
    scale = node.inputs[1]
    return scale is not None and scale.tensor.dims == ()


def _quantize_samples(rng: np.random.Generator) -> list[Sample]:
    scale, zero = np.array(0.02, np.float32), np.array(3, np.int8)
    return [
        Sample([_f(rng, 3, 4), scale, zero]),
        Sample([_f(rng, 3, 4), np.array([0.1, 0.2, 0.3], np.float32), np.array([1, 2, 3], np.uint8)],
               {"axis": 0}),
    ]  # fmt: skip


def _dequantize_samples(rng: np.random.Generator) -> list[Sample]:
    q = rng.integers(-128, 127, (4, 6)).astype(np.int8)
    scale = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    return [
        Sample([q, np.array(0.02, np.float32), np.array(3, np.int8)]),
        Sample([q, scale, np.zeros(4, np.int8)], {"axis": 0}),
        Sample([q, _f(rng, 4, 2)], {"axis": 1, "block_size": 3}),
    ]


def _integer_samples(rng: np.random.Generator) -> list[Sample]:
    a = rng.integers(0, 255, (2, 3, 8)).astype(np.uint8)
    b = rng.integers(-64, 63, (8, 5)).astype(np.int8)
    return [Sample([a, b, np.array(7, np.uint8)]), Sample([a, b])]


def _qlinear_samples(rng: np.random.Generator) -> list[Sample]:
    a = rng.integers(0, 255, (2, 3, 8)).astype(np.uint8)
    b = rng.integers(-64, 63, (8, 5)).astype(np.int8)

    def case(b_scale: Any, b_zero: Any) -> Sample:
        scale, zero = np.array(0.02, np.float32), np.array(120, np.uint8)
        last: list[np.ndarray] = [np.array(0.3, np.float32), np.array(110, np.uint8)]
        return Sample(
            [a, scale, zero, b, np.array(b_scale, np.float32), np.array(b_zero, np.int8), *last]
        )

    return [case(0.05, 3), case([0.01, 0.02, 0.03, 0.04, 0.05], [0, 1, -2, 0, 3])]


ROWS = [
    OpDef("QuantizeLinear", since=13, torch=_quantize, cost=elementwise_cost,
          ties=lambda node: broadcast(node, [0]) if _scalar(node) else [], samples=_quantize_samples),
    OpDef("DequantizeLinear", since=13, infer=_dequantize_infer, torch=_dequantize,
          cost=elementwise_cost, ties=lambda node: broadcast(node, [0]) if _scalar(node) else [],
          samples=_dequantize_samples),
    OpDef("DynamicQuantizeLinear", since=11, infer=_dynamic_infer, torch=_dynamic,
          cost=elementwise_cost, outputs=3,
          samples=lambda rng: [Sample([_f(rng, 3, 4)], outputs=3), Sample([_f(rng, 3) ** 2 + 1], outputs=3)]),
    OpDef("MatMulInteger", since=10, torch=_matmul_integer, cost=matmul_cost,
          ties=_integer_ties, samples=_integer_samples),
    OpDef("QLinearMatMul", since=10, infer=_qlinear_infer, torch=_qlinear_matmul, cost=_qlinear_cost,
          samples=_qlinear_samples),
]  # fmt: skip
