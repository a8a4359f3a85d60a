"""Normalization, alone and fused with a preceding residual or embeddings."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tersor.ir import Dim, DType, Node, TensorType, ValueType
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import broadcast_dims
from tersor.ops.families._ties import broadcast, dims, plain
from tersor.ops.opdef import Cost, Cut, Follow, Member, OpDef, Sample, Tie, Weight, with_traits


def _norm_cost(node: Node) -> Cost:
    """Two passes for the moments, two to normalize: about eight operations per element."""
    numel = node.output.tensor.numel
    return Cost(0, None if numel is None else numel * 8)


def _axis(node: Node) -> int:
    rank = len(dims(node.inputs[0]))
    axis = node.attrs["axis"]
    assert isinstance(axis, int)
    return axis % rank if rank else 0


def _layer_norm_infer(node: Node) -> list[ValueType]:
    """Y like x; mean and inverse deviation keep the normalized axes as 1."""
    x = node.inputs[0]
    assert x is not None
    if x.tensor.dims is None:
        return [x.type] + [TensorType(DType.F32, None)] * (len(node.outputs) - 1)
    at = _axis(node)
    reduced: tuple[Dim, ...] = (*x.tensor.dims[:at], *(1 for _ in x.tensor.dims[at:]))
    return [x.type] + [TensorType(DType.F32, reduced)] * (len(node.outputs) - 1)


def _layer_norm(
    x: Any, scale: Any, bias: Any = None, *, axis: int, epsilon: float, stash_type: int = 1
) -> Any:
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = x.float() if x.element_size() < 4 else x
    mean = wide.mean(axes, keepdim=True)
    inverse = ((wide - mean).square().mean(axes, keepdim=True) + epsilon).rsqrt()
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


def _rms_norm(x: Any, scale: Any, *, axis: int, epsilon: float, stash_type: int = 1) -> Any:
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = x.float() if x.element_size() < 4 else x
    return (wide * (wide.square().mean(axes, keepdim=True) + epsilon).rsqrt()).to(x.dtype) * scale


def _norm_ties(node: Node, operands: int = 1, parameters: tuple[int, ...] = (1, 2)) -> list[Tie]:
    """Leading axes pass through; the normalized ones are tied to scale and bias by shape only, for
    the moments change when a channel goes."""
    have, at = dims(node.inputs[0]), _axis(node)
    outs = range(len(node.outputs))
    # The second result of Add & Norm is the sum; those of a plain norm are moments, one per row.
    whole = outs if node.op.startswith("tersor.Add") else outs[:1]
    ties = []
    for axis, size in enumerate(have):
        operand = [plain("in", i, axis) for i in range(operands)]
        if axis < at:
            ties.append(Tie(size, (*operand, *(plain("out", o, axis) for o in outs))))
            continue
        members = [*operand, *(plain("out", o, axis) for o in whole)]
        for index in parameters:
            own = dims(node.input(index))
            place = axis - (len(have) - len(own))
            if own and place >= 0 and own[place] == size:
                members.append(plain("in", index, place))
        ties.append(Tie(size, tuple(members), "shape"))
    return ties


def _layer_norm_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample([floats(rng, 2, 3, 8), floats(rng, 8), floats(rng, 8)], {"epsilon": 1e-6}),
        Sample([floats(rng, 2, 3, 8), floats(rng, 8)]),
        Sample([floats(rng, 2, 3, 4), floats(rng, 3, 4), floats(rng, 3, 4)], {"axis": 1}),
        Sample([floats(rng, 2, 3, 4), floats(rng, 4)], outputs=3),
    ]


def _rms_norm_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample([floats(rng, 2, 3, 8), floats(rng, 8)]),
        Sample([floats(rng, 2, 8), floats(rng, 8)], {"epsilon": 1e-3}),
    ]


# -- with the residual -----------------------------------------------------------------------------


def _add_norm_infer(node: Node) -> list[ValueType]:
    x, skip = node.inputs[0], node.inputs[1]
    assert x is not None and skip is not None
    if x.tensor.dims is None or skip.tensor.dims is None:
        type = x.tensor.with_dims(None)
    else:
        type = x.tensor.with_dims(broadcast_dims(x.tensor.dims, skip.tensor.dims))
    return [type] * len(node.outputs)


def _add_layer_norm(
    x: Any, skip: Any, scale: Any, bias: Any = None, *, axis: int, epsilon: float
) -> Any:
    total = x + skip
    return _layer_norm(total, scale, bias, axis=axis, epsilon=epsilon)[0], total


def _add_rms_norm(x: Any, skip: Any, scale: Any, *, axis: int, epsilon: float) -> Any:
    total = x + skip
    return _rms_norm(total, scale, axis=axis, epsilon=epsilon), total


def _add_layer_norm_samples(rng: np.random.Generator) -> list[Sample]:
    x, skip, scale, bias = (
        floats(rng, 2, 3, 8),
        floats(rng, 2, 3, 8),
        floats(rng, 8),
        floats(rng, 8),
    )
    return [Sample([x, skip, scale, bias], {"epsilon": 1e-6}, outputs=2), Sample([x, skip, scale])]


def _add_rms_norm_samples(rng: np.random.Generator) -> list[Sample]:
    x, skip, scale = floats(rng, 2, 3, 8), floats(rng, 2, 3, 8), floats(rng, 8)
    return [Sample([x, skip, scale], outputs=2), Sample([x, skip, scale], {"epsilon": 1e-3})]


# -- with the embeddings ---------------------------------------------------------------------------


def _embedding_infer(node: Node) -> list[ValueType]:
    table, out = node.inputs[3], ()
    assert table is not None
    for ids in node.inputs[2::2]:
        if ids is None or ids.tensor.dims is None:
            return [table.tensor.with_dims(None)]
        out = broadcast_dims(out, ids.tensor.dims)  # type: ignore[assignment]
    return [table.tensor.with_dims((*out, dims(table)[-1] if dims(table) else None))]


def _embedding(scale: Any, bias: Any, *pairs: Any, epsilon: float) -> Any:
    total: Any = 0
    for ids, table in zip(pairs[::2], pairs[1::2], strict=True):
        total = total + table[ids.long()]
    return _layer_norm(total, scale, bias, axis=-1, epsilon=epsilon)[0]


def _embedding_weights(node: Node) -> list[Weight]:
    return [Weight(i, (1,), ids=i - 1) for i in range(3, len(node.inputs), 2)]


def _embedding_ties(node: Node) -> list[Tie]:
    rank, size = len(dims(node.output)), dims(node.output)[-1] if dims(node.output) else None
    tables = [plain("in", i, 1) for i in range(3, len(node.inputs), 2)]
    hidden = (plain("in", 0, 0), plain("in", 1, 0), *tables, plain("out", 0, rank - 1))
    return [Tie(size, hidden, "shape")] if rank else []


def _embedding_samples(rng: np.random.Generator) -> list[Sample]:
    ids, places = rng.integers(0, 7, (2, 3)), np.arange(3)[None]
    f = partial(floats, rng)
    return [Sample([f(8), f(8), ids, f(7, 8), places, f(5, 8)], {}, frozenset({0, 1, 3, 5}))]


# -- over channels ---------------------------------------------------------------------------------


def _same_infer(node: Node) -> list[ValueType]:
    x = node.inputs[0]
    assert x is not None
    return [x.type]


def _columns(x: Any, parameter: Any) -> Any:
    return parameter.reshape(1, -1, *([1] * (x.dim() - 2)))


def _batch_norm(
    x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, epsilon: float, momentum: float,
    training_mode: int = 0,
) -> Any:  # fmt: skip
    from tersor.errors import Unsupported

    if training_mode:
        raise Unsupported("BatchNormalization in training mode has no evaluation")
    factor = scale / (var + epsilon).sqrt()
    return (x - _columns(x, mean)) * _columns(x, factor) + _columns(x, bias)


def _batch_norm_ties(node: Node) -> list[Tie]:
    ties = broadcast(node, [0], skip=(1,))
    size = dims(node.inputs[0])[1]
    members = (plain("in", 0, 1), plain("out", 0, 1), *(plain("in", i, 0) for i in range(1, 5)))
    return [*ties, Tie(size, members)]


def _batch_norm_samples(rng: np.random.Generator) -> list[Sample]:
    def p(n: int) -> np.ndarray:
        return (np.abs(rng.standard_normal(n)) + 0.5).astype(np.float32)

    constant = frozenset({1, 2, 3, 4})
    return [
        Sample([floats(rng, 2, 3, 4, 4), p(3), floats(rng, 3), floats(rng, 3), p(3)], {}, constant),
        Sample(
            [floats(rng, 5, 3), p(3), floats(rng, 3), floats(rng, 3), p(3)],
            {"epsilon": 1e-3},
            constant,
        ),
    ]


def _group_size(node: Node) -> int | None:
    """The number of channels that share moments: one for InstanceNormalization."""
    channels, groups = dims(node.inputs[0])[1:2], node.attrs.get("num_groups")
    if groups is None:
        return 1
    known = channels and isinstance(channels[0], int) and isinstance(groups, int)
    return channels[0] // groups if known else None  # type: ignore[operator, return-value]


def _group_norm_ties(node: Node) -> list[Tie]:
    """Batch, and whole groups of channels; removing a channel changes the moments of its group."""
    have, each = dims(node.inputs[0]), _group_size(node)
    if not have:
        return []
    ties = [Tie(have[0], (plain("in", 0, 0), plain("out", 0, 0)))]
    if each is not None and have[1] is not None:
        members = (Member("in", 0, 1, inner=each), Member("in", 1, 0, inner=each),
                   Member("in", 2, 0, inner=each), Member("out", 0, 1, inner=each))  # fmt: skip
        ties.append(Tie(have[1] // each, members))
    return ties


def _group_norm_follow(node: Node, cut: Cut) -> Follow:
    groups, each, gone = node.attrs["num_groups"], _group_size(node), cut.get(("in", 0, 1), ())
    assert isinstance(groups, int)
    return Follow({"num_groups": groups - len(gone) // each} if each and gone else {})


def _instance_norm(x: Any, scale: Any, bias: Any, *, epsilon: float) -> Any:
    axes = tuple(range(2, x.dim()))
    mean = x.mean(axes, keepdim=True)
    inverse = ((x - mean).square().mean(axes, keepdim=True) + epsilon).rsqrt()
    return (x - mean) * inverse * _columns(x, scale) + _columns(x, bias)


def _group_norm(
    x: Any, scale: Any, bias: Any, *, num_groups: int, epsilon: float, stash_type: int
) -> Any:
    import torch.nn.functional as F

    return F.group_norm(x, num_groups, scale, bias, epsilon)


def _lp_norm(x: Any, *, axis: int, p: int) -> Any:
    norm = x.norm(p=p, dim=axis, keepdim=True)
    return x / norm.where(norm != 0, norm.new_ones(()))


def _lp_norm_ties(node: Node) -> list[Tie]:
    return broadcast(node, skip=(_axis(node),))


ROWS = with_traits("normalization", [
    OpDef("LayerNormalization", since=17, infer=_layer_norm_infer, torch=_layer_norm,
          cost=_norm_cost, ties=_norm_ties, samples=_layer_norm_samples),
    OpDef("RMSNormalization", since=23, infer=_layer_norm_infer, torch=_rms_norm, cost=_norm_cost,
          ties=lambda node: _norm_ties(node, 1, (1,)), samples=_rms_norm_samples),
    OpDef(
        "tersor.AddLayerNormalization", traits=frozenset({"sum"}),
        doc="""A residual sum and its layer normalization ("Add & Norm", Vaswani et al. 2017):
        s = x + skip; y = LayerNormalization(s, scale, bias). The second output is s.""",
        inputs=("x", "skip", "scale", "bias?"), attrs={"axis": -1, "epsilon": 1e-5}, outputs=2,
        infer=_add_norm_infer, torch=_add_layer_norm, cost=_norm_cost,
        ties=lambda node: _norm_ties(node, 2, (2, 3)), samples=_add_layer_norm_samples),
    OpDef(
        "tersor.AddRMSNormalization", traits=frozenset({"sum"}),
        doc="""A residual sum and its RMS normalization (Zhang and Sennrich 2019):
        s = x + skip; y = RMSNormalization(s, scale). The second output is s.""",
        inputs=("x", "skip", "scale"), attrs={"axis": -1, "epsilon": 1e-5}, outputs=2,
        infer=_add_norm_infer, torch=_add_rms_norm, cost=_norm_cost,
        ties=lambda node: _norm_ties(node, 2, (2,)), samples=_add_rms_norm_samples),
    OpDef(
        "tersor.EmbeddingLayerNormalization",
        doc="""A sum of embeddings and its layer normalization, over the last axis:
        LayerNormalization(table_0[ids_0] + table_1[ids_1] + ..., scale, bias). Ids broadcast.""",
        inputs=("scale", "bias", "ids_and_tables*"), attrs={"epsilon": 1e-5},
        infer=_embedding_infer, torch=_embedding, cost=_norm_cost, ties=_embedding_ties,
        weights=_embedding_weights, samples=_embedding_samples),
    OpDef("BatchNormalization", since=14, torch=_batch_norm, cost=_norm_cost, ties=_batch_norm_ties,
          samples=_batch_norm_samples),
    OpDef("InstanceNormalization", since=6, infer=_same_infer, torch=_instance_norm, cost=_norm_cost,
          ties=_group_norm_ties,
          samples=lambda rng: [Sample([floats(rng, 2, 3, 4), floats(rng, 3), floats(rng, 3)])]),
    OpDef("GroupNormalization", since=21, infer=_same_infer, torch=_group_norm, cost=_norm_cost,
          ties=_group_norm_ties, follow=_group_norm_follow,
          samples=lambda rng: [
              Sample([floats(rng, 2, 4, 5), floats(rng, 4), floats(rng, 4)], {"num_groups": 2}),
          ]),
    OpDef("LpNormalization", since=1, infer=_same_infer, torch=_lp_norm, cost=_norm_cost,
          ties=_lp_norm_ties,
          samples=lambda rng: [
              Sample([floats(rng, 3, 4)]), Sample([floats(rng, 3, 4)], {"axis": 0, "p": 1}),
          ]),
])  # fmt: skip
