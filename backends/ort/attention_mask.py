"""Attention masks as numbers to add to the scores, and which rows have any key."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.ir import DType, Graph, Value
from tersor.ops.onnx_schema import TO_ONNX

# Ops whose result is finite where their float operands are (not Add: sums may overflow).
_KEEPS_FINITE = {
    "Unsqueeze", "Squeeze", "Expand", "Reshape", "Slice", "Mul", "Sub", "Where", "Gather", "Transpose",
}  # fmt: skip


@dataclass(frozen=True)
class Mask:
    """An additive mask.

    Attributes:
        bias: float [batch or 1, heads or 1, q or 1, keys], in which no row is -inf throughout.
        allowed: float [batch or 1, heads or 1, q or 1, 1], 1 where a row has some key, else 0; None: every
            row has one.
    """

    bias: Value
    allowed: Value | None


def is_padding(mask: Value, k: Value) -> bool:
    """Whether a mask is boolean [batch, 1, 1, keys], over all keys of k[batch, keys, hidden]."""
    dims, keys = mask.tensor.dims, k.tensor.dims
    if mask.tensor.dtype is not DType.BOOL or dims is None or keys is None or len(dims) != 4:
        return False
    return dims[1] == dims[2] == 1 and dims[0] == keys[0] and dims[3] == keys[1]


def attention_mask(
    graph: Graph, mask: Value | None, q: Value, k: Value, past: Value | None, causal: bool
) -> Mask:
    """The mask of an Attention.

    Args:
        mask: the op's operand: boolean or additive, of rank 2 to 4, perhaps shorter than the keys.
        q: [batch, length, hidden] or [batch, heads, length, d].
        k: all keys, with the cache's; the axis before the last is their length.
        past: keys of the cache, all of which a causal row sees.
        causal: a row sees no key after its own position.
    """
    dtype = q.tensor.dtype
    lower = _causal(graph, q, k, past) if causal else None
    if mask is None:
        assert lower is not None
        return Mask(_bias(graph, lower, dtype), None)
    return additive_mask(graph, _filled(graph, _rank4(graph, mask), k), dtype, lower)


def additive_mask(graph: Graph, mask: Value, dtype: DType, lower: Value | None = None) -> Mask:
    """A mask of rank 4 over all keys as numbers of ``dtype`` to add; ``lower``: boolean, which keys a
    causal row sees."""
    if mask.tensor.dtype is DType.BOOL:
        both = mask if lower is None else graph.emit("And", [mask, lower])
        return Mask(_bias(graph, both, dtype), some_allowed(graph, both, dtype))
    finite = is_finite(mask)
    # Keep -inf apart from the lowest float, which the mask may contain: in a row of both, only the
    # latter has weight.
    if lower is not None:
        never = graph.constant(np.asarray(-np.inf, dtype.numpy), "never")
        mask = graph.emit("Where", [lower, mask, never])
    if finite:  # A causal row sees at least the first key.
        return Mask(mask, None)
    open_ = graph.emit("Not", [graph.emit("IsInf", [mask], {"detect_positive": 0})])
    allowed = some_allowed(graph, open_, dtype)
    some = graph.emit("Cast", [allowed], {"to": TO_ONNX[DType.BOOL]})
    zero = graph.constant(np.zeros((), dtype.numpy), "zero")
    return Mask(graph.emit("Where", [some, mask, zero]), allowed)


def _lowest(graph: Graph, dtype: DType) -> Value:
    return graph.constant(np.asarray(np.finfo(dtype.numpy).min), "lowest")


def _rank4(graph: Graph, mask: Value) -> Value:
    missing = 4 - (mask.tensor.rank or 4)
    if not missing:
        return mask
    return graph.emit("Unsqueeze", [mask, graph.constant(np.arange(missing), "axes")])


def _length(graph: Graph, x: Value, axis: int) -> Value:
    """The size of an axis, counted from the end, as i64[1]."""
    place = (x.tensor.rank or 4) + axis
    return graph.emit("Shape", [x], {"start": place, "end": place + 1})


def _filled(graph: Graph, mask: Value, k: Value) -> Value:
    """The mask extended to all keys: those beyond its end are masked."""
    dims, keys = mask.tensor.dims, k.tensor.dims
    assert dims is not None and keys is not None
    if dims[-1] is not None and dims[-1] == keys[-2]:
        return mask
    missing = graph.emit("Sub", [_length(graph, k, -2), _length(graph, mask, -1)])
    before = graph.constant(np.zeros(7, np.int64), "pads")
    pads = graph.emit("Concat", [before, missing], {"axis": 0})
    boolean = mask.tensor.dtype is DType.BOOL
    # ONNX Runtime's Pad takes no booleans.
    kind = DType.I32 if boolean else mask.tensor.dtype
    padded = graph.emit("Cast", [mask], {"to": TO_ONNX[kind]}) if boolean else mask
    fill = np.asarray(0 if boolean else -np.inf, kind.numpy)
    padded = graph.emit("Pad", [padded, pads, graph.constant(fill, "fill")])
    return graph.emit("Cast", [padded], {"to": TO_ONNX[DType.BOOL]}) if boolean else padded


def _causal(graph: Graph, q: Value, k: Value, past: Value | None) -> Value:
    """bool[1, 1, q, keys]: row i sees keys up to i, and all of the cache before it."""
    zero, one = (graph.constant(np.array(n, np.int64), "position") for n in (0, 1))
    flat = graph.constant(np.zeros(0, np.int64), "shape")

    def count(x: Value) -> Value:
        return graph.emit("Reshape", [_length(graph, x, -2), flat])

    rows = graph.emit("Range", [zero, count(q), one])
    if past is not None:
        rows = graph.emit("Add", [rows, count(past)])
    columns = graph.emit("Range", [zero, count(k), one])
    down = graph.emit("Unsqueeze", [rows, graph.constant(np.array([0, 1, 3]), "axes")])
    return graph.emit("LessOrEqual", [columns, down])


def _bias(graph: Graph, allowed: Value, dtype: DType) -> Value:
    zero = graph.constant(np.zeros((), dtype.numpy), "zero")
    return graph.emit("Where", [allowed, zero, _lowest(graph, dtype)])


def some_allowed(graph: Graph, allowed: Value, dtype: DType) -> Value:
    """[…, q, k] bool -> [batch, heads, q, 1] float: 1 where some key is allowed, else 0."""
    real = graph.emit("Cast", [allowed], {"to": TO_ONNX[dtype]})
    last = graph.constant(np.array([-1]), "axes")
    return graph.emit("ReduceMax", [real, last], {"keepdims": 1})


def is_finite(value: Value) -> bool:
    """Whether a float mask is provably free of infinities: computed from finite constants and integers."""
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
