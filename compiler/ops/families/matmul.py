"""Matrix products: MatMul, Gemm, and Linear, the canonical form of linear layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tersor.ir import Dim, Node, TensorType, ValueType
from tersor.ir.dims import product
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import tensor
from tersor.ops.families._ties import dims, plain
from tersor.ops.opdef import Bias, Cost, Member, OpDef, Quantizer, Sample, Tie, Weight, with_traits

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "tanh", "sigmoid", "silu")


def activate(x: Any, activation: str) -> Any:
    """The activation of a fused op, on a torch tensor.

    Raises:
        ValueError: not one of ACTIVATIONS.
    """
    import torch.nn.functional as F

    if activation == "none":
        return x
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}")
    return getattr(F, activation)(x)


def matmul_cost(node: Node) -> Cost:
    """out elements x inner size multiply-adds."""
    inner = dims(node.inputs[0])[-1:]
    return Cost(product([*dims(node.output), *inner]) if inner else None)


def matmul_ties(node: Node) -> list[Tie]:
    """[..., m, k] x [..., k, n] -> [..., m, n]: m and n are kept, k is summed, the rest broadcast."""
    a, b, out = dims(node.inputs[0]), dims(node.inputs[1]), dims(node.output)
    if not a or not b:
        return []
    ka, kb = len(a) - 1, max(len(b) - 2, 0)
    ties = [Tie(a[ka], (plain("in", 0, ka), plain("in", 1, kb)), "sum")]
    if len(a) > 1:
        row = len(out) - (2 if len(b) > 1 else 1)
        ties.append(Tie(a[-2], (plain("in", 0, len(a) - 2), plain("out", 0, row))))
    if len(b) > 1:
        ties.append(Tie(b[-1], (plain("in", 1, len(b) - 1), plain("out", 0, len(out) - 1))))
    kept = (len(a) > 1) + (len(b) > 1)
    for axis, size in enumerate(out[: len(out) - kept]):
        members: list[Member] = [plain("out", 0, axis)]
        for i, shape in enumerate((a, b)):
            own = axis - (len(out) - kept) + (len(shape) - 2)
            if own >= 0 and shape[own] == size and size != 1:
                members.append(plain("in", i, own))
        if len(members) > 1:
            ties.append(Tie(size, tuple(members)))
    return ties


def matmul_weights(node: Node) -> list[Weight]:
    """W[..., k, n]"""
    rank = len(dims(node.inputs[1]))
    return [Weight(1, (rank - 2,), activation=0)] if rank > 1 else []


def matmul_quantizers(node: Node) -> list[Quantizer]:
    """x[..., k], and a vector in the place of W"""
    vector = [Quantizer(1, (0,))] if len(dims(node.inputs[1])) == 1 else []
    return [Quantizer(0, (-1,)), *vector]


def _linear_weights(node: Node) -> list[Weight]:
    return [replace(weight, bias=Bias(2)) for weight in matmul_weights(node)]


def _matmul_samples(rng: np.random.Generator) -> list[Sample]:
    f = partial(floats, rng)

    return [
        Sample([f(3, 4), f(4, 5)]),
        Sample([f(2, 3, 4), f(4, 5)]),
        Sample([f(2, 1, 3, 4), f(5, 4, 2)]),
        Sample([f(4), f(4, 5)]),
        Sample([f(3, 4), f(4)]),
    ]


def _gemm(
    a: Any, b: Any, c: Any = None, *, alpha: float, beta: float, transA: int, transB: int
) -> Any:
    y = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return y if c is None else y + beta * c


def _gemm_cost(node: Node) -> Cost:
    a = dims(node.inputs[0])
    inner = a[0 if node.attrs["transA"] else 1] if a else None
    return Cost(product([*dims(node.output), inner]))


def _gemm_ties(node: Node) -> list[Tie]:
    a, b = dims(node.inputs[0]), dims(node.inputs[1])
    if len(a) != 2 or len(b) != 2:
        return []
    m, k = (1, 0) if node.attrs["transA"] else (0, 1)
    inner, n = (1, 0) if node.attrs["transB"] else (0, 1)
    rows, columns = [plain("in", 0, m), plain("out", 0, 0)], [plain("in", 1, n), plain("out", 0, 1)]
    bias = dims(node.input(2))
    if bias and bias[-1] == b[n] != 1:
        columns.append(plain("in", 2, len(bias) - 1))
    if len(bias) == 2 and bias[0] == a[m] != 1:
        rows.append(plain("in", 2, 0))
    return [
        Tie(a[m], tuple(rows)),
        Tie(b[n], tuple(columns)),
        Tie(a[k], (plain("in", 0, k), plain("in", 1, inner)), "sum"),
    ]


def _gemm_weights(node: Node) -> list[Weight]:
    inner = 1 if node.attrs["transB"] else 0
    return [Weight(1, (inner,), activation=None if node.attrs["transA"] else 0)]


def _gemm_quantizers(node: Node) -> list[Quantizer]:
    return [Quantizer(0, (0 if node.attrs["transA"] else 1,))]


def _gemm_samples(rng: np.random.Generator) -> list[Sample]:
    f = partial(floats, rng)

    return [
        Sample([f(3, 4), f(4, 5), f(5)]),
        Sample([f(4, 3), f(5, 4), f(3, 1)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
        Sample([f(3, 4), f(4, 5)]),
    ]


def _linear(x: Any, weight: Any, bias: Any = None, *, activation: str) -> Any:
    y = x @ weight
    return activate(y if bias is None else y + bias, activation)


def _linear_infer(node: Node) -> list[TensorType]:
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None and weight is not None
    if x.tensor.dims is None:
        return [x.tensor]
    columns: Dim = dims(weight)[-1] if dims(weight) else None
    return [x.tensor.with_dims((*x.tensor.dims[:-1], columns))]


def _linear_ties(node: Node) -> list[Tie]:
    ties = matmul_ties(node)
    if node.input(2) is None:
        return ties
    columns = len(dims(node.inputs[1])) - 1
    return [
        Tie(t.size, (*t.members, plain("in", 2, 0)), t.kind)
        if plain("in", 1, columns) in t.members
        else t
        for t in ties
    ]


def _linear_samples(rng: np.random.Generator) -> list[Sample]:
    f = partial(floats, rng)

    weights = frozenset({1, 2})
    return [
        Sample([f(2, 3, 4), f(4, 5), f(5)], {"activation": a}, weights) for a in ACTIVATIONS
    ] + [Sample([f(3, 4), f(4, 5)], {}, weights)]


# -- ONNX Runtime's own ----------------------------------------------------------------------------


def _quantized_infer(scale: int) -> Callable[[Node], list[ValueType]]:
    """x[..., k] by codes[k, n], in the element type of operand ``scale``."""

    def infer(node: Node) -> list[ValueType]:
        have, codes = tensor(node).dims, tensor(node, 1).dims
        known = have is not None and codes is not None and len(codes) == 2
        result = (*have[:-1], codes[1]) if known and have and codes else None
        return [TensorType(tensor(node, scale).dtype, result)]

    return infer


CONTRIB = [
    OpDef(f"com.microsoft.{op}", since=1, infer=_quantized_infer(scale), cost=matmul_cost)
    for op, scale in (("DynamicQuantizeMatMul", 0), ("MatMulIntegerToFloat", 2))
]
ROWS = CONTRIB + with_traits(
    "product",
    [
        OpDef(
            "MatMul",
            since=1,
            torch=lambda a, b: a @ b,
            cost=matmul_cost,
            ties=matmul_ties,
            weights=matmul_weights,
            quantizers=matmul_quantizers,
            samples=_matmul_samples,
        ),
        OpDef(
            "Gemm",
            since=11,
            torch=_gemm,
            cost=_gemm_cost,
            ties=_gemm_ties,
            weights=_gemm_weights,
            quantizers=_gemm_quantizers,
            samples=_gemm_samples,
        ),
        OpDef(
            "tersor.Linear",
            doc="""A linear layer: activation(x W + b) for x[..., k], W[k, n], b[n].

        ``activation`` is one of ACTIVATIONS; ``gelu`` is the exact (erf) form.""",
            inputs=("x", "weight", "bias?"),
            attrs={"activation": "none"},
            infer=_linear_infer,
            torch=_linear,
            cost=matmul_cost,
            ties=_linear_ties,
            weights=_linear_weights,
            quantizers=matmul_quantizers,
            samples=_linear_samples,
        ),
    ],
)
