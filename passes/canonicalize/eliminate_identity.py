"""Removes nodes that change nothing, and pairs that cancel out.

 1. Identity(x), Dropout(x) in inference           = x
 2. Cast(x) to x's own type                        = x
 3. Cast(Cast(x)), the inner one lossless          = Cast(x)
 4. x + 0, x - 0, x * 1, x / 1, x ^ 1              = x            (if the type is the same)
 5. Transpose(Transpose(x))                        = Transpose(x) by the composition, or x
 6. Transpose(x) by the identity permutation       = x
 7. Reshape(view(x)) to a constant target          = Reshape(x);  Squeeze or Unsqueeze back to x = x
 8. Slice(x), Pad(x) of everything, Resize(x) by 1 = x
 9. Concat of one, Split into one                  = x
10. Not(Not(x)), Neg(Neg(x))                       = x
11. Where(constant, a, b), uniformly true or false = a or b       (if the type is the same)
12. ReduceMean(x) and others over axes of size 1   = x, or Squeeze(x)
13. Slice(Slice(x)) of different axes              = Slice(x)
14. Unsqueeze(Gather(x, @i), axis), on one axis    = Gather(x, [i])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import (
    dims,
    dtype,
    has_one_use,
    is_scalar,
    operand,
    producer_if,
    rank,
    same_type,
    uniform,
)
from tersor.ir import DType, Graph, Node, Value
from tersor.ir.bounds import UNBOUNDED
from tersor.ops import TABLE
from tersor.pipeline import EXACT, Pass, Rewrite

# The types that represent all values of a type.
_WIDER = {
    DType.BOOL: {d for d in DType if d.is_integer or d.is_float} - {DType.F8E8M0},  # it has no 0
    DType.U8: {DType.I16, DType.I32, DType.I64, DType.F16, DType.F32, DType.F64},
    DType.I8: {DType.I16, DType.I32, DType.I64, DType.F16, DType.F32, DType.F64},
    DType.I32: {DType.I64, DType.F64},
    DType.F16: {DType.F32, DType.F64},
    DType.BF16: {DType.F32, DType.F64},
    DType.F32: {DType.F64},
}


@dataclass(frozen=True)
class EliminateIdentity(Pass):
    """No options; the rules are numbered in the module."""

    keeps = EXACT

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        rule = _RULES.get(node.op)
        return rule(graph, node) if rule is not None else None


def _first(graph: Graph, node: Node) -> Rewrite:
    return operand(node, 0)


def _dropout(graph: Graph, node: Node) -> Rewrite:
    training = node.input(2)
    off = training is None or is_scalar(training, 0)
    mask_unread = len(node.outputs) < 2 or not node.outputs[1].uses
    return operand(node, 0) if off and mask_unread else None


def _cast(graph: Graph, node: Node) -> Rewrite:
    x = operand(node, 0)
    if dtype(x) is not None and dtype(x) is dtype(node.output):
        return x
    inner = producer_if(x, "Cast")
    if inner is None:
        return None
    source = operand(inner, 0)
    old, between, new = (dtype(v) for v in (source, x, node.output))
    if old is None or between not in _WIDER.get(old, set()):
        return None
    if new is DType.STRING or new is None:
        return None  # "1" and "1.0" differ.
    return graph.emit("Cast", [source], node.attrs)


def _neutral(number: float, both: bool) -> Callable[[Graph, Node], Rewrite]:
    def rule(graph: Graph, node: Node) -> Rewrite:
        a, b = operand(node, 0), operand(node, 1)
        for x, other in ((a, b), (b, a)) if both else ((a, b),):
            if (
                not x.is_constant
                and uniform_constant(other) == number
                and same_type(x, node.output)
            ):
                return x
        return None

    return rule


def uniform_constant(value: Value) -> float | None:
    """The number that all elements of a constant equal, if there is one."""
    return uniform(value) if value.is_constant else None


def _transpose(graph: Graph, node: Node) -> Rewrite:
    x = operand(node, 0)
    size = rank(x)
    if size is None:
        return None
    perm = _perm(node, size)
    if perm == list(range(size)):
        return x
    inner = producer_if(x, "Transpose")
    if inner is None:
        return None
    before = _perm(inner, size)
    product = tuple(before[p] for p in perm)
    if product == tuple(range(size)):
        return operand(inner, 0)
    return graph.emit("Transpose", [operand(inner, 0)], {"perm": product})


def _perm(node: Node, size: int) -> list[int]:
    perm = node.attrs.get("perm")
    return [int(p) for p in perm] if isinstance(perm, tuple) else list(reversed(range(size)))  # type: ignore[arg-type]


def _reshape(graph: Graph, node: Node) -> Rewrite:
    x, target = operand(node, 0), operand(node, 1)
    view = x.producer
    if view is None or not TABLE.has(view.op, "view") or not target.is_constant:
        return None
    source = operand(view, 0)
    # A 0 in the target copies the dim at the same position, which must be the same in the source.
    zeros = [i for i, d in enumerate(target.numpy()) if d == 0]
    shape, before = dims(x), dims(source)
    if zeros and not node.attrs["allowzero"]:
        if shape is None or before is None:
            return None
        if any(i >= len(before) or before[i] is None or before[i] != shape[i] for i in zeros):
            return None
    return graph.emit("Reshape", [source, target], node.attrs)


def _as_reshape(graph: Graph, node: Node) -> Rewrite:
    """A Squeeze or Unsqueeze that undoes the view before it."""
    view = operand(node, 0).producer
    if view is None or not TABLE.has(view.op, "view"):
        return None
    source = operand(view, 0)
    return source if same_type(source, node.output) else None


def _whole(graph: Graph, node: Node) -> Rewrite:
    """A Slice, Pad, Concat or Split that keeps everything. (A Slice may keep all dims and yet reverse.)"""
    x = operand(node, 0)
    if node.op == "Concat":
        return x if len(node.inputs) == 1 else None
    if node.op == "Split":
        return x if len(node.outputs) == 1 else None
    if node.op == "Slice" and _takes_all(node):
        return x
    if not same_type(x, node.output):
        return _merged_slices(graph, node) if node.op == "Slice" else None
    if node.op == "Pad":
        pads = node.inputs[1]
        return x if pads is not None and pads.is_constant and not pads.numpy().any() else None
    steps = node.input(4)
    forward = steps is None or (steps.is_constant and bool((steps.numpy() == 1).all()))
    return x if forward else None


def _resize(graph: Graph, node: Node) -> Rewrite:
    """By constant scales of 1: the identity, in all modes but the one that crops."""
    scales = node.input(2)
    cropped = node.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize"
    if scales is None or cropped or uniform_constant(scales) != 1.0:
        return None
    return operand(node, 0)


def _takes_all(node: Node) -> bool:
    """Whether a Slice spans its axes whatever their sizes."""
    starts, ends, steps = operand(node, 1), operand(node, 2), node.input(4)
    if not starts.is_constant or not ends.is_constant:
        return False
    if steps is not None and not (steps.is_constant and (steps.numpy() == 1).all()):
        return False
    return not starts.numpy().any() and bool((ends.numpy() >= UNBOUNDED).all())


def _merged_slices(graph: Graph, node: Node) -> Value | None:
    inner, size = producer_if(operand(node, 0), "Slice"), rank(node.output)
    if inner is None or size is None or not has_one_use(inner.output):
        return None
    cuts = [_cut(inner, size), _cut(node, size)]
    if cuts[0] is None or cuts[1] is None or set(cuts[0][2]) & set(cuts[1][2]):
        return None
    columns = [np.concatenate([a, b]) for a, b in zip(cuts[0], cuts[1], strict=True)]
    if (columns[3] == 1).all():
        columns.pop()
    names = ("starts", "ends", "axes", "steps")
    bounds = [graph.constant(c, n) for c, n in zip(columns, names, strict=False)]
    return graph.emit("Slice", [operand(inner, 0), *bounds])


def _cut(node: Node, size: int) -> list[np.ndarray] | None:
    """Starts, ends, axes and steps, i64 each, of a Slice whose bounds are constants."""
    given = [node.input(i) for i in range(1, 5)]
    if any(v is not None and not v.is_constant for v in given):
        return None
    starts, ends, axes, steps = (
        None if v is None else v.numpy().astype(np.int64).reshape(-1) for v in given
    )
    assert starts is not None and ends is not None
    axes = np.arange(starts.size) if axes is None else axes % size
    return [starts, ends, axes, np.ones_like(starts) if steps is None else steps]


def _over_one(graph: Graph, node: Node) -> Rewrite:
    x, axes, shape = operand(node, 0), node.input(1), dims(operand(node, 0))
    if shape is None or axes is None or not axes.is_constant or axes.numpy().size == 0:
        return None
    if any(shape[int(a)] != 1 for a in axes.numpy()):
        return None
    return x if node.attrs["keepdims"] else graph.emit("Squeeze", [x, axes])


def _unsqueeze(graph: Graph, node: Node) -> Rewrite:
    x, axes = operand(node, 0), operand(node, 1)
    pick = producer_if(x, "Gather")
    if pick is None or not axes.is_constant or not has_one_use(x) or rank(x) is None:
        return _as_reshape(graph, node)
    index, size = operand(pick, 1), rank(operand(pick, 0))
    if not index.is_constant or rank(index) != 0 or size is None or axes.numpy().size != 1:
        return _as_reshape(graph, node)
    if int(axes.numpy().reshape(-1)[0]) % size != int(pick.attrs["axis"]) % size:  # type: ignore[arg-type]
        return _as_reshape(graph, node)
    row = graph.constant(index.numpy().reshape(1), index.name)
    return graph.emit("Gather", [operand(pick, 0), row], pick.attrs, scope=pick.scope)


def _involution(graph: Graph, node: Node) -> Rewrite:
    inner = producer_if(operand(node, 0), node.op)
    return operand(inner, 0) if inner is not None else None


def _where(graph: Graph, node: Node) -> Rewrite:
    condition = uniform_constant(operand(node, 0))
    if condition is None:
        return None
    chosen = operand(node, 1 if condition else 2)
    return chosen if same_type(chosen, node.output) else None


_RULES: dict[str, Callable[[Graph, Node], Rewrite]] = {
    "Identity": _first,
    "Dropout": _dropout,
    "Cast": _cast,
    "Add": _neutral(0.0, both=True),
    "Sub": _neutral(0.0, both=False),
    "Mul": _neutral(1.0, both=True),
    "Div": _neutral(1.0, both=False),
    "Pow": _neutral(1.0, both=False),
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _as_reshape,
    "Unsqueeze": _unsqueeze,
    "Slice": _whole,
    "Pad": _whole,
    "Concat": _whole,
    "Split": _whole,
    "Resize": _resize,
    "Not": _involution,
    "Neg": _involution,
    "Where": _where,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"), _over_one),
}
