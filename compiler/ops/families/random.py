"""Ops that draw random numbers. Equal nodes give different numbers: they cannot be merged or folded. torch
and other runtimes draw different numbers from the same seed."""

from __future__ import annotations

from typing import Any

from tersor.ir import Node, TensorType, ValueType
from tersor.ops.families._symbolic import element_cost, tensor
from tersor.ops.families._torch import torch_dtype
from tersor.ops.onnx_schema import FROM_ONNX
from tersor.ops.opdef import OpDef, Trait


def _shaped_infer(node: Node) -> list[ValueType]:
    shape, dtype = node.attrs["shape"], node.attrs["dtype"]
    assert isinstance(shape, tuple) and isinstance(dtype, int)
    return [TensorType(FROM_ONNX[dtype], tuple(int(d) for d in shape))]  # type: ignore[arg-type]


def _like_infer(node: Node) -> list[ValueType]:
    x, dtype = tensor(node), node.attrs.get("dtype")
    return [TensorType(FROM_ONNX[dtype] if isinstance(dtype, int) else x.dtype, x.dims)]


def _generator(seed: float | None) -> Any:
    import torch

    return None if seed is None else torch.Generator().manual_seed(hash(seed) % 2**63)


def _normal(sizes: Any, dtype: Any, mean: float, scale: float, seed: float | None) -> Any:
    import torch

    return torch.empty(tuple(sizes), dtype=dtype).normal_(mean, scale, generator=_generator(seed))


def _uniform(sizes: Any, dtype: Any, low: float, high: float, seed: float | None) -> Any:
    import torch

    return torch.empty(tuple(sizes), dtype=dtype).uniform_(low, high, generator=_generator(seed))


def _random_normal(
    *, shape: Any, dtype: int, mean: float, scale: float, seed: float | None = None
) -> Any:
    return _normal(shape, torch_dtype(FROM_ONNX[dtype]), mean, scale, seed)


def _random_uniform(
    *, shape: Any, dtype: int, low: float, high: float, seed: float | None = None
) -> Any:
    return _uniform(shape, torch_dtype(FROM_ONNX[dtype]), low, high, seed)


def _made(x: Any, dtype: int | None) -> Any:
    return x.dtype if dtype is None else torch_dtype(FROM_ONNX[dtype])


def _normal_like(
    x: Any, *, mean: float, scale: float, dtype: int | None = None, seed: float | None = None
) -> Any:
    return _normal(x.shape, _made(x, dtype), mean, scale, seed)


def _uniform_like(
    x: Any, *, low: float, high: float, dtype: int | None = None, seed: float | None = None
) -> Any:
    return _uniform(x.shape, _made(x, dtype), low, high, seed)


def _bernoulli(x: Any, *, dtype: int | None = None, seed: float | None = None) -> Any:
    return x.bernoulli(generator=_generator(seed)).to(_made(x, dtype))


def _multinomial_infer(node: Node) -> list[ValueType]:
    have, size, dtype = tensor(node).dims, node.attrs["sample_size"], node.attrs["dtype"]
    assert isinstance(size, int) and isinstance(dtype, int)
    return [TensorType(FROM_ONNX[dtype], (have[0] if have else None, size))]


def _multinomial(x: Any, *, sample_size: int, dtype: int, seed: float | None = None) -> Any:
    """Operand: log probabilities, not normalized."""
    drawn = x.softmax(-1).multinomial(sample_size, replacement=True, generator=_generator(seed))
    return drawn.to(torch_dtype(FROM_ONNX[dtype]))


def _row(op: str, since: int, infer: Any, torch: Any, *traits: Trait) -> OpDef:
    return OpDef(op, since=since, infer=infer, torch=torch, cost=element_cost, deterministic=False,
                 traits=frozenset(traits))  # fmt: skip


ROWS = [
    _row("RandomNormal", 1, _shaped_infer, _random_normal),
    _row("RandomUniform", 1, _shaped_infer, _random_uniform),
    _row("RandomNormalLike", 1, _like_infer, _normal_like, "shape"),
    _row("RandomUniformLike", 1, _like_infer, _uniform_like, "shape"),
    _row("Bernoulli", 15, _like_infer, _bernoulli, "discrete"),
    _row("Multinomial", 7, _multinomial_infer, _multinomial, "discrete"),
]
