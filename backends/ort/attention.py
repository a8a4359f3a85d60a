"""Lowering of ONNX's Attention for ONNX Runtime.

    scores = scale * Q K^T;   Y = softmax(softcap(scores) + mask) V,   for each head

``unfused``   Reshape and Transpose to [batch, heads, length, d], two MatMuls around a Softmax.  ONNX
              Runtime folds the transpose of K and the scale into FusedMatMul.
``mha``       com.microsoft.MultiHeadAttention, where the operands are [batch, length, heads*d] and the
              mask is one of padding, or has a row for each query.
standard      ONNX's own op is kept where neither applies: lengths of padded caches, sliding windows,
              a fourth result, element types other than floats, unknown sizes.

Query heads that share keys (GQA) become a separate axis, over which the keys broadcast:
[batch, kv_heads, group, length, d].

The IR gives zeros where all keys of a row are masked.  A softmax over a row of lowest floats gives
equal weights there instead, so the result is multiplied by 1 or 0 for "some key is allowed": one small
product per layer, where exporters guard with isnan and a select over all scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tersor.backends.ort.attention_mask import (
    Mask,
    additive_mask,
    attention_mask,
    is_finite,
    is_padding,
    some_allowed,
)
from tersor.backends.ort.lowering import Lowering
from tersor.ir import DType, Graph, Node, Value
from tersor.ops.onnx_schema import TO_ONNX


@dataclass(frozen=True)
class Heads:
    """Sizes of an Attention: query heads, key heads, and whether operands are [batch, length, hidden]."""

    query: int
    key: int
    flat: bool

    @property
    def group(self) -> int:
        return self.query // self.key


_FLOATS = (DType.F32, DType.F64, DType.F16)  # For which ONNX Runtime has a MatMul.


@dataclass
class AttentionLowering:
    """The rule, and the masks it has emitted: each once, before its first reader."""

    masks: dict[object, Mask] = field(default_factory=dict)
    rows: dict[object, Value] = field(default_factory=dict)

    def lower(self, graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value] | None:
        """The replacement's outputs (see the module); None keeps the standard op."""
        heads = _heads(node)
        if heads is None:
            return None
        q, k, v = (_operand(node, i) for i in range(3))
        d = _last(q) // heads.query if heads.flat else _last(q)
        scale = float(node.attrs.get("scale", d**-0.5))
        options = lowering.options
        if options.attention == "mha" and not options.portable and _suits_mha(node, heads):
            return self._mha(graph, node, heads, scale)
        k, v = (_by_heads(graph, x, heads) for x in (k, v))
        past_k, past_v = node.input(4), node.input(5)
        if past_k is not None and past_v is not None:
            k = graph.emit("Concat", [past_k, k], {"axis": 2})
            v = graph.emit("Concat", [past_v, v], {"axis": 2})
        mask = self._mask(graph, node, q, k)
        y = _product(graph, node, (q, k, v), mask, heads, scale)
        return [y, k, v][: len(node.outputs)]

    def _mha(self, graph: Graph, node: Node, heads: Heads, scale: float) -> list[Value]:
        mask, dtype = node.input(3), node.output.tensor.dtype
        padding = bias = rows = None
        if mask is not None and node.input(4) is None and is_padding(mask, _operand(node, 1)):
            padding = _as_integers(graph, mask)
            rows = self._rows(graph, mask, lambda: some_allowed(graph, mask, dtype))
        elif mask is not None:
            key = (graph, mask, dtype)
            if key not in self.masks:
                self.masks[key] = additive_mask(graph, mask, dtype)
            bias, allowed = self.masks[key].bias, self.masks[key].allowed
            rows = None if allowed is None else self._rows(graph, allowed, lambda: allowed)
        operands = [*node.inputs[:3], None, padding, bias, node.input(4), node.input(5)]
        while operands[-1] is None:
            operands.pop()
        y, *caches = graph.emit_node(
            "com.microsoft.MultiHeadAttention",
            operands,
            {"num_heads": heads.query, "scale": scale},
            names=[""] * len(node.outputs),
            types=[value.type for value in node.outputs],
        ).outputs
        if rows is not None:
            y = graph.emit("Mul", [y, rows])
        return [y, *caches]

    def _rows(self, graph: Graph, source: Value, allowed: Callable[[], Value]) -> Value:
        """[batch or 1, 1, q or 1, 1] without the axis of heads, emitted once per ``source``."""
        key = (graph, source)
        if key not in self.rows:
            axes = graph.constant(np.array([1]), "axes")
            self.rows[key] = graph.emit("Squeeze", [allowed(), axes])
        return self.rows[key]

    def _mask(self, graph: Graph, node: Node, q: Value, k: Value) -> Mask | None:
        mask, causal = node.input(3), bool(node.attrs.get("is_causal"))
        if mask is None and not causal:
            return None
        past = node.input(4) if causal else None
        key = (graph, mask, causal and _length_key(q), _length_key(k), past)
        if key not in self.masks:
            self.masks[key] = attention_mask(graph, mask, q, k, past, causal)
        return self.masks[key]


def _length_key(x: Value) -> object:
    """Equal for equal lengths: the dim, or the value itself where the dim is unknown."""
    dim = x.tensor.dims[-2] if x.tensor.dims else None
    return x if dim is None else dim


def _operand(node: Node, index: int) -> Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _heads(node: Node) -> Heads | None:
    """Head counts of an Attention that these rules can lower, else None."""
    q, k, v = (_operand(node, i).tensor.dims for i in range(3))
    mask = node.input(3)
    if q is None or k is None or v is None or len(q) not in (3, 4):
        return None
    unsupported = node.input(6) is not None or (len(node.outputs) > 3 and node.outputs[3].uses)
    windows = {node.attrs.get("left_window_size", -1), node.attrs.get("right_window_size", -1)}
    if unsupported or windows != {-1} or node.output.tensor.dtype not in _FLOATS:
        return None
    if mask is not None and mask.tensor.rank not in (2, 3, 4):
        return None
    flat = len(q) == 3
    counts = (
        (node.attrs.get("q_num_heads"), node.attrs.get("kv_num_heads")) if flat else (q[1], k[1])
    )
    query, key = counts
    if not isinstance(query, int) or not isinstance(key, int):
        return None
    if not all(isinstance(s, int) for s in (q[-1], k[-1], v[-1])):
        return None
    return Heads(query, key, flat)


def _suits_mha(node: Node, heads: Heads) -> bool:
    past = node.input(4)
    # ONNX Runtime silently ignores the past unless the present keys and values are outputs too.
    plain = heads.flat and heads.group == 1 and len(node.outputs) == (1 if past is None else 3)
    plain = plain and all(value.uses for value in node.outputs[1:])
    plain = plain and not node.attrs.get("softcap") and not node.attrs.get("is_causal")
    plain = plain and node.output.tensor.dtype is DType.F32
    # Its cache has one head size for keys and values.
    plain = plain and (past is None or _last(_operand(node, 1)) == _last(_operand(node, 2)))
    mask = node.input(3)
    if not plain or mask is None:
        return bool(plain)
    if past is None and is_padding(mask, _operand(node, 1)):
        return True
    return _has_all_rows(mask, node, heads)


def _has_all_rows(mask: Value, node: Node, heads: Heads) -> bool:
    """Whether a mask is [batch or 1, heads or 1, queries, keys], as MultiHeadAttention adds one; rows
    without any key, where possible, must be the same for all heads."""
    shape, q, k = (v.tensor.dims for v in (mask, _operand(node, 0), _operand(node, 1)))
    if shape is None or q is None or k is None or len(shape) != 4 or None in (*shape, *q, *k):
        return False
    keys, past = k[-2], node.input(4)
    if past is not None:
        before = past.tensor.dims[2] if past.tensor.dims else None
        if before is None or keys is None:
            return False
        keys = before + keys
    same_for_heads = shape[1] == 1 or (
        shape[1] == heads.query and mask.tensor.dtype.is_float and is_finite(mask)
    )
    return shape[0] in (1, q[0]) and same_for_heads and shape[2:] == (q[1], keys)


def _as_integers(graph: Graph, padding: Value | None) -> Value | None:
    """A boolean mask [batch, 1, 1, keys] as MultiHeadAttention takes it: i32[batch, keys]."""
    if padding is None:
        return None
    flat = graph.emit("Squeeze", [padding, graph.constant(np.array([1, 2]), "axes")])
    return graph.emit("Cast", [flat], {"to": TO_ONNX[DType.I32]})


# -- in standard ops -------------------------------------------------------------------------------


def _product(
    graph: Graph,
    node: Node,
    qkv: tuple[Value, Value, Value],
    mask: Mask | None,
    heads: Heads,
    scale: float,
) -> Value:
    """``qkv``: the query in the node's layout; keys and values [batch, kv_heads, length, d]."""
    q, k, v = qkv
    kt = graph.emit("Transpose", [k], {"perm": (0, 1, 3, 2)})
    q, kt, v = _grouped_query(graph, q, heads), _shared(graph, kt, heads), _shared(graph, v, heads)
    scores = graph.emit("MatMul", [q, kt])
    scores = graph.emit("Mul", [scores, _number(graph, scale, q, "scale")])
    if softcap := float(node.attrs.get("softcap", 0.0)):  # type: ignore[arg-type]
        cap = _number(graph, softcap, q, "softcap")
        scores = graph.emit("Mul", [graph.emit("Tanh", [graph.emit("Div", [scores, cap])]), cap])
    if mask is not None:
        scores = graph.emit("Add", [scores, _over_groups(graph, mask.bias, heads)])
    y = graph.emit("MatMul", [graph.emit("Softmax", [scores], {"axis": -1}), v])
    if mask is not None and mask.allowed is not None:
        y = graph.emit("Mul", [y, _over_groups(graph, mask.allowed, heads)])
    return _merged(graph, y, heads)


def _number(graph: Graph, number: float, like: Value, name: str) -> Value:
    return graph.constant(np.asarray(number, like.tensor.dtype.numpy), name)


def _target(graph: Graph, *dims: int) -> Value:
    return graph.constant(np.array(dims, np.int64), "shape")


def _by_heads(graph: Graph, x: Value, heads: Heads) -> Value:
    """Keys or values as [batch, kv_heads, length, d]."""
    if not heads.flat:
        return x
    split = graph.emit("Reshape", [x, _target(graph, 0, 0, heads.key, _last(x) // heads.key)])
    return graph.emit("Transpose", [split], {"perm": (0, 2, 1, 3)})


def _last(x: Value) -> int:
    size = x.tensor.dims[-1] if x.tensor.dims else None
    assert isinstance(size, int)
    return size


def _grouped_query(graph: Graph, q: Value, heads: Heads) -> Value:
    """[batch, heads, length, d], or with groups [batch, kv_heads, group, length, d]."""
    grouped = (heads.key, heads.group) if heads.group > 1 else (heads.key,)
    if heads.flat:
        split = graph.emit("Reshape", [q, _target(graph, 0, 0, *grouped, _last(q) // heads.query)])
        perm = (0, 2, 3, 1, 4) if heads.group > 1 else (0, 2, 1, 3)
        return graph.emit("Transpose", [split], {"perm": perm})
    if heads.group == 1:
        return q
    return graph.emit("Reshape", [q, _target(graph, 0, *grouped, -1, _last(q))])


def _shared(graph: Graph, x: Value, heads: Heads) -> Value:
    """Keys or values with a unit axis for the group that shares them."""
    if heads.group == 1:
        return x
    return graph.emit("Unsqueeze", [x, graph.constant(np.array([2]), "axes")])


def _over_groups(graph: Graph, x: Value, heads: Heads) -> Value:
    """A mask or factor [batch, heads or 1, …] that broadcasts against grouped scores."""
    dims = x.tensor.dims
    if heads.group == 1 or dims is None:
        return x
    if dims[1] == 1:
        return graph.emit("Unsqueeze", [x, graph.constant(np.array([2]), "axes")])
    first = graph.emit("Shape", [x], {"start": 0, "end": 1})
    rest = graph.emit("Shape", [x], {"start": 2, "end": 4})
    target = graph.emit(
        "Concat", [first, _target(graph, heads.key, heads.group), rest], {"axis": 0}
    )
    return graph.emit("Reshape", [x, target])


def _merged(graph: Graph, y: Value, heads: Heads) -> Value:
    """The result in the node's layout of heads."""
    width = _last(y)
    if heads.flat:
        perm = (0, 3, 1, 2, 4) if heads.group > 1 else (0, 2, 1, 3)
        transposed = graph.emit("Transpose", [y], {"perm": perm})
        return graph.emit("Reshape", [transposed, _target(graph, 0, 0, heads.query * width)])
    if heads.group == 1:
        return y
    return graph.emit("Reshape", [y, _target(graph, 0, heads.query, -1, width)])
