"""Padding and rearranging: Pad, Trilu, DepthToSpace, SpaceToDepth, ReverseSequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.ir import Dim, Node, ValueType
from tersor.ir.dims import divide
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import (
    checked_axes,
    ints,
    is_negative,
    no_work,
    refuse,
    tensor,
    vector_or_unknown,
)
from tersor.ops.families._ties import dims, plain
from tersor.ops.opdef import Member, OpDef, Sample, Tie


def _same(node: Node) -> list[ValueType]:
    return [tensor(node)]


# -- Pad -------------------------------------------------------------------------------------------


def _pads(node: Node, rank: int) -> dict[int, tuple[Any, Any]] | None:
    """axis -> padding (before, after); None if the axes are unknown."""
    pads, axes = vector_or_unknown(node.inputs[1]), ints(node.input(3))
    if node.input(3) is None:
        axes = list(range(rank))
    if axes is None:
        return None
    if pads is None:
        pads = [None] * (2 * len(axes))
    if len(pads) != 2 * len(axes):
        refuse(node, f"pads {pads} do not fit axes {axes}")
    pairs = zip(pads[: len(axes)], pads[len(axes) :], strict=True)
    return dict(zip(checked_axes(node, axes, rank), pairs, strict=True))


def _pad_infer(node: Node) -> list[ValueType]:
    x = tensor(node)
    if x.dims is None:
        return [x]
    pads = _pads(node, len(x.dims))
    if pads is None:
        return [x.with_dims((None,) * len(x.dims))]
    out: list[Dim] = list(x.dims)
    for axis, (before, after) in pads.items():
        size = out[axis]
        out[axis] = None if None in (size, before, after) else size + before + after
        if is_negative(out[axis]):
            refuse(node, f"axis {axis} of {x} cannot lose {-before - after}")
    return [x.with_dims(tuple(out))]


def _pad_ties(node: Node) -> list[Tie]:
    """Axes without padding; with constant padding, the operand's range of the result."""
    have = dims(node.inputs[0])
    pads = _pads(node, len(have))
    if pads is None:
        return []
    ties = []
    for axis, size in enumerate(have):
        before, after = pads.get(axis, (0, 0))
        constant = node.attrs["mode"] == "constant" and isinstance(before, int) and before >= 0
        grows = constant and isinstance(after, int) and after >= 0
        if grows or before == after == 0:
            out = Member("out", 0, axis, offset=before)
            ties.append(Tie(size, (plain("in", 0, axis), out)))
    return ties


def _pad(x: Any, pads: Any, value: Any = None, axes: Any = None, *, mode: str) -> Any:
    """Negative pads are cut off first, then the border is filled."""
    chosen = range(x.dim()) if axes is None else [int(a) % x.dim() for a in axes]
    amounts = [int(p) for p in pads]
    for i, axis in enumerate(chosen):
        before, after = amounts[i], amounts[i + len(chosen)]
        first, last = max(-before, 0), x.shape[axis] - max(-after, 0)
        x = x.narrow(axis, first, last - first)
        border = (max(before, 0), max(after, 0))
        x = _fill(x, axis, border, value) if mode == "constant" else _reach(x, axis, border, mode)
    return x


def _fill(x: Any, axis: int, border: tuple[int, int], value: Any) -> Any:
    import torch

    number = 0 if value is None else value.item()

    def block(size: int) -> Any:
        return x.new_full((*x.shape[:axis], size, *x.shape[axis + 1 :]), number)

    return torch.cat([block(border[0]), x, block(border[1])], dim=axis)


def _reach(x: Any, axis: int, border: tuple[int, int], mode: str) -> Any:
    """reflect, edge, wrap: numpy's modes of the same names, on positions."""
    import torch

    if not any(border):
        return x
    places = np.pad(np.arange(x.shape[axis]), border, mode=mode)  # type: ignore[call-overload]
    return x.index_select(axis, torch.from_numpy(places))


# -- Trilu -----------------------------------------------------------------------------------------


def _trilu(x: Any, k: Any = None, *, upper: int) -> Any:
    diagonal = 0 if k is None else int(k.reshape(-1)[0])
    return x.triu(diagonal) if upper else x.tril(diagonal)


def _trilu_ties(node: Node) -> list[Tie]:
    """All axes but the matrices'."""
    lead = dims(node.inputs[0])[:-2]
    return [Tie(d, (plain("in", 0, i), plain("out", 0, i))) for i, d in enumerate(lead)]


# -- DepthToSpace, SpaceToDepth --------------------------------------------------------------------


def _block(node: Node) -> int:
    block = node.attrs["blocksize"]
    assert isinstance(block, int)
    if block < 1:
        refuse(node, f"blocksize {block} is not positive")
    return block


def _divided(node: Node, dim: Dim, by: int) -> Dim:
    exact = divide(dim, by) if dim is not None else None
    if exact is None and isinstance(dim, int):
        refuse(node, f"{dim} is not a multiple of {by}")
    return exact


def _scaled(dim: Dim, by: int) -> Dim:
    return None if dim is None else dim * by


def _image(node: Node) -> tuple[Dim, Dim, Dim, Dim]:
    have = tensor(node).dims or (None,) * 4
    if len(have) != 4:
        refuse(node, f"{tensor(node)} is not a batch of images")
    return have


def _depth_to_space_infer(node: Node) -> list[ValueType]:
    (n, c, h, w), block = _image(node), _block(node)
    depth = _divided(node, c, block * block)
    return [tensor(node).with_dims((n, depth, _scaled(h, block), _scaled(w, block)))]


def _space_to_depth_infer(node: Node) -> list[ValueType]:
    (n, c, h, w), block = _image(node), _block(node)
    small = (_divided(node, d, block) for d in (h, w))
    return [tensor(node).with_dims((n, _scaled(c, block * block), *small))]


def _depth_to_space(x: Any, *, blocksize: int, mode: str) -> Any:
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        y = x.reshape(n, b, b, depth, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, depth, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, depth, h * b, w * b)


def _space_to_depth(x: Any, *, blocksize: int, mode: str = "DCR") -> Any:
    n, c, h, w = x.shape
    b = blocksize
    y = x.reshape(n, c, h // b, b, w // b, b)
    y = y.permute(0, 3, 5, 1, 2, 4) if mode == "DCR" else y.permute(0, 1, 3, 5, 2, 4)
    return y.reshape(n, c * b * b, h // b, w // b)


def _depth_ties(node: Node) -> list[Tie]:
    """The batch, and channels: blocks of lanes (DCR) or lanes of blocks (CRD) in the deep tensor."""
    have, out, block = dims(node.inputs[0]), dims(node.output), _block(node)
    if len(have) != 4:
        return []
    deep, side = ("in", "out") if node.op == "DepthToSpace" else ("out", "in")
    channels = out[1] if deep == "in" else have[1]
    dcr = node.attrs.get("mode", "DCR") == "DCR"
    outer, inner = (block * block, 1) if dcr else (1, block * block)
    whole = Member("in" if deep == "in" else "out", 0, 1, outer=outer, inner=inner)
    batch = Tie(have[0], (plain("in", 0, 0), plain("out", 0, 0)))
    return [batch, Tie(channels, (whole, plain(side, 0, 1)))]


# -- ReverseSequence -------------------------------------------------------------------------------


def _reverse_sequence(x: Any, lengths: Any, *, batch_axis: int, time_axis: int) -> Any:
    import torch

    steps = torch.arange(x.shape[time_axis])[None, :]
    last = lengths.long()[:, None]
    index = torch.where(steps < last, last - 1 - steps, steps)
    index = index if batch_axis < time_axis else index.T
    shape = [n if i in (batch_axis, time_axis) else 1 for i, n in enumerate(x.shape)]
    return x.gather(time_axis, index.reshape(shape).expand(x.shape))


def _reverse_sequence_ties(node: Node) -> list[Tie]:
    have, batch = dims(node.inputs[0]), node.attrs["batch_axis"]
    assert isinstance(batch, int)
    ties = []
    for axis, size in enumerate(have):
        members = [plain("in", 0, axis), plain("out", 0, axis)]
        if axis == batch:
            members.append(plain("in", 1, 0))
        if axis != node.attrs["time_axis"]:
            ties.append(Tie(size, tuple(members)))
    return ties


# -- samples and rows ------------------------------------------------------------------------------


def _i(*items: int) -> np.ndarray:
    return np.array(items, np.int64)


def _pad_samples(rng: np.random.Generator) -> list[Sample]:
    x, constant = floats(rng, 3, 4), frozenset({1, 3})
    fill = np.array(2.5, np.float32)
    modes = ("constant", "reflect", "edge", "wrap")
    return [
        Sample([x, _i(0, 1, 2, 0)], {}, constant),
        Sample([x, _i(1, 1), fill, _i(-1)], {}, constant),
        Sample([x, _i(-1, 0, 2, -2), fill], {}, constant),
        Sample([np.arange(3), _i(2, 1), np.array(-7)], {}, constant),
        Sample([x > 0, _i(0, 1, 1, 0), np.array(True)], {}, constant),
        *(Sample([x, _i(2, 1, 1, 3)], {"mode": mode}, constant) for mode in modes),
    ]


def _trilu_samples(rng: np.random.Generator) -> list[Sample]:
    k = [np.array(n) for n in (1, -2, 9, -9)]
    return [
        Sample([floats(rng, 2, 4, 4)]),
        Sample([floats(rng, 3, 5)], {"upper": 0}),
        *(Sample([floats(rng, 3, 5), n], {"upper": u}, frozenset({1})) for n in k for u in (0, 1)),
        Sample([np.arange(9).reshape(3, 3)]),
        Sample([np.ones((3, 3), bool)], {"upper": 0}),
    ]


def _depth_samples(rng: np.random.Generator) -> list[Sample]:
    attrs: list[dict[str, Any]] = [
        {"blocksize": 2}, {"blocksize": 2, "mode": "CRD"}, {"blocksize": 1}
    ]  # fmt: skip
    return [Sample([floats(rng, 2, 8, 2, 3)], a) for a in attrs]


def _space_samples(rng: np.random.Generator) -> list[Sample]:
    return [Sample([floats(rng, 2, 3, 4, 6)], {"blocksize": b}) for b in (1, 2)]


def _reverse_samples(rng: np.random.Generator) -> list[Sample]:
    x = floats(rng, 4, 3, 2)
    return [
        Sample([x, _i(4, 1, 2)]),
        Sample([x, _i(3, 2, 1, 3)], {"batch_axis": 0, "time_axis": 1}),
        Sample([np.arange(8).reshape(4, 2), _i(2, 3)]),
    ]


ROWS = [
    OpDef("Pad", since=19, infer=_pad_infer, torch=_pad, cost=no_work, ties=_pad_ties,
          samples=_pad_samples),
    OpDef("Trilu", since=14, infer=_same, torch=_trilu, cost=no_work, ties=_trilu_ties,
          samples=_trilu_samples),
    OpDef("DepthToSpace", traits=frozenset({"movement"}),
          since=11, infer=_depth_to_space_infer, torch=_depth_to_space,
          cost=no_work, ties=_depth_ties, samples=_depth_samples),
    OpDef("SpaceToDepth", traits=frozenset({"movement"}),
          since=1, infer=_space_to_depth_infer, torch=_space_to_depth,
          cost=no_work, ties=_depth_ties, samples=_space_samples),
    OpDef("ReverseSequence", traits=frozenset({"movement"}),
          since=10, infer=_same, torch=_reverse_sequence, cost=no_work,
          ties=_reverse_sequence_ties, samples=_reverse_samples),
]  # fmt: skip
