"""Moving data: Transpose, Concat, Split."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.errors import Unsupported
from tersor.ir import Dim, Node, ValueType
from tersor.ir.dims import ceil_div, divide
from tersor.ops.contents import contents_of
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import (
    axis_of,
    is_negative,
    known,
    merge,
    no_work,
    refuse,
    small,
    tensor,
)
from tersor.ops.families._ties import dims, plain
from tersor.ops.opdef import Cut, Follow, Member, OpDef, Sample, Tie

# -- Transpose -------------------------------------------------------------------------------------


def _perm(node: Node, rank: int) -> list[int]:
    perm = node.attrs.get("perm")
    if not isinstance(perm, tuple):
        return list(reversed(range(rank)))
    axes = [p for p in perm if isinstance(p, int)]
    if sorted(axes) != list(range(rank)):
        refuse(node, f"perm {axes} is not a permutation of {rank} axes")
    return axes


def _transpose_infer(node: Node) -> list[ValueType]:
    x, perm = tensor(node), node.attrs.get("perm")
    if x.dims is None:
        return [x.with_dims((None,) * len(perm) if isinstance(perm, tuple) else None)]
    return [x.with_dims(tuple(x.dims[p] for p in _perm(node, len(x.dims))))]


def _transpose_contents(node: Node) -> list[np.ndarray | None]:
    contents = contents_of(node.inputs[0])
    return [None if contents is None else np.transpose(contents, _perm(node, contents.ndim))]


def _transpose(x: Any, *, perm: Any = None) -> Any:
    return x.permute(tuple(perm) if perm is not None else tuple(reversed(range(x.dim()))))


def _transpose_ties(node: Node) -> list[Tie]:
    have = dims(node.inputs[0])
    return [
        Tie(have[p], (plain("in", 0, p), plain("out", 0, i)))
        for i, p in enumerate(_perm(node, len(have)) if have else ())
    ]


# -- Concat ----------------------------------------------------------------------------------------


def _concat_infer(node: Node) -> list[ValueType]:
    types = [tensor(node, i) for i in range(len(node.inputs))]
    ranks = {len(t.dims) for t in types if t.dims is not None}
    if len(ranks) > 1 or len({t.dtype for t in types}) > 1:
        refuse(node, f"{', '.join(map(str, types))} cannot be concatenated")
    if not ranks:
        return [types[0].with_dims(None)]
    rank = ranks.pop()
    axis = axis_of(node, rank)
    columns = list(zip(*(t.dims or (None,) * rank for t in types), strict=True))
    out = [_total(c) if i == axis else merge(node, *c) for i, c in enumerate(columns)]
    return [types[0].with_dims(tuple(out))]


def _total(parts: tuple[Dim, ...]) -> Dim:
    total: Dim = 0
    for d in parts:
        total = None if total is None or d is None else total + d
    return total


def _concat_contents(node: Node) -> list[np.ndarray | None]:
    parts = [p for v in node.inputs if (p := contents_of(v)) is not None]
    if len(parts) < len(node.inputs) or not small([sum(p.size for p in parts)]):
        return [None]
    return [np.concatenate(parts, axis=axis_of(node, parts[0].ndim))]


def _concat(*tensors: Any, axis: int) -> Any:
    import torch

    return torch.cat(tensors, dim=axis)


def _concat_ties(node: Node) -> list[Tie]:
    """Each operand has a range of the concatenated axis; the other axes are tied."""
    shapes = [dims(v) for v in node.inputs]
    if not all(shapes):
        return []
    axis = axis_of(node, len(shapes[0]))
    ties = []
    for i, size in enumerate(dims(node.output)):
        if i != axis:
            members = tuple(plain("in", n, i) for n in range(len(shapes)))
            ties.append(Tie(size, (*members, plain("out", 0, i))))
    offset: Dim = 0
    for n, shape in enumerate(shapes):
        if not isinstance(offset, int):
            break
        out = Member("out", 0, axis, offset=offset)
        ties.append(Tie(shape[axis], (plain("in", n, axis), out)))
        offset = _total((offset, shape[axis]))
    return ties


# -- Split -----------------------------------------------------------------------------------------


def _split_sizes(node: Node) -> list[Dim]:
    """Sizes of the parts; None if unknown."""
    parts, have = len(node.outputs), dims(node.inputs[0])
    if node.input(1) is not None:
        given = known(node.input(1))
        return [None] * parts if given is None else given
    size = have[axis_of(node, len(have))] if have else None
    if size is None:
        return [None] * parts
    if (equal := divide(size, parts)) is not None:
        return [equal] * parts
    part = ceil_div(size, parts)
    if isinstance(size, int) and isinstance(part, int):
        return [min(part, max(size - part * i, 0)) for i in range(parts)]
    return [part, *[None] * (parts - 1)]  # How far the full parts reach depends on the size.


def _split_infer(node: Node) -> list[ValueType]:
    x, sizes = tensor(node), _split_sizes(node)
    if x.dims is None:
        return [x.with_dims(None)] * len(node.outputs)
    axis = axis_of(node, len(x.dims))
    whole, total = x.dims[axis], _total(tuple(sizes))
    wrong = isinstance(whole, int) and isinstance(total, int) and whole != total
    if len(sizes) != len(node.outputs) or wrong or any(map(is_negative, sizes)):
        refuse(node, f"axis {axis} of {x} cannot be cut into {len(node.outputs)} parts {sizes}")
    return [x.with_dims((*x.dims[:axis], s, *x.dims[axis + 1 :])) for s in sizes]


def _split_contents(node: Node) -> list[np.ndarray | None]:
    contents, sizes = (
        contents_of(node.inputs[0]),
        [s for s in _split_sizes(node) if isinstance(s, int)],
    )
    if contents is None or len(sizes) != len(node.outputs):
        return [None] * len(node.outputs)
    return list(np.split(contents, np.cumsum(sizes)[:-1], axis=axis_of(node, contents.ndim)))


def _split(x: Any, split: Any = None, *, axis: int, outputs: int, num_outputs: int = 0) -> Any:
    if split is not None:
        return tuple(x.split([int(s) for s in split], dim=axis))
    size, part = x.shape[axis], -(-x.shape[axis] // outputs)
    return tuple(x.split([min(part, max(size - part * i, 0)) for i in range(outputs)], dim=axis))


def _split_ties(node: Node) -> list[Tie]:
    """Each result has a range of the split axis; the other axes are tied."""
    have = dims(node.inputs[0])
    if not have:
        return []
    axis, outs = axis_of(node, len(have)), range(len(node.outputs))
    ties = [
        Tie(d, (plain("in", 0, i), *(plain("out", n, i) for n in outs)))
        for i, d in enumerate(have)
        if i != axis
    ]
    offset: Dim = 0
    for n, size in enumerate(_split_sizes(node)):
        if not isinstance(offset, int) or size is None:
            break
        ties.append(Tie(size, (Member("in", 0, axis, offset=offset), plain("out", n, axis))))
        offset = _total((offset, size))
    return ties


def _split_follow(node: Node, cut: Cut) -> Follow:
    """Sizes become operand 1, also for equal parts, which may differ now."""
    have = dims(node.inputs[0])
    axis, sizes = axis_of(node, len(have)), _split_sizes(node)
    if not any(key[2] == axis for key, gone in cut.items() if gone):
        return Follow()
    if not all(isinstance(s, int) for s in sizes):
        raise Unsupported(f"{node.label}: the sizes of the parts are unknown")
    left = [int(s) - len(cut.get(("out", n, axis), ())) for n, s in enumerate(sizes)]  # type: ignore[arg-type]
    return Follow({"num_outputs": None}, {1: np.array(left, np.int64)})


# -- samples and rows ------------------------------------------------------------------------------


def _i(*items: int) -> np.ndarray:
    return np.array(items, np.int64)


def _transpose_samples(rng: np.random.Generator) -> list[Sample]:
    x = floats(rng, 2, 3, 4)
    samples = [Sample([x], {"perm": perm}) for perm in ((1, 2, 0), (0, 2, 1), (2, 1, 0))]
    return [
        *samples,
        Sample([x]),
        Sample([np.arange(6).reshape(2, 3)]),
        Sample([floats(rng, 0, 3) > 0]),
    ]


def _concat_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample([floats(rng, 2, 3), floats(rng, 2, 1), floats(rng, 2, 2)], {"axis": -1}),
        Sample([floats(rng, 2), floats(rng, 3)], {"axis": 0}),
        Sample([floats(rng, 2, 3)], {"axis": 1}),
        Sample([floats(rng, 2, 0, 3), floats(rng, 2, 4, 3)], {"axis": -2}),
        Sample([np.arange(3), np.arange(2)], {"axis": 0}),
        Sample([np.array([[True]]), np.array([[False]])], {"axis": 1}),
    ]


def _split_samples(rng: np.random.Generator) -> list[Sample]:
    one = frozenset({1})
    return [
        Sample([floats(rng, 2, 7), _i(3, 4)], {"axis": 1}, one, outputs=2),
        Sample([floats(rng, 2, 7), _i(5, 0, 2)], {"axis": -1}, one, outputs=3),
        Sample([floats(rng, 7, 2)], {"axis": 0, "num_outputs": 3}, outputs=3),
        Sample([floats(rng, 6)], {"num_outputs": 2}, outputs=2),
        Sample([np.arange(6).reshape(2, 3)], {"axis": 1, "num_outputs": 3}, outputs=3),
        Sample([floats(rng, 2, 3) > 0, _i(1, 1)], {"axis": 0}, one, outputs=2),
    ]


ROWS = [
    OpDef("Transpose", traits=frozenset({"movement"}),
          since=1, infer=_transpose_infer, contents=_transpose_contents,
          torch=_transpose, cost=no_work, ties=_transpose_ties, samples=_transpose_samples),
    OpDef("Concat", since=11, infer=_concat_infer, contents=_concat_contents, torch=_concat,
          cost=no_work, ties=_concat_ties, samples=_concat_samples),
    OpDef("Split", traits=frozenset({"movement"}),
          since=18, infer=_split_infer, contents=_split_contents, torch=_split,
          cost=no_work, ties=_split_ties, follow=_split_follow, samples=_split_samples),
]  # fmt: skip
