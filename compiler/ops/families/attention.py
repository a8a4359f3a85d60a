"""Attention as ONNX defines it, and rotary position embedding.

    Y = softmax(scale * Q K^T + mask) V,   a head at a time; a row whose keys are all masked gives 0

Operands are [batch, length, heads*d] with head counts as attributes, or [batch, heads, length, d].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.ir import Attribute, Dim, Node, TensorType, ValueType
from tersor.ir.dims import product
from tersor.ops import onnx_schema
from tersor.ops.families._ties import dims, plain
from tersor.ops.opdef import Cost, Cut, Follow, Member, OpDef, Sample, Tie


def head_counts(node: Node) -> tuple[int, int] | None:
    """(query heads, key-value heads) of an Attention; None where they are not known."""
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
    heads, kv_heads = counts
    length: Dim = kd[-2]
    if past is not None and dims(past):
        before = dims(past)[2]
        length = None if before is None or length is None else before + length
    flat = len(qd) == 3
    dk = kd[-1] // kv_heads if flat and kd[-1] is not None else kd[-1]
    dv = vd[-1] // kv_heads if flat and vd[-1] is not None else vd[-1]
    y = (*qd[:2], dv * heads if dv is not None else None) if flat else (*qd[:3], dv)
    types = [
        q.tensor.with_dims(y),
        k.tensor.with_dims((kd[0], kv_heads, length, dk)),
        v.tensor.with_dims((vd[0], kv_heads, length, dv)),
        q.tensor.with_dims((qd[0], heads, qd[-2], length)),
    ]
    return list(types[: len(node.outputs)])


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
    """The additive mask, or None. A mask shorter than the keys leaves the rest out."""
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
    """Two products of [q length, kv length] with the head size, for all query heads."""
    counts = head_counts(node)
    q, k, past = dims(node.inputs[0]), dims(node.inputs[1]), dims(node.input(4))
    if counts is None or not q or not k:
        return Cost(None, None)
    hidden = q[2] if len(q) == 3 else product([q[1], q[3]])
    keys = k[-2] if not past or k[-2] is None or past[2] is None else k[-2] + past[2]
    scores = product([q[0], counts[0], q[-2], keys])
    macs = product([q[0], q[-2], keys, hidden])
    return Cost(None if macs is None else macs * 2, None if scores is None else scores * 5)


def _ties(node: Node) -> list[Tie]:
    """Batch; and groups of heads that share keys: slicing whole groups leaves the others unchanged
    (with the head counts that shrink alike)."""
    q, k, v = (dims(x) for x in node.inputs[:3])
    counts = head_counts(node)
    if counts is None or (len(node.inputs) > 3 and node.input(4) is not None):
        return []
    heads, groups = counts
    ties = [Tie(q[0], (*(plain("in", i, 0) for i in range(3)), plain("out", 0, 0)))]
    if dims(node.input(3)) and len(dims(node.input(3))) > 2:
        ties = []
    if len(q) == 4:
        each = heads // groups
        members = (Member("in", 0, 1, inner=each), plain("in", 1, 1), plain("in", 2, 1),
                   Member("out", 0, 1, inner=each))  # fmt: skip
        return [*ties, Tie(groups, members)]
    sizes = [s[-1] for s in (q, k, v)] + [dims(node.output)[-1]]
    if not all(isinstance(s, int) for s in sizes):
        return ties
    inner = [int(s) // groups for s in sizes if isinstance(s, int)]
    hidden: tuple[Member, ...] = (
        *(Member("in", i, 2, inner=inner[i]) for i in range(3)),
        Member("out", 0, 2, inner=inner[3]),
    )
    return [*ties, Tie(groups, hidden)]


def _follow(node: Node, cut: Cut) -> Follow:
    """Head counts shrink as the hidden axes do. The factor of the scores does not: it comes from the
    size of a head."""
    counts = head_counts(node)
    changed: dict[str, Attribute | None] = {}
    for index, name in enumerate(("q_num_heads", "kv_num_heads")):
        hidden, gone = dims(node.inputs[index])[-1], cut.get(("in", index, 2), ())
        if gone and name in node.attrs and counts is not None and isinstance(hidden, int):
            changed[name] = counts[index] * (hidden - len(gone)) // hidden
    return Follow(changed)


def _samples(rng: np.random.Generator) -> list[Sample]:
    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

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
    turned, rest = x[..., :width], x[..., width:]
    if positions is not None:
        cos, sin = cos[positions.long()], sin[positions.long()]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        y = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        y = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    y = torch.cat([y, rest], -1)
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1) if flat else y


def _rotary_samples(rng: np.random.Generator) -> list[Sample]:
    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    places = np.array([[0, 1, 2], [3, 4, 5]])
    return [
        Sample([f(2, 2, 3, 8), f(2, 3, 4), f(2, 3, 4)]),
        Sample([f(2, 2, 3, 8), f(9, 4), f(9, 4), places], {"interleaved": 1}),
    ]


def _rotary_cost(node: Node) -> Cost:
    numel = node.output.tensor.numel if isinstance(node.output.type, TensorType) else None
    return Cost(0, None if numel is None else numel * 3)


ROWS = [
    OpDef("Attention", since=23, infer=_infer, torch=_attention, cost=_cost, ties=_ties,
          follow=_follow,          samples=_samples),
    OpDef("RotaryEmbedding", since=23, torch=_rotary, cost=_rotary_cost, samples=_rotary_samples),
]  # fmt: skip
