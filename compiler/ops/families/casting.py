"""Cast and CastLike."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.ir import DType, Node, TensorType, ValueType
from tersor.ir.dims import dim_array
from tersor.ops.contents import contents_of
from tersor.ops.families import _straight as straight
from tersor.ops.families._symbolic import element_cost, tensor
from tersor.ops.families._ties import broadcast
from tersor.ops.families._torch import torch_dtype
from tersor.ops.onnx_schema import FROM_ONNX
from tersor.ops.opdef import OpDef, Sample, with_traits


def _wanted(node: Node) -> DType:
    """The target type: the attribute's, or that of CastLike's second operand."""
    to = node.attrs.get("to")
    return FROM_ONNX[to] if isinstance(to, int) else tensor(node, 1).dtype


def _infer(node: Node) -> list[ValueType]:
    return [TensorType(_wanted(node), tensor(node).dims)]


def _contents(node: Node) -> list[np.ndarray | None]:
    """Casts to 32 or more bits keep integers; a cast to bool is known for known integers."""
    to, contents = _wanted(node), contents_of(node.inputs[0])
    if contents is None or not (to is DType.BOOL or (to.is_integer and to.bits >= 32)):
        return [None]
    if to is not DType.BOOL:
        return [contents]
    flags = [int(a != 0) if isinstance(a, int) else None for a in contents.flat]
    return [dim_array(flags, contents.shape)]


def _cast(x: Any, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    return x.to(torch_dtype(FROM_ONNX[to]))


def _cast_like(x: Any, like: Any, *, saturate: int = 1, round_mode: str = "up") -> Any:
    return x.to(like.dtype)


def _samples(rng: np.random.Generator) -> list[Sample]:
    bools, whole = rng.integers(0, 2, (3, 4)).astype(bool), rng.integers(-5, 5, (3, 4))
    real = (rng.standard_normal((3, 4)) * 4).astype(np.float32)
    return [Sample([bools], {"to": 1}), Sample([whole], {"to": 9}), Sample([whole], {"to": 6}),
            Sample([real], {"to": 7}), Sample([whole], {"to": 10})]  # fmt: skip


def _like_samples(rng: np.random.Generator) -> list[Sample]:
    whole = rng.integers(-5, 5, (3, 4))
    return [Sample([whole, np.zeros(n, d)]) for n, d in ((1, np.float32), (0, bool), (2, np.int32))]


ROWS = with_traits("elementwise", [
    OpDef("Cast", since=13, infer=_infer, contents=_contents, torch=_cast, cost=element_cost,
          ties=broadcast, traits=frozenset({"rounding"}), straight_through=straight.narrowed,
          samples=_samples),
    OpDef("CastLike", since=15, infer=_infer, contents=_contents, torch=_cast_like,
          cost=element_cost, ties=lambda node: broadcast(node, [0]),
          traits=frozenset({"rounding"}), straight_through=straight.narrowed, samples=_like_samples),
])  # fmt: skip
