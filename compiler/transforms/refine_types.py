"""Types that say more, where operands have become known."""

from __future__ import annotations

import math

import numpy as np

from tersor.ir import DType, Graph, Node, TensorType, Value, ValueType
from tersor.ops import TABLE, contents_of


def refine_types(graph: Graph, node: Node) -> bool:
    """Types ``node`` anew where dims or contents of its results are unknown, by types that say the same and
    more; whether they do."""
    unknown = not all(_is_known(v.type) for v in node.outputs) or _may_tell_contents(node)
    if not unknown or (node.subgraphs and node.op != "If") or TABLE.get(node.op) is None:
        return False
    inferred = TABLE.infer(node)
    if not all(_says_more(new, v.type) for (new, _), v in zip(inferred, node.outputs, strict=True)):
        return False
    if all(
        new == v.type and _unknown(contents) >= _unknown(v.contents)
        for (new, contents), v in zip(inferred, node.outputs, strict=True)
    ):
        return False
    graph.infer(node)
    return True


def _may_tell_contents(node: Node) -> bool:
    """Whether a result of unknown contents is computed of operands that are known."""
    if not any(_unknown(v.contents) and _counts(v) for v in node.outputs):
        return False
    operands = [v for v in node.inputs if v is not None]
    return TABLE.has(node.op, "shape") or not any(_unknown(contents_of(v)) for v in operands)


def _unknown(contents: np.ndarray | None) -> float:
    """How many elements are not known."""
    return math.inf if contents is None else sum(d is None for d in contents.reshape(-1))


def _counts(value: Value) -> bool:
    type = value.type
    return isinstance(type, TensorType) and (type.dtype.is_integer or type.dtype is DType.BOOL)


def _is_known(type: ValueType) -> bool:
    return isinstance(type, TensorType) and type.dims is not None and None not in type.dims


def _says_more(new: ValueType, old: ValueType) -> bool:
    if not isinstance(new, TensorType) or not isinstance(old, TensorType):
        return new == old
    if new.dtype is not old.dtype:
        return False
    if old.dims is None or new.dims is None:
        return old.dims is None
    same_rank = len(new.dims) == len(old.dims)
    return same_rank and all(b is None or a == b for a, b in zip(new.dims, old.dims, strict=True))
