"""Pooling over the positions of [batch, channels, positions…]: by sliding windows, or global."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tersor.ir import DType, Node, TensorType, ValueType
from tersor.ir.dims import product
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import refuse, tensor
from tersor.ops.families._ties import broadcast, dims
from tersor.ops.opdef import Cost, OpDef, Sample, Tie
from tersor.ops.window import Window, is_too_small, torch_pads, window


def _over(node: Node) -> Window:
    kernel = node.attrs["kernel_shape"]
    assert isinstance(kernel, tuple)
    return window(kernel, node.attrs)


def _infer(node: Node) -> list[ValueType]:
    """Pooled values, and MaxPool's indices."""
    x, over = tensor(node), _over(node)
    if x.dims is None:
        pooled = x
    else:
        if len(x.dims) != len(over.kernel) + 2:
            refuse(node, f"a window of {list(over.kernel)} does not fit the rank of {x}")
        sizes = over.sizes(x.dims[2:])
        if any(map(is_too_small, sizes)):
            refuse(node, f"no window of {list(over.kernel)} fits {x}")
        pooled = x.with_dims((*x.dims[:2], *sizes))
    types: list[ValueType] = [pooled, TensorType(DType.I64, pooled.dims)]
    return types[: len(node.outputs)]


def _cost(node: Node) -> Cost:
    """One operation per element of each window."""
    return Cost(0, product([*dims(node.output), *_over(node).kernel]))


def _outer_ties(node: Node) -> list[Tie]:
    """Batch and channels, unless there are indices, which count over the whole tensor."""
    rank = len(dims(node.output))
    if len(node.outputs) > 1:
        return []
    return broadcast(node, [0], skip=tuple(range(2, rank)))


def _global_infer(node: Node) -> list[ValueType]:
    x = tensor(node)
    return [x if x.dims is None else x.with_dims((*x.dims[:2], *[1] * (len(x.dims) - 2)))]


def _global_cost(node: Node) -> Cost:
    return Cost(0, tensor(node).numel)


# -- torch -----------------------------------------------------------------------------------------


def _padded(x: Any, over: Window, fill: float) -> Any:
    import torch.nn.functional as F

    return F.pad(x, torch_pads(over.padding(x.shape[2:])), value=fill)


def _windows(x: Any, over: Window, extra: Sequence[int], fill: float) -> Any:
    """[batch, channels, windows…, kernel elements] of a padded tensor, after appending ``extra`` positions
    of ``fill``."""
    import torch.nn.functional as F

    x = F.pad(x, torch_pads([(0, more) for more in extra]), value=fill)
    for axis, (span, stride) in enumerate(zip(over.span, over.strides, strict=True), start=2):
        x = x.unfold(axis, span, stride)
    for axis, dilation in enumerate(over.dilations, start=2 + len(over.kernel)):
        x = x[(slice(None),) * axis + (slice(None, None, dilation),)]
    return x.flatten(-len(over.kernel))


def _max_pool(x: Any, *, kernel_shape: Any, storage_order: int = 0, **attrs: Any) -> Any:
    import torch

    over = window(kernel_shape, attrs)
    low = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    extra = over.extra(x.shape[2:])
    values, at = _windows(_padded(x, over, low), over, extra, low).max(-1)
    order = [0, 1, *reversed(range(2, x.dim()))] if storage_order else list(range(x.dim()))
    places = torch.arange(x.numel()).reshape([x.shape[i] for i in order])
    places = places.permute([order.index(i) for i in range(x.dim())])
    where = _windows(_padded(places, over, -1), over, extra, -1)
    return values, where.gather(-1, at[..., None])[..., 0]


def _average_pool(x: Any, *, kernel_shape: Any, count_include_pad: int, **attrs: Any) -> Any:
    """Positions reached only because of ``ceil_mode`` are not counted."""
    over = window(kernel_shape, attrs)
    extra = over.extra(x.shape[2:])
    sums = _windows(_padded(x, over, 0), over, extra, 0).sum(-1)
    ones = _padded(x.new_ones((1, 1, *x.shape[2:])), over, int(bool(count_include_pad)))
    return sums / _windows(ones, over, extra, 0).sum(-1)


def _lp_pool(x: Any, *, kernel_shape: Any, p: int, **attrs: Any) -> Any:
    over = window(kernel_shape, attrs)
    powers = _padded(x.abs().pow(p), over, 0)
    return _windows(powers, over, over.extra(x.shape[2:]), 0).sum(-1).pow(1 / p)


def _globally(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch evaluation by ``function(x, axes, **attrs)``, which keeps the axes as 1."""
    return lambda x, **attrs: function(x, tuple(range(2, x.dim())), **attrs)


# -- samples and rows ------------------------------------------------------------------------------


def _window_samples(*more: dict[str, Any]) -> Callable[[np.random.Generator], list[Sample]]:
    """Windows for every pooling op, and ``more`` for one of them."""
    cases: list[dict[str, Any]] = [
        {"kernel_shape": (3,)},
        {"kernel_shape": (2,), "strides": (2,), "pads": (1, 0)},
        {"kernel_shape": (2,), "strides": (3,), "ceil_mode": 1},
        {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 0, 2, 1)},
        {"kernel_shape": (2, 3), "strides": (2, 2), "pads": (1, 1, 0, 1), "ceil_mode": 1},
        {"kernel_shape": (3, 2), "strides": (2, 3), "auto_pad": "SAME_UPPER"},
        {"kernel_shape": (3, 2), "strides": (2, 3), "auto_pad": "SAME_LOWER"},
        {"kernel_shape": (3, 2), "auto_pad": "VALID", "dilations": (2, 1)},
        *more,
    ]

    def samples(rng: np.random.Generator) -> list[Sample]:
        shapes = [(2, 3, 8), (2, 3, 7, 8)]
        return [Sample([floats(rng, *shapes[len(c["kernel_shape"]) - 1])], c) for c in cases]

    return samples


def _max_samples(rng: np.random.Generator) -> list[Sample]:
    x = floats(rng, 2, 3, 7, 8)
    two: dict[str, Any] = {"kernel_shape": (2, 3), "strides": (2, 2), "pads": (1, 1, 0, 1)}
    return [
        *_window_samples()(rng),
        Sample([x], two, outputs=2),
        Sample([x], {**two, "storage_order": 1}, outputs=2),
        Sample([rng.integers(-9, 9, (1, 2, 6)).astype(np.int8)], {"kernel_shape": (3,), "pads": (1, 1)}),
    ]  # fmt: skip


def _global(op: str, since: int, torch: Callable[..., Any], *attrs: dict[str, Any]) -> OpDef:
    def samples(rng: np.random.Generator) -> list[Sample]:
        return [
            Sample([floats(rng, *s)], a)
            for s in ((2, 3, 5), (2, 3, 4, 5))
            for a in (attrs or ({},))
        ]

    return OpDef(op, since=since, infer=_global_infer, torch=_globally(torch), cost=_global_cost,
                 ties=_outer_ties, samples=samples)  # fmt: skip


def _pool(op: str, since: int, torch: Callable[..., Any], samples: Any) -> OpDef:
    return OpDef(op, since=since, infer=_infer, torch=torch, cost=_cost, ties=_outer_ties,
                 samples=samples)  # fmt: skip


ROWS = [
    _pool("MaxPool", 12, _max_pool, _max_samples),
    _pool("AveragePool", 19, _average_pool, _window_samples(
        {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 0, 2, 1), "count_include_pad": 1})),
    _pool("LpPool", 18, _lp_pool, _window_samples({"kernel_shape": (2, 2), "p": 3})),
    _global("GlobalAveragePool", 1, lambda x, axes: x.mean(axes, keepdim=True)),
    _global("GlobalMaxPool", 1, lambda x, axes: x.amax(axes, keepdim=True)),
    _global("GlobalLpPool", 2, lambda x, axes, *, p: x.norm(p=p, dim=axes, keepdim=True), {}, {"p": 3}),
]  # fmt: skip
