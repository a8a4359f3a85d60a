"""Attention for ONNX Runtime, from ONNX's Attention in its 3-D form (heads inside the hidden axis).

    scores = scale * Q K^T + mask;   Y = softmax(scores) V,   a head at a time

``unfused``   Reshape and Transpose to [batch, heads, length, d], two MatMuls around a Softmax.  ONNX
              Runtime folds the transpose of K and the scale into FusedMatMul.
``mha``       com.microsoft.MultiHeadAttention.
standard      ONNX's own op: what everything falls back to that the others do not cover.

The IR gives zeros where all keys of a row are masked.  A softmax over a row of lowest floats gives
equal weights there instead, so the result is multiplied by "some key is allowed": one small product
a layer, against the isnan-and-select over all scores by which exporters guard it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tersor.backends.ort.options import LowerOptions
from tersor.ir import DType, Graph, Node, Value
from tersor.ops.onnx_schema import TO_ONNX

# Ops whose result is finite where their float operands are (sums may overflow, so Add is not here).
_KEEPS_FINITE = {"Unsqueeze", "Squeeze", "Expand", "Reshape", "Slice", "Mul", "Sub", "Where"}


@dataclass
class AttentionLowering:
    """The rule, with the masks it has prepared: made once, before their first reader."""

    masks: dict[Value, tuple[Value, Value | None]] = field(default_factory=dict)

    def lower(self, graph: Graph, node: Node, options: LowerOptions) -> Sequence[Value] | None:
        """See the module; None keeps the standard op."""
        if not _is_plain(node):
            return None
        q, k, v = node.inputs[:3]
        assert q is not None and k is not None and v is not None
        bias, allowed = self._mask(graph, node.input(3), q)
        heads = node.attrs["q_num_heads"]
        assert isinstance(heads, int) and q.tensor.dims is not None
        d = int(q.tensor.dims[2]) // heads  # type: ignore[arg-type]
        scale = float(node.attrs.get("scale", d**-0.5))
        mask = node.input(3)
        mha = options.attention == "mha" and not options.portable
        padding = _padding(graph, mask) if mha else None
        if mha and (mask is None or padding is not None):
            attrs = {"num_heads": heads, "scale": scale}
            operands = [q, k, v, None, padding]
            type = node.output.type
            y = graph.emit_node(
                "com.microsoft.MultiHeadAttention", operands, attrs, types=[type]
            ).output
        else:
            y = _unfused(graph, (q, k, v), bias, heads, scale)
        return [y if allowed is None else graph.emit("Mul", [y, allowed])]

    def _mask(
        self, graph: Graph, mask: Value | None, q: Value
    ) -> tuple[Value | None, Value | None]:
        """(additive mask [batch, heads, q, k], factor of the result [batch, q, 1]), broadcasting."""
        if mask is None:
            return None, None
        if mask not in self.masks:
            self.masks[mask] = _prepare(graph, mask, q.tensor.dtype)
        return self.masks[mask]


def _is_plain(node: Node) -> bool:
    """3-D operands with as many key heads as query heads, no cache, no softcap, one output, no causal
    flag, a mask of one head for all: what the rules here write out."""
    q, k, v, mask = node.inputs[0], node.inputs[1], node.inputs[2], node.input(3)
    shapes = [x.tensor.dims for x in (q, k, v) if x is not None]
    mask_dims = mask.tensor.dims if mask is not None else ()
    return (
        len(node.inputs) <= 4
        and len(node.outputs) == 1
        and node.attrs.get("q_num_heads") == node.attrs.get("kv_num_heads") is not None
        and all(s is not None and len(s) == 3 and isinstance(s[2], int) for s in shapes)
        and not node.attrs.get("is_causal")
        and not node.attrs.get("softcap")
        and node.output.tensor.dtype is DType.F32
        and mask_dims is not None
        and (len(mask_dims) in (0, 2) or (len(mask_dims) == 4 and mask_dims[1] == 1))
    )


def _padding(graph: Graph, mask: Value | None) -> Value | None:
    """A boolean mask [batch, 1, 1, keys] as MultiHeadAttention takes it: i32[batch, keys]."""
    dims = mask.tensor.dims if mask is not None else None
    if mask is None or mask.tensor.dtype is not DType.BOOL or dims is None:
        return None
    if len(dims) != 4 or dims[1] != 1 or dims[2] != 1:
        return None
    flat = graph.emit("Squeeze", [mask, graph.constant(np.array([1, 2]), "axes")])
    return graph.emit("Cast", [flat], {"to": TO_ONNX[DType.I32]})


def _prepare(graph: Graph, mask: Value, dtype: DType) -> tuple[Value, Value | None]:
    if mask.tensor.rank == 2:
        mask = graph.emit("Unsqueeze", [mask, graph.constant(np.array([0, 1]), "axes")])
    if mask.tensor.dtype is DType.BOOL:
        zero = graph.constant(np.zeros((), dtype.numpy), "zero")
        lowest = graph.constant(np.asarray(np.finfo(dtype.numpy).min), "lowest")
        return graph.emit("Where", [mask, zero, lowest]), _some_allowed(graph, mask, dtype)
    if _is_finite(mask):
        return mask, None
    lowest = graph.constant(np.asarray(np.finfo(dtype.numpy).min), "lowest")
    bias = graph.emit("Max", [mask, lowest])
    unmasked = graph.emit("Not", [graph.emit("IsInf", [mask], {"detect_positive": 0})])
    return bias, _some_allowed(graph, unmasked, dtype)


def _some_allowed(graph: Graph, allowed: Value, dtype: DType) -> Value:
    """[batch, 1, q, k] bool -> [batch, q, 1] float: 1 where some key is allowed, else 0."""
    real = graph.emit("Cast", [allowed], {"to": TO_ONNX[dtype]})
    last = graph.constant(np.array([-1]), "axes")
    some = graph.emit("ReduceMax", [real, last], {"keepdims": 1})
    return graph.emit("Squeeze", [some, graph.constant(np.array([1]), "axes")])


def _is_finite(value: Value) -> bool:
    """Whether a float mask is provably free of infinities: made from finite constants and integers."""
    work, seen = [value], set()
    while work:
        item = work.pop()
        if item in seen or not item.tensor.dtype.is_float:
            continue
        seen.add(item)
        if item.encoding is not None:
            if not np.isfinite(item.numpy().astype(np.float64)).all():
                return False
        elif item.producer is None:
            return False
        elif item.producer.op in _KEEPS_FINITE:
            work.extend(v for v in item.producer.inputs if v is not None)
        elif item.producer.op != "Cast" or item.producer.inputs[0].tensor.dtype.is_float:  # type: ignore[union-attr]
            return False
    return True


def _unfused(
    graph: Graph, qkv: tuple[Value, Value, Value], bias: Value | None, heads: int, scale: float
) -> Value:
    q, k, v = (_split_heads(graph, x, heads, transpose=i == 1) for i, x in enumerate(qkv))
    scores = graph.emit("MatMul", [q, k])
    factor = graph.constant(np.asarray(scale, q.tensor.dtype.numpy), "scale")
    scores = graph.emit("Mul", [scores, factor])
    if bias is not None:
        scores = graph.emit("Add", [scores, bias])
    mixed = graph.emit("MatMul", [graph.emit("Softmax", [scores], {"axis": -1}), v])
    merged = graph.emit("Transpose", [mixed], {"perm": (0, 2, 1, 3)})
    hidden = qkv[2].tensor.dims[2]  # type: ignore[index]
    return graph.emit("Reshape", [merged, graph.constant(np.array([0, 0, hidden]), "shape")])


def _split_heads(graph: Graph, x: Value, heads: int, transpose: bool) -> Value:
    """[batch, length, heads*d] -> [batch, heads, length, d], or [batch, heads, d, length]."""
    d = x.tensor.dims[2] // heads  # type: ignore[index, operator]
    shape = graph.constant(np.array([0, 0, heads, d]), "shape")
    perm = (0, 2, 3, 1) if transpose else (0, 2, 1, 3)
    return graph.emit("Transpose", [graph.emit("Reshape", [x, shape])], {"perm": perm})
