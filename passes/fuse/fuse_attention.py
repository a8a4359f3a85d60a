"""Attention from products and a softmax to ONNX's Attention on [batch, heads, length, d].

    softmax(c (a Q)(b K)^T + mask) V   =   Attention(Q, K, V, mask) {scale = a b c}

Matches: scores scaled before or after the product, by Mul or Div, and capped (``t tanh(s / t)``); masks added
in either order, several of them (a position bias and padding), or selected (``where(m, s, low)`` is ``s +
where(m, 0, low)`` for -inf, and for the lowest float, which absorbs any score); a guard against NaN after the
softmax (``where(isnan(p), 0, p)``); keys and values repeated for groups of query heads (Unsqueeze, Expand,
Reshape), also before an Attention.  A mask ``where(m, 0, -inf)`` becomes the boolean m, and so does one with
the lowest float if its positions leave every query a key.

**Rows whose keys are all masked.** Attention gives zeros.  In the formula with -inf such rows are NaN, which
the guard turns into zeros.  torch's exporter writes that guard and yet masks by the lowest float, so that
these rows become the mean of all values, unlike in torch.  With the guard, and if all queries see the same
keys (padding), the lowest float is therefore read as -inf: only a sequence without a token makes a
difference.  Masks that differ by query (a window with padding leaves padded queries without a key) and those
without the guard (eager attention) stay as they are, and such rows are the mean of all values.  So does a
mask of -10000, whose rows keep their scores; if a key is left, masked keys get probability 0 either way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tersor.analysis.attention_window import attention_window
from tersor.analysis.match import (
    dims,
    has_one_use,
    operand,
    operand_orders,
    producer_if,
    rank,
    scalar,
    uniform,
)
from tersor.ir import Dim, DType, Graph, Node, Value
from tersor.pipeline import Keeps, Pass, Rewrite, Skip
from tersor.transforms.sizes import size_from_inputs


@dataclass(frozen=True)
class FuseAttention(Pass):
    """No options."""

    keeps = Keeps(values=1e-4)  # The softmax amplifies the rounding of its scores.

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op == "Attention":
            return _grouped(graph, node)
        if node.op == "Mul":
            return _without_guard(node)
        if node.op == "Where":
            return _added(graph, node)
        if node.op != "MatMul":
            return None
        softmax, guarded = _softmax(operand(node, 0))
        if softmax is None or rank(softmax.output) != 4:
            return None
        scores, masks = _split_masks(operand(softmax, 0))
        cap, scores = _uncapped(scores)
        scale, product = _unscaled(scores)
        if product is None:
            return None
        if not has_one_use(operand(node, 0)):
            raise Skip("the attention weights have another user")
        a, q = _scaled_operand(operand(product, 0))
        b, kt = _scaled_operand(operand(product, 1))
        v = operand(node, 1)
        _check(q, kt, v, operand(softmax, 0), masks)
        operands: list[Value | None] = [q, *_keys_and_values(graph, kt, v)]
        if masks:
            zeroed = any(_is_guard(value, masks[0]) for value in _factors(node.output))
            zeroed |= guarded and _is_padding(masks[0])
            mask = _boolean(masks[0], zeroed) if len(masks) == 1 else _sum(graph, masks)
            operands.append(_of_all_keys(graph, _of_two_axes(graph, mask), kt))
        scale = _exact(scale * a * b * (cap or 1.0), q)
        return graph.emit("Attention", operands, {"scale": scale, "softcap": cap})


def _exact(scale: float, q: Value) -> float:
    """1 / sqrt(d) if ``scale`` is that up to rounding of its factors."""
    usual = float(q.tensor.dims[3]) ** -0.5  # type: ignore[index, arg-type]
    return usual if math.isclose(scale, usual, rel_tol=1e-6) else scale


def _softmax(weights: Value) -> tuple[Node | None, bool]:
    """(the softmax over the last axis that produces ``weights``, whether behind a guard against NaN)."""
    guard = producer_if(weights, "Where")
    if guard is not None:
        test = producer_if(operand(guard, 0), "IsNaN")
        if test is None or uniform(operand(guard, 1)) != 0.0:
            return None, False
        weights = operand(guard, 2)
        if operand(test, 0) is not weights:
            return None, False
    softmax = producer_if(weights, "Softmax")
    if softmax is None or softmax.attrs["axis"] not in (-1, 3):
        return None, False
    return softmax, guard is not None


def _factors(value: Value) -> list[Value]:
    """What ``value`` is multiplied by, if that is its only use."""
    node = value.only_user()
    if node is None or node.op != "Mul":
        return []
    return [factor for other, factor in operand_orders(node) if other is value]


def _is_guard(factor: Value, mask: Value) -> bool:
    """Whether ``factor`` is the maximum over keys of m as numbers, for the mask m or ``where(m, ...)``."""
    most = producer_if(factor, "ReduceMax")
    real = producer_if(operand(most, 0), "Cast") if most is not None else None
    if most is None or real is None or not most.attrs["keepdims"] or rank(factor) != 4:
        return False
    where = producer_if(mask, "Where")
    axes = most.input(1)
    last = axes is not None and axes.is_constant and axes.numpy().tolist() in ([-1], [3])
    return last and operand(real, 0) in (mask, operand(where, 0) if where is not None else mask)


def _without_guard(node: Node) -> Rewrite:
    """Removes the multiplication of an Attention by a guard of its own mask."""
    for value, factor in operand_orders(node):
        attention = producer_if(value, "Attention")
        mask = attention.input(3) if attention is not None else None
        if mask is None or value.type != node.output.type or mask.tensor.dtype is not DType.BOOL:
            continue
        if attention is not None and len(attention.outputs) == 1 and _is_guard(factor, mask):
            return value
    return None


def _split_masks(value: Value) -> tuple[Value, list[Value]]:
    """(scores, additive masks): the scores are the addend that comes from a product."""
    masks: list[Value] = []
    scores = value
    while (total := producer_if(scores, "Add")) is not None:
        for inner, mask in operand_orders(total):
            sums = producer_if(inner, "Add") is not None and has_one_use(inner)
            if inner.type == value.type and (sums or _is_scores(inner)):
                masks.append(mask)
                scores = inner
                break
        else:
            return value, []
    return (scores, masks) if _is_scores(scores) else (value, [])


def _is_scores(value: Value) -> bool:
    return _unscaled(_uncapped(value)[1])[1] is not None


def _uncapped(value: Value) -> tuple[float, Value]:
    """(t, s / t) for ``t tanh(s / t)``; (0, the value) for others."""
    node = producer_if(value, "Mul")
    for inner, number in operand_orders(node) if node is not None else ():
        cap, tanh = scalar(number), producer_if(inner, "Tanh")
        if cap is not None and cap > 0 and tanh is not None:
            return cap, operand(tanh, 0)
    return 0.0, value


def _added(graph: Graph, node: Node) -> Rewrite:
    """Replaces a mask that selects between scores and a low number by one that is added."""
    mask, reader = operand(node, 0), node.output.only_user()
    while reader is not None and reader.op == "Add":  # Another mask, for padding.
        reader = reader.output.only_user()
    if reader is None or reader.op != "Softmax" or rank(node.output) != 4:
        return None
    while (wide := producer_if(mask, "Expand")) is not None:  # Where broadcasts anyway.
        mask = operand(wide, 0)
    shape, keys = dims(mask), (dims(node.output) or (None,))[-1]
    if not shape or len(shape) < 2 or keys is None or shape[-1] != keys:
        return None
    for place in (1, 2):
        scores, low = operand(node, place), operand(node, 3 - place)
        if uniform(low) not in (-np.inf, _lowest(node.output)) or scores.type != node.output.type:
            continue
        if producer_if(scores, "Add") is None and not _is_scores(scores):
            continue
        kind = node.output.tensor.dtype.numpy
        filling = graph.constant(np.asarray(uniform(low), kind), "low")
        zero = graph.constant(np.zeros((), kind), "zero")
        choices = [zero, filling] if place == 1 else [filling, zero]
        return graph.emit("Add", [scores, graph.emit("Where", [mask, *choices])])
    return None


def _lowest(value: Value) -> float:
    """The lowest finite number of its dtype."""
    kind = value.tensor.dtype
    return float(np.finfo(kind.numpy).min) if kind.is_float else math.nan


def _sum(graph: Graph, masks: list[Value]) -> Value:
    """The sum of all masks, the same for all layers that add the same ones."""
    total = masks[-1]
    for mask in reversed(masks[:-1]):
        total = graph.emit("Add", [total, mask])
    return total


def _of_two_axes(graph: Graph, mask: Value) -> Value:
    """The mask with at least the axes of queries and keys, as Attention requires."""
    missing = 2 - (2 if mask.tensor.rank is None else mask.tensor.rank)
    if missing <= 0:
        return mask
    return graph.emit("Unsqueeze", [mask, graph.constant(np.arange(missing), "axes")])


def _of_all_keys(graph: Graph, mask: Value, kt: Value) -> Value:
    """The mask expanded to the number of keys if its last dim is another symbol, which may be 1: a sum
    broadcasts a single element over all keys, while Attention applies it to the first key alone."""
    shape, keys = dims(mask), dims(kt)
    if shape is None or keys is None or shape[-1] == keys[3]:
        return mask
    count = size_from_inputs(graph, keys[3]) or graph.emit("Shape", [kt], {"start": 3, "end": 4})
    ones = graph.constant(np.ones(len(shape) - 1, np.int64), "ones")
    target = graph.emit("Concat", [ones, count], {"axis": 0})
    type = mask.tensor.with_dims((*shape[:-1], keys[3]))
    return graph.emit_node("Expand", [mask, target], types=[type]).output


def _unscaled(value: Value) -> tuple[float, Node | None]:
    """(factor, MatMul or None) where ``value`` is the MatMul's result times the factor."""
    factor = 1.0
    node = value.producer
    while node is not None and node.op in ("Mul", "Div"):
        a, b = operand(node, 0), operand(node, 1)
        number = scalar(b) if scalar(b) is not None else scalar(a) if node.op == "Mul" else None
        if not number:  # None or 0.
            return factor, None
        factor = factor * number if node.op == "Mul" else factor / number
        node = (a if scalar(b) is not None else b).producer
    return factor, node if node is not None and node.op == "MatMul" else None


def _scaled_operand(value: Value) -> tuple[float, Value]:
    """(factor, x) where ``value`` is x times the factor."""
    node = value.producer
    if node is None or node.op not in ("Mul", "Div"):
        return 1.0, value
    a, b = operand(node, 0), operand(node, 1)
    if (number := scalar(b)) and a.type == value.type:
        return (number if node.op == "Mul" else 1 / number), a
    if node.op == "Mul" and (number := scalar(a)) and b.type == value.type:
        return number, b
    return 1.0, value


def _grouped(graph: Graph, node: Node) -> Rewrite:
    """Removes the repetition of keys and values before an Attention, which does that itself."""
    k, v = operand(node, 1), operand(node, 2)
    fewer = _unrepeated(k), _unrepeated(v)
    if fewer[0] is k or fewer[1] is v or node.input(4) is not None or len(node.outputs) > 1:
        return None
    few_k, few_v = dims(fewer[0]), dims(fewer[1])
    if few_k is None or few_v is None or few_k[1] != few_v[1]:
        return None
    return graph.emit("Attention", [node.inputs[0], *fewer, *node.inputs[3:]], node.attrs)


def _keys_and_values(graph: Graph, kt: Value, v: Value) -> tuple[Value, Value]:
    """K[b, h, s, d] from K^T[b, h, d, s], and V; without the repetition of heads if both have it."""
    swap = producer_if(kt, "Transpose")
    swapped = swap is not None and swap.attrs.get("perm") == (0, 1, 3, 2)
    if swap is not None and swapped:
        few_k, few_v = _unrepeated(operand(swap, 0)), _unrepeated(v)
        if few_k is not operand(swap, 0) and few_v is not v and dims(few_k)[1] == dims(few_v)[1]:  # type: ignore[index]
            return few_k, few_v
    # Merges with a Transpose that is already there.
    return graph.emit("Transpose", [kt], {"perm": (0, 1, 3, 2)}), v


def _unrepeated(source: Value) -> Value:
    """K or V before its heads were repeated: [b, g, s, d] -> [b, g, 1, s, d] -> expand -> [b, h, s, d]."""
    reshape = producer_if(source, "Reshape")
    expand = producer_if(operand(reshape, 0), "Expand") if reshape is not None else None
    unsqueeze = producer_if(operand(expand, 0), "Unsqueeze") if expand is not None else None
    if unsqueeze is None or expand is None:
        return source
    before, wide = operand(unsqueeze, 0), dims(expand.output)
    axes, out = unsqueeze.inputs[1], dims(source)
    if axes is None or not axes.is_constant or list(axes.numpy()) != [2]:
        return source
    few = dims(before)
    if few is None or wide is None or out is None or len(few) != 4 or len(wide) != 5:
        return source
    grouped = wide[:2] == few[:2] and wide[3:] == few[2:] == out[2:] and isinstance(wide[2], int)
    heads = isinstance(few[1], int) and isinstance(wide[2], int) and out[1] == few[1] * wide[2]
    return before if grouped and heads else source


def _check(q: Value, kt: Value, v: Value, scores: Value, masks: list[Value]) -> None:
    """Checks what Attention requires of its operands beyond products, which broadcast.

    Raises:
        Skip: it is not met.
    """
    a, b, c, s = dims(q), dims(kt), dims(v), dims(scores)
    if a is None or b is None or c is None or s is None or {len(a), len(b), len(c)} != {4}:
        raise Skip("its operands are not [batch, heads, length, d]")
    if len({x.tensor.dtype for x in (q, kt, v)}) > 1:
        raise Skip("its operands have different dtypes")
    for x, sizes in ((q, (a[1], a[3])), (kt, (b[1], b[2])), (v, (c[1], c[3]))):
        if not all(isinstance(size, int) for size in sizes):
            raise Skip(f"heads or head size of {x!r} are unknown")
    # A single head of keys and values is shared by all query heads in both forms.
    if not _one_batch(a[0], b[0], c[0]) or b[1] != c[1] or b[1] not in (a[1], 1):
        raise Skip("its operands have different batches or heads")
    shapes = [dims(mask) for mask in masks]
    lasts = [s[-1:] if shape is None else shape[-1:] for shape in shapes]  # () is a scalar.
    if masks and not any(last and _agree(last[0], s[-1]) for last in lasts):
        raise Skip("its mask has no axis of keys")


def _one_batch(*batches: Dim) -> bool:
    """Whether all batch dims are equal. Different symbols may be 1 and n, which only products broadcast."""
    return len({batch for batch in batches if batch is not None}) <= 1


def _agree(a: Dim, b: Dim) -> bool:
    """Whether a mask's last dim may be the number of keys. A number is no symbol, but two symbols may be
    equal: decoders name the length of their masks differently."""
    return a == b or not (isinstance(a, int) or isinstance(b, int))


def _boolean(mask: Value, zeroed: bool) -> Value:
    """m of ``where(m, 0, -inf)``, else the mask itself. ``zeroed``: rows without a key give zeros, so the
    lowest float may stand for -inf."""
    where = producer_if(mask, "Where")
    if where is None or operand(where, 0).tensor.dtype is not DType.BOOL:
        return mask
    masked, m = uniform(operand(where, 2)), operand(where, 0)
    sure = zeroed or (rank(m) == 4 and _leaves_a_key(m))
    if uniform(operand(where, 1)) != 0.0 or masked not in (
        (-np.inf, _lowest(mask)) if sure else (-np.inf,)
    ):
        return mask
    return m if dims(m) == dims(mask) else mask


def _is_padding(mask: Value) -> bool:
    """Whether all queries of a sequence see the same keys: only a sequence without a token has none."""
    shape = dims(mask)
    return shape is not None and len(shape) == 4 and shape[1:3] == (1, 1)


def _leaves_a_key(mask: Value) -> bool:
    """Whether the mask leaves every query a key: that of its own position, if there are as many keys."""
    shape = dims(mask)
    return shape is not None and shape[2] == shape[3] and attention_window(mask).is_all
