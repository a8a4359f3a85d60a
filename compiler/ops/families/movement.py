"""Moving data about: transposing, joining, cutting, looking up."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.ir import Dim, Node, Sym, ValueType
from tersor.ops import onnx_schema
from tersor.ops.families._ties import dims, plain
from tersor.ops.families.shape import ints, known, view_cost
from tersor.ops.opdef import Cost, Member, OpDef, Quantizable, Sample, Tie
from tersor.ops.table import contents_of

END = 2**31  # Ends and starts beyond this mean "to the end", as INT64_MAX does.


def copy_cost(node: Node) -> Cost:
    """A copy of the result: no arithmetic; its bytes are counted from its type."""
    return Cost(0, 0)


def axis_of(node: Node, rank: int, name: str = "axis") -> int:
    """A non-negative axis."""
    axis = node.attrs[name]
    assert isinstance(axis, int)
    return axis % rank if rank else 0


def same_axes(node: Node, operand: int, skip: set[int]) -> list[Tie]:
    """Ties of all axes that pass from an operand to the result at the same place."""
    have = dims(node.input(operand))
    return [
        Tie(d, (plain("in", operand, i), plain("out", 0, i)))
        for i, d in enumerate(have)
        if i not in skip
    ]


# -- Transpose -------------------------------------------------------------------------------------


def _perm(node: Node, rank: int) -> list[int]:
    perm = node.attrs.get("perm")
    return list(perm) if isinstance(perm, tuple) else list(reversed(range(rank)))  # type: ignore[arg-type]


def _transpose_infer(node: Node) -> list[ValueType]:
    x = node.inputs[0]
    assert x is not None
    if x.tensor.dims is None or len(_perm(node, len(x.tensor.dims))) != len(x.tensor.dims):
        return onnx_schema.infer(node)
    return [x.tensor.with_dims(tuple(x.tensor.dims[p] for p in _perm(node, len(x.tensor.dims))))]


def _transpose_contents(node: Node) -> list[np.ndarray | None]:
    held = contents_of(node.inputs[0])
    return [None if held is None else np.transpose(held, _perm(node, held.ndim))]


def _transpose(x: Any, *, perm: Any = None) -> Any:
    return x.permute(*(perm if perm is not None else reversed(range(x.dim()))))


def _transpose_ties(node: Node) -> list[Tie]:
    have = dims(node.inputs[0])
    return [
        Tie(have[p], (plain("in", 0, p), plain("out", 0, i)))
        for i, p in enumerate(_perm(node, len(have)))
    ]


# -- Concat, Split ---------------------------------------------------------------------------------


def _concat_infer(node: Node) -> list[ValueType]:
    shapes = [v.tensor.dims for v in node.inputs if v is not None]
    first = node.inputs[0]
    assert first is not None
    if any(s is None or len(s) != len(shapes[0] or ()) for s in shapes):
        return onnx_schema.infer(node)
    known_shapes = [s for s in shapes if s is not None]
    axis = axis_of(node, len(known_shapes[0]))
    out: list[Dim] = []
    for i, column in enumerate(zip(*known_shapes, strict=True)):
        if i == axis:
            total: Dim = 0
            for d in column:
                total = None if total is None or d is None else total + d
            out.append(total)
        else:
            numbers = [d for d in column if isinstance(d, int)]
            out.append(numbers[0] if numbers else next((d for d in column if d is not None), None))
    return [first.tensor.with_dims(tuple(out))]


def _concat_contents(node: Node) -> list[np.ndarray | None]:
    parts = [contents_of(v) for v in node.inputs]
    if any(p is None for p in parts):
        return [None]
    return [np.concatenate([p for p in parts if p is not None], axis=axis_of(node, parts[0].ndim))]  # type: ignore[union-attr]


def _concat(*tensors: Any, axis: int) -> Any:
    import torch

    return torch.cat(tensors, dim=axis)


def _concat_ties(node: Node) -> list[Tie]:
    shapes = [dims(v) for v in node.inputs]
    axis = axis_of(node, len(shapes[0]))
    ties = []
    for i, size in enumerate(shapes[0]):
        if i != axis:
            members = tuple(plain("in", n, i) for n in range(len(shapes)))
            ties.append(Tie(size, (*members, plain("out", 0, i))))
    offset: Dim = 0
    for n, shape in enumerate(shapes):
        if not isinstance(offset, int):
            break
        out = Member("out", 0, axis, offset=offset)
        ties.append(Tie(shape[axis], (plain("in", n, axis), out)))
        offset = offset + shape[axis] if shape[axis] is not None else None
    return ties


def _split_sizes(node: Node) -> list[Dim] | None:
    """Sizes of the parts; None where they are not known."""
    have = dims(node.inputs[0])
    if not have:
        return None
    given = known(node.input(1)) if node.input(1) is not None else None
    if node.input(1) is not None:
        return given
    size, parts = have[axis_of(node, len(have))], len(node.outputs)
    if not isinstance(size, int):
        return [None] * parts
    part = -(-size // parts)
    return [min(part, max(size - part * i, 0)) for i in range(parts)]


def _split_infer(node: Node) -> list[ValueType]:
    x, sizes = node.inputs[0], _split_sizes(node)
    assert x is not None
    if sizes is None or x.tensor.dims is None or len(sizes) != len(node.outputs):
        return onnx_schema.infer(node)
    axis = axis_of(node, len(x.tensor.dims))
    return [
        x.tensor.with_dims((*x.tensor.dims[:axis], s, *x.tensor.dims[axis + 1 :])) for s in sizes
    ]


def _split_contents(node: Node) -> list[np.ndarray | None]:
    held, sizes = contents_of(node.inputs[0]), _split_sizes(node)
    if held is None or sizes is None or not all(isinstance(s, int) for s in sizes):
        return [None] * len(node.outputs)
    cuts = np.cumsum([s for s in sizes if isinstance(s, int)])[:-1]
    return list(np.split(held, cuts, axis=axis_of(node, held.ndim)))


def _split(x: Any, split: Any = None, *, axis: int, outputs: int, num_outputs: int = 0) -> Any:
    if split is not None:
        return tuple(x.split([int(s) for s in split], dim=axis))
    size, part = x.shape[axis], -(-x.shape[axis] // outputs)
    sizes = [min(part, max(size - part * i, 0)) for i in range(outputs)]
    return tuple(x.split(sizes, dim=axis))


def _split_ties(node: Node) -> list[Tie]:
    have, sizes = dims(node.inputs[0]), _split_sizes(node)
    axis = axis_of(node, len(have))
    outs = range(len(node.outputs))
    ties = [
        Tie(d, (plain("in", 0, i), *(plain("out", n, i) for n in outs)))
        for i, d in enumerate(have)
        if i != axis
    ]
    offset = 0
    for n, size in enumerate(sizes or ()):
        if not isinstance(size, int):
            break
        ties.append(Tie(size, (Member("in", 0, axis, offset=offset), plain("out", n, axis))))
        offset += size
    return ties


# -- Slice -----------------------------------------------------------------------------------------


def _slices(node: Node, rank: int) -> dict[int, tuple[Any, Any, int]] | None:
    """axis -> (start, end, step), where all of them are known; starts and ends may be symbolic."""
    starts, ends = known(node.inputs[1]), known(node.inputs[2])
    if starts is None or ends is None:
        return None
    axes = ints(node.input(3)) if node.input(3) is not None else list(range(len(starts)))
    steps = ints(node.input(4)) if node.input(4) is not None else [1] * len(starts)
    if axes is None or steps is None:
        return None
    rows = zip(axes, starts, ends, steps, strict=True)
    return {axis % rank: (start, end, step) for axis, start, end, step in rows}


def _bound(position: Any, size: Dim) -> Dim:
    """A start or end of a forward slice as a dim between 0 and ``size``; None where unknown."""
    if isinstance(position, int):
        if isinstance(size, int):
            return min(max(position + size if position < 0 else position, 0), size)
        if position == 0:
            return 0
        if position >= END:
            return size
        # seq - 1 for -1 is right only if seq >= 1; and 5 may lie beyond the end.
        return None
    return position if position is not None and position == size else None


def _sliced(size: Dim, start: Any, end: Any, step: int) -> Dim:
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(size)[slice(start, None if step < 0 and end < -size else end, step)])
    low, high = _bound(start, size), _bound(end, size)
    if step != 1 or low is None or high is None:
        # The first n of a symbolic axis, n symbolic itself: what exporters write for a cut to length.
        fits = step == 1 and start == 0 and isinstance(end, Sym) and isinstance(size, int)
        return end if fits else None
    span = high - low
    return max(span, 0) if isinstance(span, int) else span


def _slice_infer(node: Node) -> list[ValueType]:
    x = node.inputs[0]
    assert x is not None
    if x.tensor.dims is None:
        return [x.tensor]
    slices = _slices(node, len(x.tensor.dims))
    if slices is None:
        return onnx_schema.infer(node)
    out = [_sliced(d, *slices[i]) if i in slices else d for i, d in enumerate(x.tensor.dims)]
    return [x.tensor.with_dims(tuple(out))]


def _slice_contents(node: Node) -> list[np.ndarray | None]:
    held = contents_of(node.inputs[0])
    slices = _slices(node, held.ndim) if held is not None else None
    if held is None or slices is None:
        return [None]
    if not all(isinstance(b, int) for start, end, _ in slices.values() for b in (start, end)):
        return [None]
    cut = [slice(None)] * held.ndim
    for axis, (start, end, step) in slices.items():
        stop = None if step < 0 and end < -held.shape[axis] else end
        cut[axis] = slice(start, stop, step)
    return [held[tuple(cut)]]


def _slice(x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    import torch

    chosen = range(len(starts)) if axes is None else [int(a) for a in axes]
    for n, axis in enumerate(chosen):
        step = 1 if steps is None else int(steps[n])
        start, end, size = int(starts[n]), int(ends[n]), x.shape[axis]
        stop = None if step < 0 and end < -size else end
        x = x.index_select(axis, torch.tensor(range(size)[slice(start, stop, step)], dtype=torch.int64))
    return x


def _slice_ties(node: Node) -> list[Tie]:
    have = dims(node.inputs[0])
    slices = _slices(node, len(have))
    if slices is None:
        return []
    ties = same_axes(node, 0, set(slices))
    for axis, (start, _, step) in slices.items():
        size = dims(node.output)[axis]
        if step == 1 and isinstance(size, int) and isinstance(have[axis], int) and isinstance(start, int):
            offset = _bound(start, have[axis])
            assert isinstance(offset, int)
            ties.append(Tie(size, (Member("in", 0, axis, offset=offset), plain("out", 0, axis))))
    return ties


# -- Gather and kin --------------------------------------------------------------------------------


def _gather_infer(node: Node) -> list[ValueType]:
    x, indices = node.inputs
    assert x is not None and indices is not None
    if x.tensor.dims is None or indices.tensor.dims is None:
        return [x.tensor.with_dims(None)]
    axis = axis_of(node, len(x.tensor.dims))
    return [
        x.tensor.with_dims(
            (*x.tensor.dims[:axis], *indices.tensor.dims, *x.tensor.dims[axis + 1 :])
        )
    ]


def _gather_contents(node: Node) -> list[np.ndarray | None]:
    held, where = contents_of(node.inputs[0]), contents_of(node.inputs[1])
    if held is None or where is None or not all(isinstance(i, int) for i in where.reshape(-1)):
        return [None]
    taken = np.take(held, where.astype(np.int64), axis=axis_of(node, held.ndim))
    return [np.asarray(taken, object)]


def _gather(x: Any, indices: Any, *, axis: int) -> Any:
    axis %= x.dim()
    flat = indices.reshape(-1).long()
    rows = x.index_select(axis, flat.where(flat >= 0, flat + x.shape[axis]))
    return rows.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_ties(node: Node) -> list[Tie]:
    have, where = dims(node.inputs[0]), dims(node.inputs[1])
    axis = axis_of(node, len(have))
    ties = [
        Tie(d, (plain("in", 0, i), plain("out", 0, i if i < axis else i + len(where) - 1)))
        for i, d in enumerate(have)
        if i != axis
    ]
    return ties + [
        Tie(d, (plain("in", 1, i), plain("out", 0, axis + i))) for i, d in enumerate(where)
    ]


def _gather_elements(x: Any, indices: Any, *, axis: int) -> Any:
    index = indices.long()
    return x.gather(axis, index.where(index >= 0, index + x.shape[axis]))


def _gather_nd(x: Any, indices: Any, *, batch_dims: int) -> Any:
    import torch

    if batch_dims:
        inner = [_gather_nd(a, i, batch_dims=batch_dims - 1) for a, i in zip(x, indices, strict=True)]
        return torch.stack(inner)
    return x[tuple(indices.long().unbind(-1))]


def _gather_nd_infer(node: Node) -> list[ValueType]:
    x, indices = node.inputs
    assert x is not None and indices is not None
    have, where, batch = x.tensor.dims, indices.tensor.dims, node.attrs["batch_dims"]
    if have is None or not where or not isinstance(where[-1], int) or not isinstance(batch, int):
        return onnx_schema.infer(node)
    return [x.tensor.with_dims((*where[:-1], *have[batch + where[-1] :]))]


def _scatter_nd(x: Any, indices: Any, updates: Any, *, reduction: str) -> Any:
    from tersor.errors import Unsupported

    if reduction not in ("none", "add"):
        raise Unsupported(f"ScatterND with reduction {reduction!r} has no torch evaluation")
    where = tuple(indices.long().unbind(-1))
    return x.index_put(where, updates, accumulate=reduction == "add")


def _scatter_elements(x: Any, indices: Any, updates: Any, *, axis: int, reduction: str) -> Any:
    index = indices.long()
    index = index.where(index >= 0, index + x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, updates)
    modes = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return x.scatter_reduce(axis, index, updates, modes[reduction], include_self=True)


def _trilu(x: Any, k: Any = None, *, upper: int) -> Any:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if upper else x.tril(diagonal)


def _pad(x: Any, pads: Any, value: Any = None, axes: Any = None, *, mode: str) -> Any:
    import torch

    from tersor.errors import Unsupported

    chosen = list(range(x.dim())) if axes is None else [int(a) % x.dim() for a in axes]
    before = {a: int(pads[i]) for i, a in enumerate(chosen)}
    after = {a: int(pads[i + len(chosen)]) for i, a in enumerate(chosen)}
    if mode != "constant":
        raise Unsupported(f"Pad with mode {mode!r} has no torch evaluation")
    flat = [n for a in reversed(range(x.dim())) for n in (before.get(a, 0), after.get(a, 0))]
    fill = 0 if value is None else value.item()
    return torch.nn.functional.pad(x, flat, value=fill)


def _pad_infer(node: Node) -> list[ValueType]:
    x, pads = node.inputs[0], known(node.inputs[1])
    assert x is not None
    axes = ints(node.input(3)) if node.input(3) is not None else None
    if x.tensor.dims is None or pads is None or (node.input(3) is not None and axes is None):
        return onnx_schema.infer(node)
    chosen = axes if axes is not None else list(range(len(x.tensor.dims)))
    out = list(x.tensor.dims)
    for i, axis in enumerate(chosen):
        have, before, after = out[axis], pads[i], pads[i + len(chosen)]
        out[axis] = None if None in (have, before, after) else have + before + after
    return [x.tensor.with_dims(tuple(out))]


def _one_hot(indices: Any, depth: Any, values: Any, *, axis: int) -> Any:
    import torch

    n = int(depth.reshape(-1)[0])
    wrapped = indices.long() % n if n else indices.long()
    inside = (indices >= -n) & (indices < n)
    hot = (torch.arange(n) == wrapped.unsqueeze(-1)) & inside.unsqueeze(-1)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


def _nonzero(x: Any) -> Any:
    return x.nonzero().T.contiguous()


def _samples(op: str) -> Any:
    def make(rng: np.random.Generator) -> list[Sample]:
        def f(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        def i(*items: Any) -> np.ndarray:
            return np.array(items, np.int64)

        def held(*operands: int) -> frozenset[int]:
            return frozenset(operands)

        table: dict[str, list[Sample]] = {
            "Transpose": [Sample([f(2, 3, 4)]), Sample([f(2, 3, 4)], {"perm": (1, 2, 0)})],
            "Concat": [Sample([f(2, 3), f(2, 1), f(2, 2)], {"axis": -1}), Sample([f(2), f(3)], {"axis": 0})],
            "Split": [
                Sample([f(2, 7), i(3, 4)], {"axis": 1}, held(1), outputs=2),
                Sample([f(7, 2)], {"axis": 0, "num_outputs": 3}, outputs=3),
            ],
            "Slice": [
                Sample([f(5, 6), i(1, -3), i(4, 2**62), i(0, 1)], constant=held(1, 2, 3)),
                Sample([f(5, 6), i(4), i(-(2**62)), i(0), i(-2)], constant=held(1, 2, 3, 4)),
                Sample([f(5, 6), i(0, 1), i(9, 3)], constant=held(1, 2)),
            ],
            "Gather": [
                Sample([f(5, 3), i([0, 4], [-1, 2])]),
                Sample([f(2, 5, 3), i(1, 3)], {"axis": -2}),
                Sample([i(4, 5, 6), np.array(1)]),
            ],
            "GatherElements": [Sample([f(3, 4), i([0, -1, 2, 1])], {"axis": 0})],
            "GatherND": [
                Sample([f(3, 4, 2), i([0, 1], [2, 3])]),
                Sample([f(2, 4, 3), i([1], [2])], {"batch_dims": 1}),
            ],
            "ScatterND": [Sample([f(4, 3), i([1], [3]), f(2, 3)]), Sample([f(4), i([1], [1]), f(2)], {"reduction": "add"})],
            "ScatterElements": [Sample([f(3, 4), i([0, 2, 1, -1]), f(1, 4)], {"axis": 0})],
            "Trilu": [Sample([f(2, 4, 4)]), Sample([f(3, 5), np.array(1)], {"upper": 0})],
            "Pad": [
                Sample([f(2, 3), i(0, 1, 2, 0)], constant=held(1)),
                Sample([f(2, 3), i(1, 1), np.array(2.5, np.float32), i(-1)], constant=held(1, 3)),
            ],
            "OneHot": [Sample([i(0, 2, -1, 7), np.array(3), np.array([0.0, 5.0], np.float32)], constant=held(1))],
            "NonZero": [Sample([np.array([[1, 0], [3, 4]], np.float32)])],
        }  # fmt: skip
        return table[op]

    return make


ROWS = [
    OpDef("Transpose", since=1, infer=_transpose_infer, contents=_transpose_contents,
          torch=_transpose, cost=copy_cost, ties=_transpose_ties, samples=_samples("Transpose")),
    OpDef("Concat", since=11, infer=_concat_infer, contents=_concat_contents, torch=_concat,
          cost=copy_cost, ties=_concat_ties, samples=_samples("Concat")),
    OpDef("Split", since=18, infer=_split_infer, contents=_split_contents, torch=_split,
          cost=copy_cost, ties=_split_ties, samples=_samples("Split")),
    OpDef("Slice", since=10, infer=_slice_infer, contents=_slice_contents, torch=_slice,
          cost=copy_cost, ties=_slice_ties, samples=_samples("Slice")),
    OpDef("Gather", since=11, infer=_gather_infer, contents=_gather_contents, torch=_gather,
          cost=copy_cost, ties=_gather_ties, samples=_samples("Gather"),
          quantizable=Quantizable(weight=0, axis=0, activation=None)),
    OpDef("GatherElements", since=11, torch=_gather_elements, cost=copy_cost,
          samples=_samples("GatherElements")),
    OpDef("GatherND", since=12, infer=_gather_nd_infer, torch=_gather_nd, cost=copy_cost,
          samples=_samples("GatherND")),
    OpDef("ScatterND", since=16, torch=_scatter_nd, cost=copy_cost, samples=_samples("ScatterND")),
    OpDef("ScatterElements", since=16, torch=_scatter_elements, cost=copy_cost,
          samples=_samples("ScatterElements")),
    OpDef("Trilu", since=14, torch=_trilu, cost=copy_cost, samples=_samples("Trilu")),
    OpDef("Pad", since=18, infer=_pad_infer, torch=_pad, cost=copy_cost, samples=_samples("Pad")),
    OpDef("OneHot", since=11, torch=_one_hot, cost=view_cost, samples=_samples("OneHot")),
    OpDef("NonZero", since=9, torch=_nonzero, cost=view_cost, samples=_samples("NonZero")),
]  # fmt: skip
