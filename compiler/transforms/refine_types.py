"""Type inference again, for nodes whose operands are now known better."""

from __future__ import annotations

import math

import numpy as np

from tersor.ir import DType, Graph, Node, TensorType, Value, ValueType
from tersor.ops import TABLE, contents_of


def refine_types(graph: Graph, node: Node) -> bool:
    """Reinfers ``node`` if dims or contents of its results are unknown; only refinements are applied.
    Returns whether there were any."""
    unknown = not all(_is_known(v.type) for v in node.outputs) or _may_infer_contents(node)
    if not unknown or (node.subgraphs and node.op != "If") or TABLE.get(node.op) is None:
        return False
    inferred = TABLE.infer(node)
    if not all(_refines(new, v.type) for (new, _), v in zip(inferred, node.outputs, strict=True)):
        return False
    if all(
        new == v.type and _unknown(contents) >= _unknown(v.contents)
        for (new, contents), v in zip(inferred, node.outputs, strict=True)
    ):
        return False
    graph.infer(node)
    return True


def _may_infer_contents(node: Node) -> bool:
    """Whether an integer or boolean result of unknown contents has operands of known contents."""
    if not any(_unknown(v.contents) and _is_discrete(v) for v in node.outputs):
        return False
    operands = [v for v in node.inputs if v is not None]
    return TABLE.has(node.op, "shape") or not any(_unknown(contents_of(v)) for v in operands)


def _unknown(contents: np.ndarray | None) -> float:
    """The number of unknown elements."""
    return math.inf if contents is None else sum(d is None for d in contents.reshape(-1))


def _is_discrete(value: Value) -> bool:
    type = value.type
    return isinstance(type, TensorType) and (type.dtype.is_integer or type.dtype is DType.BOOL)


def _is_known(type: ValueType) -> bool:
    return isinstance(type, TensorType) and type.dims is not None and None not in type.dims


def _refines(new: ValueType, old: ValueType) -> bool:
    if not isinstance(new, TensorType) or not isinstance(old, TensorType):
        return new == old
    if new.dtype is not old.dtype:
        return False
    if old.dims is None or new.dims is None:
        return old.dims is None
    same_rank = len(new.dims) == len(old.dims)
    return same_rank and all(b is None or a == b for a, b in zip(new.dims, old.dims, strict=True))
