"""Graphs of one Attention in all its forms, and operands for them: what tests of backends share."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.ir import DType, Graph, TensorType, symbol
from tersor.ir.dims import evaluate as evaluate_dim
from tersor.ops import TABLE

BATCH, Q, K, PAST = symbol("batch"), symbol("queries"), symbol("keys"), symbol("past")
SIZES = {"batch": 3, "queries": 5, "keys": 7, "past": 4}
HEADS, D, DV = 4, 8, 6


def numbers(rng: np.random.Generator, type: TensorType, sizes: dict[str, int]) -> np.ndarray:
    assert type.dims is not None
    shape = [evaluate_dim(d, sizes) for d in type.dims if d is not None]
    if type.dtype is DType.BOOL:
        return rng.random(shape) < 0.6
    return rng.standard_normal(shape).astype(type.dtype.numpy)


def attention(
    flat: bool = True,
    groups: int = HEADS,
    mask: TensorType | None = None,
    past: bool = False,
    results: int = 1,
    dtype: DType = DType.F32,
    dv: int = DV,
    **attrs: Any,
) -> Graph:
    graph = TABLE.graph()

    def operand(name: str, heads: int, length: Any, d: int) -> Any:
        dims = (BATCH, length, heads * d) if flat else (BATCH, heads, length, d)
        return graph.add_input(name, TensorType(dtype, dims))

    inputs = [operand("q", HEADS, Q, D), operand("k", groups, K, D), operand("v", groups, K, dv)]
    inputs.append(graph.add_input("mask", mask) if mask is not None else None)
    if past:
        for name, d in (("past_k", D), ("past_v", dv)):
            inputs.append(graph.add_input(name, TensorType(dtype, (BATCH, groups, PAST, d))))
    if flat:
        attrs |= {"q_num_heads": HEADS, "kv_num_heads": groups}
    while inputs[-1] is None:
        inputs.pop()
    node = graph.emit_node("Attention", inputs, attrs, names=["y", "new_k", "new_v"][:results])
    graph.set_outputs(node.outputs)
    return graph


def feeds_of(graph: Graph, sizes: dict[str, int] = SIZES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {v.name: numbers(rng, v.tensor, sizes) for v in graph.inputs}


def boolean(*dims: Any) -> TensorType:
    return TensorType(DType.BOOL, dims)


def real(*dims: Any) -> TensorType:
    return TensorType(DType.F32, dims)


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "softcap and mask": {"softcap": 0.5, "mask": boolean(BATCH, 1, Q, K)},
    "causal": {"is_causal": 1},
    "causal and padding": {"is_causal": 1, "mask": boolean(BATCH, 1, 1, K)},
    "causal and additive": {"is_causal": 1, "mask": real(BATCH, 1, 1, K)},
    "padding": {"mask": boolean(BATCH, 1, 1, K)},
    "mask of rank 2": {"mask": boolean(Q, K)},
    "mask of rank 3": {"mask": boolean(HEADS, Q, K)},
    "mask for each head": {"mask": boolean(BATCH, HEADS, Q, K)},
    "additive": {"mask": real(BATCH, 1, Q, K)},
    "additive for each head": {"mask": real(1, HEADS, Q, K)},
    "additive of rank 2": {"mask": real(Q, K)},
    "short mask": {"mask": boolean(BATCH, 1, 1, 3)},
    "short additive mask": {"mask": real(BATCH, 1, Q, 3)},
    "mask of one key": {"mask": boolean(BATCH, 1, Q, 1)},
}
