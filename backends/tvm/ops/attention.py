"""Attention where no attention kernel applies, and RotaryEmbedding, by elements. Padded caches and windows
are refused.

    scores = softcap(scale * Q K^T) + mask;   Y = softmax(scores) V;   rows without a key give zeros

Scores are stored, [batch, heads, queries, keys]; halves are computed in single precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tersor.backends.tvm.lowering import Lowering, Refused, Rule, dtype_of
from tersor.backends.tvm.ops._agreement import check_fits
from tersor.backends.tvm.ops._elements import fitting, looked_up
from tersor.backends.tvm.ops.broadcast import dims_of, element, float_type
from tersor.backends.tvm.ops.folds import fold_or_start, folded_at, maximum, or_start, total
from tersor.backends.tvm.ops.matmul import operands_of
from tersor.ir import Dim, Node, Value
from tersor.ir.dims import floordiv

_KEYS = 3  # The softmax's axis of the scores.

Sizes = Mapping[str, Any]
"""Sizes of an Attention: batch, heads, kv_heads, queries, keys (of the operand), past, all (past and keys),
key and value (a head's widths). Dims of the IR; in TE functions, TIR expressions."""


def _known(dim: Dim) -> Any:
    if dim is None:
        raise Refused("a dim is known at run time only")
    return dim


def _sizes(node: Node) -> dict[str, Any]:
    q, k, v = (dims_of(value) for value in operands_of(node, 3))
    past = node.input(4)
    before: Any = 0 if past is None else _known(dims_of(past)[2])
    key, value = _known(k[-1]), _known(v[-1])
    if len(q) == 3:
        heads: Any = node.attrs.get("q_num_heads")
        kv_heads: Any = node.attrs.get("kv_num_heads")
        key, value = floordiv(key, kv_heads), floordiv(value, kv_heads)
    else:
        heads, kv_heads = _known(q[1]), _known(k[1])
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise Refused(f"{heads} query heads do not share {kv_heads} key heads evenly")
    keys = _known(k[-2])
    return {
        "batch": _known(q[0]), "heads": heads, "kv_heads": kv_heads, "queries": _known(q[-2]),
        "keys": keys, "past": before, "all": before + keys, "key": key, "value": value,
    }  # fmt: skip


def _attention(lowering: Lowering, node: Node) -> Sequence[Any]:
    attrs = node.attrs
    if node.input(6) is not None:
        raise Refused("lengths of a padded cache")
    if (attrs.get("left_window_size", -1), attrs.get("right_window_size", -1)) != (-1, -1):
        raise Refused("a sliding window")
    q, k, v = operands_of(node, 3)
    dims, flat = _sizes(node), q.tensor.rank == 3
    # Pass a function only the sizes that it reads: fusion would duplicate the others.
    mixing = {name: lowering.dim(dims[name]) for name in ("heads", "kv_heads", "value")}
    names = ("batch", "heads", "kv_heads", "queries", "all", "key")
    scoring = {name: lowering.dim(dims[name]) for name in names}
    present_k = _present(lowering, k, node.input(4), dims, "key")
    present_v = _present(lowering, v, node.input(5), dims, "value")
    last = dims["heads"] * dims["key"] if flat else dims["key"]
    query = fitting(lowering, q, {len(dims_of(q)) - 1: last})
    raw = lowering.te(_scores(node, flat), scoring, query, present_k, primfunc_name_hint="scores")
    cap: Any = attrs.get("softcap") or 0.0
    capped = lowering.te(_capped, raw, float(cap)) if cap else raw
    masked = _masked(lowering, node, capped, dims)
    weights = lowering.te(_softmax, masked, primfunc_name_hint="attention_weights")
    y = lowering.te(
        _mixed,
        mixing,
        weights,
        present_v,
        flat,
        dtype_of(node.outputs[0].type),
        primfunc_name_hint="mixed",
    )
    results = [y, present_k, present_v]
    if len(node.outputs) > 3 and node.outputs[3].uses:
        mode: Any = attrs.get("qk_matmul_output_mode") or 0
        shown = (raw, capped, masked, weights)[mode]
        results.append(lowering.te(_cast, shown, dtype_of(node.outputs[3].type)))
    return results


def presents(
    lowering: Lowering,
    k: Value,
    v: Value,
    past_k: Value | None,
    past_v: Value | None,
    kv_heads: int,
) -> list[Any]:
    """Keys and values appended to the past's, [batch, kv_heads, past + length, d]."""
    held = []
    for new, past in ((k, past_k), (v, past_v)):
        dims, before = dims_of(new), 0 if past is None else _known(dims_of(past)[2])
        width = _known(dims[-1])
        sizes = {
            "batch": _known(dims[0]), "kv_heads": kv_heads, "keys": _known(dims[-2]),
            "past": before, "all": before + _known(dims[-2]),
            "size": floordiv(width, kv_heads) if len(dims) == 3 else width,
        }  # fmt: skip
        held.append(_present(lowering, new, past, sizes, "size"))
    return held


def _present(lowering: Lowering, new: Value, past: Value | None, dims: Sizes, size: str) -> Any:
    """The past, then the operand: [batch, kv_heads, past + keys, size]."""
    batch, heads, keys, width = (dims[name] for name in ("batch", "kv_heads", "keys", size))
    flat = new.tensor.rank == 3
    own = (batch, keys, heads * width) if flat else (batch, heads, keys, width)
    operand = fitting(lowering, new, dict(enumerate(own)))
    if past is None and not flat:
        return operand
    before = (batch, heads, dims["past"], width)
    held = [] if past is None else [fitting(lowering, past, dict(enumerate(before)))]
    n = [lowering.dim(d) for d in (batch, heads, dims["all"], width)]

    def joined(n: Sequence[Any], new: te.Tensor, *held: te.Tensor) -> te.Tensor:
        def one(b: Any, h: Any, t: Any, i: Any) -> Any:
            at = t - held[0].shape[2] if held else t
            fresh = new(b, at, h * n[3] + i) if flat else new(b, h, at, i)
            return tirx.if_then_else(at < 0, held[0](b, h, t, i), fresh) if held else fresh

        return te.compute(tuple(n), one, name="present")

    return lowering.te(joined, n, operand, *held, primfunc_name_hint="present")


def _of_group(n: Sizes, head: Any) -> Any:
    """The key head that a query head reads; in bounds even where the counts do not divide."""
    group = tirx.max(tirx.floordiv(n["heads"], n["kv_heads"]), tirx.IntImm("int64", 1))
    return tirx.min(tirx.floordiv(head, group), n["kv_heads"] - 1)


def _scores(node: Node, flat: bool) -> Callable[..., te.Tensor]:
    q = node.inputs[0]
    assert q is not None
    stated: Any = node.attrs.get("scale")
    dtype = float_type(q.tensor.dtype)

    def scores(n: Sizes, q: te.Tensor, k: te.Tensor) -> te.Tensor:
        shape = (n["batch"], n["heads"], n["queries"], n["all"])
        d = te.reduce_axis((0, n["key"]), name="d")

        def one(b: Any, h: Any, i: Any, j: Any) -> Any:
            query = q(b, i, h * n["key"] + d) if flat else q(b, h, i, d)
            return te.sum(query.astype(dtype) * k(b, _of_group(n, h), j, d).astype(dtype), d)

        if stated is None:
            factor = tirx.const(1.0, dtype) / tirx.sqrt(n["key"].astype(dtype))
        else:
            factor = tirx.const(stated, dtype)
        made = or_start(te.compute(shape, one, name="products"), n["key"], total)
        return te.compute(shape, lambda *index: made(*index) * factor, name="scores")

    return scores


def _capped(scores: te.Tensor, cap: float) -> te.Tensor:
    limit = tirx.const(cap, scores.dtype)
    return te.compute(
        scores.shape, lambda *index: limit * tirx.tanh(scores(*index) / limit), name="capped"
    )


def _masked(lowering: Lowering, node: Node, scores: Any, dims: Sizes) -> Any:
    """The scores plus the mask, -inf where a query must not see a key."""
    mask, causal = node.input(3), bool(node.attrs.get("is_causal"))
    if mask is None and not causal:
        return scores
    have = () if mask is None else dims_of(mask)
    if mask is not None and (not have or have[-1] == 0):
        raise Refused("a mask without keys")
    # A mask does not broadcast along the keys.
    want = (dims["batch"], dims["heads"], dims["queries"], have[-1] if have else None)
    if mask is not None:
        check_fits(lowering, [have[:-1]], want[:-1])
    read = [] if mask is None else [lowering[mask]]
    whole = bool(have) and have[-1] == dims["all"]

    def masked(past: Sequence[Any], scores: te.Tensor, *masks: te.Tensor) -> te.Tensor:
        lowest = tirx.const(-np.inf, scores.dtype)

        def one(b: Any, h: Any, i: Any, j: Any) -> Any:
            made = scores(b, h, i, j)
            for tensor in masks:
                some = tensor.shape[-1]
                added = _added(made, element(tensor, (b, h, i, j), have, want), lowest)
                made = added if whole else tirx.if_then_else(j < some, added, lowest)
            return tirx.Select(j <= i + past[0], made, lowest) if causal else made

        return te.compute(scores.shape, one, name="masked")

    past = [lowering.dim(dims["past"])]
    return lowering.te(masked, past, scores, *read, primfunc_name_hint="masked")


def _added(score: Any, mask: Any, lowest: Any) -> Any:
    if str(mask.ty.dtype) == "bool":
        return tirx.Select(mask, score, lowest)
    return score + mask.astype(lowest.ty.dtype)


def _softmax(scores: te.Tensor) -> te.Tensor:
    """Along the keys; zeros where all are -inf: the maximum starts from a finite number."""
    zero = tirx.const(0.0, scores.dtype)
    highest = fold_or_start(scores.shape, [_KEYS], scores, maximum, "highest")

    def power(*index: Any) -> Any:
        return tirx.exp(scores(*index) - folded_at(highest, index, [_KEYS]))

    powers = te.compute(scores.shape, power, name="powers")
    summed = fold_or_start(scores.shape, [_KEYS], powers, total, "sum_exp")

    def one(*index: Any) -> Any:
        whole = folded_at(summed, index, [_KEYS])
        return powers(*index) / tirx.Select(whole == zero, tirx.const(1.0, scores.dtype), whole)

    return te.compute(scores.shape, one, name="weights")


def _mixed(n: Sizes, weights: te.Tensor, v: te.Tensor, flat: bool, dtype: str) -> te.Tensor:
    """Weighted sums of values, [batch, queries, heads * size] or [batch, heads, queries, size]."""
    batch, heads, queries, keys = weights.shape
    size = n["value"]
    j = te.reduce_axis((0, keys), name="j")

    def sums(b: Any, h: Any, i: Any, d: Any) -> Any:
        return te.sum(weights(b, h, i, j) * v(b, _of_group(n, h), j, d).astype(weights.dtype), j)

    summed = te.compute((batch, heads, queries, size), sums, name="mixed")
    made = or_start(summed, keys, total)
    if not flat:
        return te.compute(made.shape, lambda *index: made(*index).astype(dtype), name="y")

    def one(b: Any, i: Any, column: Any) -> Any:
        head, d = tirx.floordiv(column, size), tirx.floormod(column, size)
        return made(b, head, i, d).astype(dtype)

    return te.compute((batch, queries, heads * size), one, name="y")


def _cast(x: te.Tensor, dtype: str) -> te.Tensor:
    return te.compute(x.shape, lambda *index: x(*index).astype(dtype), name="shown")


# -- rotary embedding ------------------------------------------------------------------------------


def _rotary(lowering: Lowering, node: Node) -> Sequence[Any]:
    """Pairs of a head's elements, rotated by the angle of their position:

    (a, b) -> (a cos - b sin, a sin + b cos)        b: next to a, or half the rotated width further
    """
    x, cos, sin = operands_of(node, 3)
    positions, dims = node.input(3), dims_of(x)
    heads: Any = node.attrs.get("num_heads") or 1
    size = floordiv(_known(dims[-1]), heads) if len(dims) == 3 else _known(dims[-1])
    half = floordiv(node.attrs.get("rotary_embedding_dim") or size, 2)  # type: ignore[arg-type]
    steps = {0: dims[0], 1: dims[-2]}
    table: dict[int, Dim] = {1: half} if positions is not None else {**steps, 2: half}
    tables = [fitting(lowering, t, table) for t in (cos, sin)]
    read = [] if positions is None else [fitting(lowering, positions, steps)]
    interleaved, dtype = bool(node.attrs.get("interleaved")), float_type(x.tensor.dtype)
    n = {"size": lowering.dim(size), "half": lowering.dim(half)}
    if not interleaved and isinstance(half, int) and size == 2 * half:
        return [_halves(lowering, x, heads, half, [*tables, *read], dtype)]

    def turned(
        n: Sizes, x: te.Tensor, cos: te.Tensor, sin: te.Tensor, *ids: te.Tensor
    ) -> te.Tensor:
        zero, one, half = tirx.IntImm("int64", 0), tirx.IntImm("int64", 1), n["half"]

        def angle(table: te.Tensor, b: Any, t: Any, pair: Any) -> Any:
            place = (looked_up(ids[0](b, t), table.shape[0]),) if ids else (b, t)
            return table(*place, pair).astype(dtype)

        def at(*index: Any) -> Any:
            # The last axis but one is the position, with or without an axis of heads.
            b, t, i = index[0], index[-2], tirx.floormod(index[-1], n["size"])
            some = i < half * 2
            second = tirx.floormod(i, 2) == 1 if interleaved else i >= half
            pair = tirx.floordiv(i, 2) if interleaved else tirx.Select(second, i - half, i)
            pair, step = tirx.Select(some, pair, zero), one if interleaved else half
            # Elements that are not rotated are paired with themselves.
            step = tirx.Select(some, tirx.Select(second, zero - step, step), zero)
            mine, other = x(*index), x(*index[:-1], index[-1] + step).astype(dtype)
            sign = tirx.Select(second, tirx.const(1, dtype), tirx.const(-1, dtype))
            made = mine.astype(dtype) * angle(cos, b, t, pair)
            made = made + sign * other * angle(sin, b, t, pair)
            return tirx.Select(some, made.astype(x.dtype), mine)

        return te.compute(x.shape, at, name="rotary")

    return [lowering.te(turned, n, lowering[x], *tables, *read, primfunc_name_hint="rotary")]


def _halves(
    lowering: Lowering, x: Value, heads: int, half: int, others: list[Any], dtype: str
) -> Any:
    """Whole halves of a head rotated, along a separate axis: contiguous vectors."""
    dims = dims_of(x)
    groups = (dims[-2], heads) if len(dims) == 3 else dims[1:3]
    shape = lowering.dims((dims[0], *groups, 2, half))
    place = 1 if len(dims) == 3 else 2  # The axis of positions.

    def turned(x: te.Tensor, cos: te.Tensor, sin: te.Tensor, *ids: te.Tensor) -> te.Tensor:
        def angle(table: te.Tensor, b: Any, t: Any, i: Any) -> Any:
            where = (looked_up(ids[0](b, t), table.shape[0]),) if ids else (b, t)
            return table(*where, i).astype(dtype)

        def at(*index: Any) -> Any:
            *lead, side, i = index
            b, t = index[0], index[place]
            mine, other = (x(*lead, s, i).astype(dtype) for s in (side, 1 - side))
            sign = tirx.Select(side == 1, tirx.const(1, dtype), tirx.const(-1, dtype))
            made = mine * angle(cos, b, t, i) + sign * other * angle(sin, b, t, i)
            return made.astype(x.dtype)

        return te.compute(tuple(shape), at, name="rotary")

    split = lowering.emit(relax.op.reshape(lowering[x], relax.ShapeExpr(shape)))
    made = lowering.te(turned, split, *others, primfunc_name_hint="rotary")
    return lowering.emit(relax.op.reshape(made, relax.ShapeExpr(lowering.shape_of(x))))


RULES: dict[str, Rule] = {"Attention": _attention, "RotaryEmbedding": _rotary}
