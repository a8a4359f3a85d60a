"""Attention as ONNX defines it, and rotary position embedding.

    Y = softmax(scale * Q K^T + mask) V,   per head; 0 in a row whose keys are all masked

Operands are [batch, length, heads*d] with head counts as attributes, or [batch, heads, length, d].
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np

from tersor.ir import Attribute, Dim, Node, TensorType, ValueType
from tersor.ir.dims import product
from tersor.ops import onnx_schema
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import refuse
from tersor.ops.families._ties import dims, plain
from tersor.ops.opdef import Cost, Cut, Follow, Member, OpDef, Sample, Tie


def head_counts(node: Node) -> tuple[int, int] | None:
    """(query heads, key-value heads) of an Attention; None if unknown."""
    q, k = dims(node.inputs[0]), dims(node.inputs[1])
    if len(q) == 4:
        counts = (q[1], k[1])
    else:
        counts = (node.attrs.get("q_num_heads"), node.attrs.get("kv_num_heads"))  # type: ignore[assignment]
    if isinstance(counts[0], int) and isinstance(counts[1], int):
        return counts[0], counts[1]
    return None


def _infer(node: Node) -> list[ValueType]:
    q, k, v = node.inputs[0], node.inputs[1], node.inputs[2]
    assert q is not None and k is not None and v is not None
    past, counts = node.input(4), head_counts(node)
    qd, kd, vd = q.tensor.dims, k.tensor.dims, v.tensor.dims
    if qd is None or kd is None or vd is None or counts is None:
        return onnx_schema.infer(node)
    if not len(qd) == len(kd) == len(vd) or len(qd) not in (3, 4):
        refuse(
            node, f"its operands have {len(qd)}, {len(kd)} and {len(vd)} axes, not all 3 or all 4"
        )
    if len({d for d in (qd[0], kd[0], vd[0]) if isinstance(d, int)}) > 1:
        refuse(node, f"its operands have batches of {qd[0]}, {kd[0]} and {vd[0]}")
    if isinstance(kd[-2], int) and isinstance(vd[-2], int) and kd[-2] != vd[-2]:
        refuse(node, f"{kd[-2]} keys and {vd[-2]} values")
    heads, kv_heads = counts
    length: Dim = kd[-2]
    if past is not None and dims(past):
        before = dims(past)[2]
        length = None if before is None or length is None else before + length
    flat = len(qd) == 3
    if flat and not all(
        _divides(n, d) for n, d in ((heads, qd[-1]), (kv_heads, kd[-1]), (kv_heads, vd[-1]))
    ):
        refuse(node, f"{heads} and {kv_heads} heads do not divide its operands' last axes")
    dk = kd[-1] // kv_heads if flat and kd[-1] is not None else kd[-1]
    dv = vd[-1] // kv_heads if flat and vd[-1] is not None else vd[-1]
    dq = qd[-1] // heads if flat and qd[-1] is not None else qd[-1]
    if isinstance(dq, int) and isinstance(dk, int) and dq != dk:
        refuse(node, f"heads of {dq} in the query do not fit those of {dk} in the key")
    y = (*qd[:2], dv * heads if dv is not None else None) if flat else (*qd[:3], dv)
    types = [
        q.tensor.with_dims(y),
        k.tensor.with_dims((kd[0], kv_heads, length, dk)),
        v.tensor.with_dims((vd[0], kv_heads, length, dv)),
        q.tensor.with_dims((qd[0], heads, qd[-2], length)),
    ]
    return list(types[: len(node.outputs)])


def _divides(count: int, dim: Dim) -> bool:
    """Whether an axis can be divided into so many heads; a symbolic one may."""
    return count > 0 and (not isinstance(dim, int) or dim % count == 0)


def _split(x: Any, heads: int) -> Any:
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _attention(
    q: Any, k: Any, v: Any, mask: Any = None, past_k: Any = None, past_v: Any = None, lengths: Any = None,
    *, is_causal: int = 0, q_num_heads: int = 0, kv_num_heads: int = 0, scale: Any = None,
    softcap: float = 0.0, softmax_precision: Any = None, qk_matmul_output_mode: int = 0,
    left_window_size: int = -1, right_window_size: int = -1,
) -> Any:  # fmt: skip
    import torch

    from tersor.errors import Unsupported

    if (left_window_size, right_window_size) != (-1, -1):
        raise Unsupported("Attention with a sliding window has no torch evaluation")
    if lengths is not None:
        raise Unsupported("Attention with nonpad_kv_seqlen has no torch evaluation")
    flat = q.dim() == 3
    if flat:
        q, k, v = _split(q, q_num_heads), _split(k, kv_num_heads), _split(v, kv_num_heads)
    before = 0 if past_k is None else past_k.shape[2]
    if past_k is not None:
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    present = (k, v)
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    raw = scores = (q @ k.transpose(-1, -2)) * factor
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    capped = scores
    bias = _bias(mask, scores, before, bool(is_causal))
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(-1)
    weights = weights.where(~(scores == float("-inf")).all(-1, keepdim=True), weights.new_zeros(()))
    y = weights @ v
    if flat:
        y = y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)
    shown = (raw, capped, scores, weights)[qk_matmul_output_mode]
    return y, *present, shown


def _bias(mask: Any, scores: Any, before: int, causal: bool) -> Any:
    """The additive mask, or None. A mask shorter than the keys masks the rest."""
    import torch

    bias = None
    if mask is not None:
        bias = mask
        if mask.dtype is torch.bool:
            bias = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf"))
        missing = scores.shape[-1] - bias.shape[-1]
        if missing > 0:
            bias = torch.nn.functional.pad(bias, (0, missing), value=float("-inf"))
    if causal:
        rows, columns = scores.shape[-2:]
        allowed = torch.ones(rows, columns, dtype=torch.bool).tril(before)
        lower = torch.zeros(rows, columns, dtype=scores.dtype).masked_fill(~allowed, float("-inf"))
        bias = lower if bias is None else bias + lower
    return bias


def _cost(node: Node) -> Cost:
    """For all query heads, [q length, kv length] times the head sizes of keys and of values."""
    counts = head_counts(node)
    q, k, v, past = (dims(node.input(i)) for i in (0, 1, 2, 4))
    if counts is None or not q or not k or not v:
        return Cost(None, None)
    keys = k[-2] if not past or k[-2] is None or past[2] is None else k[-2] + past[2]
    scores = product([q[0], counts[0], q[-2], keys])
    lanes = [_lanes(q, counts[0]), _lanes(v, counts[1])]
    macs = [None if scores is None or d is None else scores * d for d in lanes]
    work = None if macs[0] is None or macs[1] is None else macs[0] + macs[1]
    return Cost(work, None if scores is None else scores * 5)


def _lanes(shape: tuple[Dim, ...], heads: int) -> Dim:
    """The size of a head."""
    if len(shape) == 4 or shape[-1] is None:
        return shape[-1]
    return shape[-1] // heads


def _ties(node: Node) -> list[Tie]:
    """Batch; groups of query heads that share keys (the head counts follow); and lanes of all heads: those
    of queries and keys, which the scores sum over, and those of values, which pass to the result."""
    counts, q = head_counts(node), dims(node.inputs[0])
    if counts is None:
        return []
    states = [plain("in", i, 0) for i in (4, 5, 6) if node.input(i) is not None]
    results = (plain("out", i, 0) for i in range(len(node.outputs)))
    members = [*(plain("in", i, 0) for i in range(3)), *states, *results]
    outer = [(q[0], members, _mask_members(node, 4, q[0]))]
    if (grouped := _group_members(node, *counts)) is not None:
        each = counts[0] // counts[1]
        outer.append((counts[1], grouped, _mask_members(node, 3, counts[0], each)))
    ties = [Tie(size, (*own, *mask)) for size, own, mask in outer if mask is not None]
    return [*ties, *_lane_ties(node, *counts)]


def _lane_ties(node: Node, heads: int, groups: int) -> list[Tie]:
    """Lanes of queries and keys are summed over: cutting them is equivalent to zeroing them, if the scale
    stays the same."""
    q, v = dims(node.inputs[0]), dims(node.inputs[2])
    last = len(q) - 1

    def lanes(side: str, index: int, count: int) -> Member:
        return Member("in" if side == "in" else "out", index, last, outer=count if last == 2 else 1)

    scored = [lanes("in", 0, heads), lanes("in", 1, groups)]
    valued = [lanes("in", 2, groups), lanes("out", 0, heads)]
    for members, past, present in ((scored, 4, 1), (valued, 5, 2)):
        members += [plain("in", past, 3)] if node.input(past) is not None else []
        members += [plain("out", present, 3)] if present < len(node.outputs) else []
    return [
        Tie(_lanes(q, heads), tuple(scored), "sum"),
        *([Tie(_lanes(v, groups), tuple(valued))] if v else []),
    ]


def _mask_members(node: Node, place: int, size: Dim, inner: int = 1) -> list[Member] | None:
    """The mask's axis -``place``: none if it is left out or stretched; None if unknown."""
    shape = dims(node.input(3))
    if node.input(3) is None or (shape and (len(shape) < place or shape[-place] == 1)):
        return []
    if not shape or shape[-place] != size:
        return None
    return [Member("in", 3, len(shape) - place, inner=inner)]


def _group_members(node: Node, heads: int, groups: int) -> list[Member] | None:
    """The members of a group of heads, without the mask; None if the size of a head is unknown."""
    each, flat = heads // groups, len(dims(node.inputs[0])) == 3
    members = [plain("in", i, 1) for i in (4, 5) if node.input(i) is not None]
    members += [plain("out", i, 1) for i in (1, 2) if i < len(node.outputs)]
    members += [Member("out", 3, 1, inner=each)] if len(node.outputs) > 3 else []
    if not flat:
        kept = [Member("in", 0, 1, inner=each), plain("in", 1, 1), plain("in", 2, 1)]
        return [*kept, Member("out", 0, 1, inner=each), *members]
    for side, index, value in (
        *(("in", i, node.inputs[i]) for i in range(3)),
        ("out", 0, node.output),
    ):
        hidden = dims(value)[-1] if dims(value) else None
        if not isinstance(hidden, int):
            return None
        members.append(Member("in" if side == "in" else "out", index, 2, inner=hidden // groups))
    return members


def _follow(node: Node, cut: Cut) -> Follow:
    """Head counts shrink by the heads without remaining lanes. If heads become narrower, the default scale
    becomes an explicit number."""
    counts, q = head_counts(node), dims(node.inputs[0])
    changed: dict[str, Attribute | None] = {}
    size = _lanes(q, counts[0]) if counts is not None else None
    if counts is None or not isinstance(size, int):
        return Follow(changed)
    if len(q) == 4:
        narrower = ("in", 0, 3) in cut
    else:
        left = [_left(cut.get(("in", i, 2), ()), n, size) for i, n in enumerate(counts)]
        for name, before, (after, _) in zip(_COUNTS, counts, left, strict=True):
            if after != before:
                changed[name] = after
        narrower = left[0][1] < size
    if narrower and node.attrs.get("scale") is None:
        changed["scale"] = onnx_schema.as_written(size**-0.5)
    return Follow(changed)


_COUNTS = ("q_num_heads", "kv_num_heads")


def _left(gone: Collection[int], heads: int, size: int) -> tuple[int, int]:
    """(heads, lanes of each) that remain of a hidden axis."""
    lanes = np.ones((heads, size), bool)
    lanes.reshape(-1)[list(gone)] = False
    return int(lanes.any(axis=1).sum()), int(lanes.any(axis=0).sum())


def _samples(rng: np.random.Generator) -> list[Sample]:
    f = partial(floats, rng)

    heads = {"q_num_heads": 2, "kv_num_heads": 2}
    mask = rng.integers(0, 2, (2, 1, 1, 5)).astype(bool)
    mask[..., 0] = True
    return [
        Sample([f(2, 3, 8), f(2, 5, 8), f(2, 5, 8)], dict(heads)),
        Sample([f(2, 3, 8), f(2, 5, 8), f(2, 5, 8), mask], {**heads, "scale": 0.3}),
        Sample([f(2, 5, 8), f(2, 5, 4), f(2, 5, 4)], {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1}),
        Sample([f(2, 2, 3, 4), f(2, 2, 5, 4), f(2, 2, 5, 4), f(3, 5)], {"softcap": 2.0}),
        Sample([f(2, 2, 1, 4), f(2, 2, 1, 4), f(2, 2, 1, 4), None, f(2, 2, 6, 4), f(2, 2, 6, 4)],
               {"is_causal": 1}, outputs=3),
        Sample([f(2, 3, 8), f(2, 5, 4), f(2, 5, 6), None, f(2, 2, 3, 2), f(2, 2, 3, 3)],
               {"q_num_heads": 4, "kv_num_heads": 2}, outputs=3),
        Sample([f(2, 4, 3, 4), f(2, 2, 5, 4), f(2, 2, 5, 3)], {"scale": 0.7}),
        Sample([f(2, 3, 8), f(2, 5, 8), f(2, 5, 8)], {**heads, "qk_matmul_output_mode": 3}, outputs=4),
        Sample([f(2, 4, 3, 4), f(2, 2, 5, 4), f(2, 2, 5, 4), f(2, 4, 3, 5)], outputs=3),
        Sample([f(2, 3, 8), f(2, 5, 8), f(2, 5, 8), f(4, 3, 5)], {"q_num_heads": 4, "kv_num_heads": 4}),
    ]  # fmt: skip


def _rotary(
    x: Any, cos: Any, sin: Any, positions: Any = None, *, interleaved: int, num_heads: int = 0,
    rotary_embedding_dim: int,
) -> Any:  # fmt: skip
    import torch

    flat = x.dim() == 3
    if flat:
        x = _split(x, num_heads)
    width = rotary_embedding_dim or x.shape[-1]
    rotated, rest = x[..., :width], x[..., width:]
    if positions is not None:
        cos, sin = cos[positions.long()], sin[positions.long()]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
        y = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = rotated.chunk(2, -1)
        y = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    y = torch.cat([y, rest], -1)
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1) if flat else y


def _rotary_samples(rng: np.random.Generator) -> list[Sample]:
    f = partial(floats, rng)

    places = np.array([[0, 1, 2], [3, 4, 5]])
    return [
        Sample([f(2, 2, 3, 8), f(2, 3, 4), f(2, 3, 4)]),
        Sample([f(2, 2, 3, 8), f(9, 4), f(9, 4), places], {"interleaved": 1}),
        Sample([f(2, 3, 16), f(9, 4), f(9, 4), places], {"num_heads": 2}),
    ]


def _rotary_ties(node: Node) -> list[Tie]:
    """Batch, positions, and heads if they have their own axis; a table indexed by ``position_ids`` is not
    cut."""
    have, looked_up = dims(node.inputs[0]), node.input(3) is not None
    if len(have) not in (3, 4):
        return []
    at = len(have) - 2  # positions
    tables = [plain("in", 3, 0)] if looked_up else [plain("in", 1, 0), plain("in", 2, 0)]
    steps = [plain("in", 3, 1)] if looked_up else [plain("in", 1, 1), plain("in", 2, 1)]
    ties = [
        Tie(have[0], (plain("in", 0, 0), *tables, plain("out", 0, 0))),
        Tie(have[at], (plain("in", 0, at), *steps, plain("out", 0, at))),
    ]
    return [*ties, *([Tie(have[1], (plain("in", 0, 1), plain("out", 0, 1)))] if at == 2 else [])]


def _rotary_cost(node: Node) -> Cost:
    numel = node.output.tensor.numel if isinstance(node.output.type, TensorType) else None
    return Cost(0, None if numel is None else numel * 3)


ROWS = [
    OpDef("Attention", since=23, infer=_infer, torch=_attention, cost=_cost, ties=_ties,
          follow=_follow, samples=_samples),
    OpDef("RotaryEmbedding", since=23, torch=_rotary, cost=_rotary_cost, ties=_rotary_ties,
          samples=_rotary_samples),
]  # fmt: skip
