"""Quantizers, and products of integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.ir import DType, Node, TensorType, ValueType
from tersor.ir.dims import product
from tersor.ops.families import _straight as straight
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import broadcast_dims, refuse, tensor
from tersor.ops.families._ties import broadcast, dims, plain
from tersor.ops.families.elementwise import elementwise_cost
from tersor.ops.families.matmul import matmul_cost, matmul_ties
from tersor.ops.opdef import Cost, Cut, Follow, OpDef, Sample, Tie, Trait


def _along(parameter: Any, x: Any, axis: int, block: int) -> Any:
    """A scale or zero point in a shape that broadcasts against ``x``."""
    if parameter.dim() == 0 or parameter.numel() == 1:
        return parameter.reshape(())
    if block and parameter.shape[axis] == 1:
        return parameter
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


def is_part_of_quantized_op(node: Node) -> bool:
    """Whether a DequantizeLinear of a constant belongs to a quantized op in QDQ form: its users also read
    dequantized activations."""
    return any(
        v is not None
        and v.producer is not None
        and v.producer.op == "DequantizeLinear"
        and not all(x is None or x.is_constant for x in v.producer.inputs[:1])
        for user in node.output.users
        for v in user.inputs
    )


def _dynamic_rows(x: Any) -> Any:
    import torch

    # The zero that the range has to include also covers a row without elements.
    padded = torch.nn.functional.pad(x, (0, 1))
    low, high = padded.amin(-1, keepdim=True), padded.amax(-1, keepdim=True)
    scale = (high - low) / 255
    scale = scale.where(scale != 0, torch.ones_like(scale))
    zero = (-low / scale).round().clamp(0, 255)
    return ((x / scale).round() + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


def _dynamic(x: Any) -> Any:
    """Treats the tensor as one row."""
    q, scale, zero = _dynamic_rows(x.reshape(-1))
    return q.reshape(x.shape), scale.reshape(()), zero.reshape(())


def _dynamic_infer(node: Node) -> list[ValueType]:
    x = node.inputs[0]
    assert x is not None
    return [
        TensorType(DType.U8, x.tensor.dims),
        TensorType(DType.F32, ()),
        TensorType(DType.U8, ()),
    ]


def _dynamic_rows_infer(node: Node) -> list[ValueType]:
    x = tensor(node)
    if x.dtype is not DType.F32:
        refuse(node, f"rows of {x.dtype.value}; it takes f32")
    if x.dims == ():
        refuse(node, "a scalar has no rows")
    parameters = None if x.dims is None else (*x.dims[:-1], 1)
    return [
        TensorType(DType.U8, x.dims),
        TensorType(DType.F32, parameters),
        TensorType(DType.U8, parameters),
    ]


def _dynamic_rows_ties(node: Node) -> list[Tie]:
    """Rows are independent; cutting elements of a row changes its scale."""
    if not dims(node.inputs[0]):
        return []
    *rows, k = dims(node.inputs[0])
    sides = [("in", 0), ("out", 0), ("out", 1), ("out", 2)]
    ties = [
        Tie(size, tuple(plain(side, i, axis) for side, i in sides))
        for axis, size in enumerate(rows)
    ]
    within = (plain("in", 0, len(rows)), plain("out", 0, len(rows)))
    return [*ties, Tie(k, within, "shape")]


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
    """A scale or zero point of a product's first operand: one, or one per row."""
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


def _integer_ties(node: Node) -> list[Tie]:
    """MatMul's ties; a summed axis only without zero points, because removing a position is equivalent to
    its zero point there, not to zero."""
    zeros = [node.input(i) for i in (2, 3)]
    if any(z is not None and z.tensor.numel != 1 for z in zeros):
        return []
    summed = all(z is None for z in zeros)
    return [t for t in matmul_ties(node) if t.kind != "sum" or summed]


def _scalar(node: Node) -> bool:
    scale = node.inputs[1]
    return scale is not None and scale.tensor.dims == ()


def _dequantize_ties(node: Node) -> list[Tie]:
    """If a block is the whole axis (a scale per row), ``block_size`` shrinks with it."""
    if _scalar(node):
        return broadcast(node, [0])
    x, scale, axis = dims(node.inputs[0]), dims(node.inputs[1]), node.attrs["axis"]
    assert isinstance(axis, int)
    if not node.attrs["block_size"] or not x or len(scale) != len(x) or scale[axis] != 1:
        return []
    unlike = (i for i, (a, b) in enumerate(zip(x, scale, strict=True)) if a != b)
    return broadcast(node, skip=tuple(i for i in unlike if i != axis % len(x)))


def _dequantize_follow(node: Node, cut: Cut) -> Follow:
    axis, block = node.attrs["axis"], node.attrs["block_size"]
    assert isinstance(axis, int) and isinstance(block, int)
    gone = len(cut.get(("in", 0, axis % max(1, len(dims(node.inputs[0])))), ()))
    return Follow({"block_size": block - gone} if block and gone else {})


def _quantize_samples(rng: np.random.Generator) -> list[Sample]:
    scale, zero = np.array(0.02, np.float32), np.array(3, np.int8)
    return [
        Sample([floats(rng, 3, 4), scale, zero]),
        Sample([floats(rng, 3, 4), np.array([0.1, 0.2, 0.3], np.float32), np.array([1, 2, 3], np.uint8)],
               {"axis": 0}),
    ]  # fmt: skip


def _dequantize_samples(rng: np.random.Generator) -> list[Sample]:
    q = rng.integers(-128, 127, (4, 6)).astype(np.int8)
    scale = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    return [
        Sample([q, np.array(0.02, np.float32), np.array(3, np.int8)]),
        Sample([q, scale, np.zeros(4, np.int8)], {"axis": 0}),
        Sample([q, floats(rng, 4, 2)], {"axis": 1, "block_size": 3}),
        Sample([rng.integers(0, 255, (2, 4, 6)).astype(np.uint8), floats(rng, 2, 4, 1),
                rng.integers(0, 255, (2, 4, 1)).astype(np.uint8)], {"axis": -1, "block_size": 6}),
    ]  # fmt: skip


def _dynamic_rows_samples(rng: np.random.Generator) -> list[Sample]:
    mixed = floats(rng, 2, 3, 5)
    mixed[0, 1] = 0
    mixed[1] = np.abs(mixed[1]) + 1
    return [
        Sample([x], outputs=3) for x in (floats(rng, 3, 4), mixed, -np.abs(mixed), floats(rng, 7))
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


_DYNAMIC_ROWS_DOC = """\
x: f32[..., K] -> q: u8[..., K], scale: f32[..., 1], zero_point: u8[..., 1]

Each row as ONNX's DynamicQuantizeLinear quantizes a tensor, halves rounded to even:

    low, high = min(0, x), max(0, x)        over the row
    scale = (high - low) / 255, or 1 where that is 0: a row of zeros has scale 1, zero point 0, q 0
    zero_point = saturate(round(-low / scale));  q = saturate(round(x / scale) + zero_point)

DequantizeLinear(q, scale, zero_point) {axis = -1, block_size = K} gives the numbers back."""

_ROUNDING: frozenset[Trait] = frozenset({"rounding"})

ROWS = [
    OpDef("QuantizeLinear", since=13, torch=_quantize, cost=elementwise_cost,
          ties=lambda node: broadcast(node, [0]) if _scalar(node) else [], traits=_ROUNDING,
          straight_through=straight.quantize, samples=_quantize_samples),
    OpDef("DequantizeLinear", since=13, infer=_dequantize_infer, torch=_dequantize,
          cost=elementwise_cost, ties=_dequantize_ties, follow=_dequantize_follow,
          samples=_dequantize_samples),
    OpDef("DynamicQuantizeLinear", since=11, infer=_dynamic_infer, torch=_dynamic,
          cost=elementwise_cost, outputs=3, traits=_ROUNDING,
          straight_through=straight.quantize_dynamically,
          samples=lambda rng: [
              Sample([x], outputs=3) for x in (floats(rng, 3, 4), floats(rng, 3) ** 2 + 1)
          ]),
    OpDef("tersor.DynamicQuantizeRows", doc=_DYNAMIC_ROWS_DOC, inputs=("x",), outputs=3,
          infer=_dynamic_rows_infer, torch=_dynamic_rows, cost=elementwise_cost,
          ties=_dynamic_rows_ties, traits=_ROUNDING, straight_through=straight.quantize_dynamically,
          samples=_dynamic_rows_samples),
    OpDef("MatMulInteger", traits=frozenset({"product"}),
          since=10, torch=_matmul_integer, cost=matmul_cost,
          ties=_integer_ties, samples=_integer_samples),
    OpDef("QLinearMatMul", traits=frozenset({"product"}),
          since=10, infer=_qlinear_infer, torch=_qlinear_matmul, cost=_qlinear_cost,
          straight_through=straight.quantized_product,
          samples=_qlinear_samples),
]  # fmt: skip
