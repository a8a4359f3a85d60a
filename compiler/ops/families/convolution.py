"""Conv, ConvInteger and ConvTranspose over [batch, channels, positions…].

With ``group`` g the channels are g independent blocks: weights are [out, in/g, kernel…] for Conv and
[in, out/g, kernel…] for ConvTranspose.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tersor.ir import Dim, DType, Node, TensorType, ValueType
from tersor.ir.dims import product
from tersor.ops import onnx_schema
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import refuse, tensor
from tersor.ops.families._ties import dims, plain
from tersor.ops.opdef import (
    Bias,
    Cost,
    Cut,
    Follow,
    Member,
    OpDef,
    Quantizer,
    Sample,
    Tie,
    Weight,
    with_traits,
)
from tersor.ops.window import Window, halves, is_too_small, torch_pads, window


def _group(node: Node) -> int:
    group = node.attrs["group"]
    assert isinstance(group, int)
    return group


def _kernel(node: Node) -> list[int] | None:
    """Kernel sizes: the attribute, else the weight's; None if they are not numbers."""
    stated = node.attrs.get("kernel_shape")
    sizes = stated if isinstance(stated, tuple) and stated else dims(node.inputs[1])[2:]
    return [s for s in sizes if isinstance(s, int)] if all_ints(sizes) else None


def all_ints(sizes: Any) -> bool:
    return bool(sizes) and all(isinstance(s, int) for s in sizes)


def _functional(name: str, spatial: int) -> Any:
    import torch.nn.functional as F

    from tersor.errors import Unsupported

    if not 1 <= spatial <= 3:
        raise Unsupported(f"{name} over {spatial} axes has no torch evaluation")
    return getattr(F, f"{name}{spatial}d")


# -- Conv ------------------------------------------------------------------------------------------


def _conv_infer(node: Node) -> list[ValueType]:
    x, weight, kernel = tensor(node), tensor(node, 1), _kernel(node)
    if x.dims is None or weight.dims is None or kernel is None:
        return onnx_schema.infer(node)
    channels, inner = x.dims[1], weight.dims[1]
    if len(x.dims) != len(weight.dims) or len(x.dims) != len(kernel) + 2:
        refuse(node, f"{x} and weight {weight} differ in rank, or from kernel {kernel}")
    if isinstance(channels, int) and isinstance(inner, int) and channels != inner * _group(node):
        refuse(node, f"{x} does not have the {inner} x {_group(node)} channels of weight {weight}")
    sizes = window(kernel, node.attrs).sizes(x.dims[2:])
    if any(map(is_too_small, sizes)):
        refuse(node, f"no window of {kernel} fits {x}")
    return [x.with_dims((x.dims[0], weight.dims[0], *sizes))]


def _conv(x: Any, weight: Any, bias: Any = None, *, group: int, **attrs: Any) -> Any:
    import torch.nn.functional as F

    over = window(weight.shape[2:], attrs)
    x = F.pad(x, torch_pads(over.padding(x.shape[2:])))
    run = _functional("conv", len(over.kernel))
    return run(x, weight, bias, over.strides, 0, over.dilations, group)


def _conv_cost(node: Node) -> Cost:
    """Every result is a sum over its group's channels and the kernel."""
    return Cost(product([*dims(node.output), *dims(node.inputs[1])[1:]]))


def _conv_ties(node: Node) -> list[Tie]:
    """The input channels of each group, which are summed over; its output channels; and whole groups, if
    there are several."""
    x, weight, group = dims(node.inputs[0]), dims(node.inputs[1]), _group(node)
    if not x or not weight or not isinstance(weight[0], int) or not isinstance(weight[1], int):
        return []
    outs, ins = weight[0] // group, weight[1]
    bias = [Member("in", 2, 0, outer=group)] if node.input(2) is not None else []
    ties = [
        Tie(x[0], (plain("in", 0, 0), plain("out", 0, 0))),
        Tie(ins, (Member("in", 0, 1, outer=group), plain("in", 1, 1)), "sum"),
        Tie(outs, (Member("in", 1, 0, outer=group), *bias, Member("out", 0, 1, outer=group))),
    ]
    if group > 1:
        whole = [Member("in", 1, 0, inner=outs), Member("out", 0, 1, inner=outs)]
        whole += [Member("in", 2, 0, inner=outs)] if bias else []
        ties.append(Tie(group, (Member("in", 0, 1, inner=ins), *whole)))
    return ties


def _conv_follow(node: Node, cut: Cut) -> Follow:
    """A group is removed with all of its input channels."""
    group, channels = _group(node), dims(node.inputs[0])[1]
    gone = set(cut.get(("in", 0, 1), ()))
    if group == 1 or not gone or not isinstance(channels, int):
        return Follow()
    each = channels // group
    left = [g for g in range(group) if not set(range(g * each, (g + 1) * each)) <= gone]
    return Follow({"group": len(left)})


def _conv_weights(node: Node) -> list[Weight]:
    """W[out, in / group, *kernel], input channels the fastest. Without a window for several groups, which
    see different channels."""
    x, kernel = dims(node.inputs[0]), dims(node.inputs[1])[2:]
    inputs = (*range(2, len(kernel) + 2), 1)
    if _group(node) == 1 and all_ints(kernel) and x:  # Attributes are checked against a known rank.
        return [Weight(1, inputs, activation=0, window=window(kernel, node.attrs), bias=Bias(2))]
    return [Weight(1, inputs)] if kernel else []


def _conv_quantizers(node: Node) -> list[Quantizer]:
    """x[batch, in, *positions]: a kernel of one position sums channels alone, and a channel that is a group
    of its own is not summed. A ConvTranspose's kernel has its inputs first."""
    shape = dims(node.inputs[1])
    if len(shape) < 3:
        return []
    alone = shape[1] == 1 if node.op == "Conv" else shape[0] == _group(node)
    kernel = [axis for axis, size in enumerate(shape) if axis > 1 and size != 1]
    return [Quantizer(0, tuple(kernel if alone else [1, *kernel]))]


# -- ConvTranspose ---------------------------------------------------------------------------------


def _full(over: Window, have: Any, more: Any) -> list[Dim]:
    """Output sizes before cropping."""
    return [
        None if size is None else (size - 1) * stride + span + extra
        for size, stride, span, extra in zip(have, over.strides, over.span, more, strict=True)
    ]


def _transposed_sizes(over: Window, have: Any, attrs: Any) -> list[Dim]:
    stated = attrs.get("output_shape")
    if stated:
        return list(stated)
    if over.auto_pad.startswith("SAME"):
        return [None if h is None else h * s for h, s in zip(have, over.strides, strict=True)]
    full = _full(over, have, _output_padding(over, attrs))
    pads = over.padding([0] * len(full))
    return [None if f is None else f - sum(p) for f, p in zip(full, pads, strict=True)]


def _output_padding(over: Window, attrs: Any) -> tuple[int, ...]:
    return tuple(attrs.get("output_padding") or (0,) * len(over.kernel))


def _transpose_infer(node: Node) -> list[ValueType]:
    x, weight, kernel = tensor(node), tensor(node, 1), _kernel(node)
    if x.dims is None or weight.dims is None or kernel is None:
        return onnx_schema.infer(node)
    if len(x.dims) != len(weight.dims) or len(x.dims) != len(kernel) + 2:
        refuse(node, f"{x} and weight {weight} differ in rank, or from kernel {kernel}")
    sizes = _transposed_sizes(window(kernel, node.attrs), x.dims[2:], node.attrs)
    channels = None if weight.dims[1] is None else weight.dims[1] * _group(node)
    return [x.with_dims((x.dims[0], channels, *sizes))]


def _conv_transpose(x: Any, weight: Any, bias: Any = None, *, group: int, **attrs: Any) -> Any:
    import torch.nn.functional as F

    over = window(weight.shape[2:], attrs)
    run = _functional("conv_transpose", len(over.kernel))
    y = run(x, weight, None, over.strides, 0, 0, group, over.dilations)
    more = _output_padding(over, attrs)
    wanted = _transposed_sizes(over, x.shape[2:], attrs)
    pads = over.padding([0] * len(more))
    if attrs.get("output_shape") or over.auto_pad.startswith("SAME"):
        surplus = [int(f) - int(w) for f, w in zip(_full(over, x.shape[2:], more), wanted, strict=True)]  # type: ignore[arg-type]  # fmt: skip
        pads = [halves(s, over.auto_pad) for s in surplus]
    # output_padding adds positions at the end that contain only the bias.
    crop = [(-before, extra - after) for (before, after), extra in zip(pads, more, strict=True)]
    y = F.pad(y, torch_pads(crop))
    return y if bias is None else y + bias.reshape(1, -1, *[1] * len(more))


def _transpose_cost(node: Node) -> Cost:
    """Every input element is multiplied for its group's output channels and the kernel."""
    return Cost(product([*dims(node.inputs[0]), *dims(node.inputs[1])[1:]]))


def _transpose_ties(node: Node) -> list[Tie]:
    x, weight, group = dims(node.inputs[0]), dims(node.inputs[1]), _group(node)
    if not x or not weight or not isinstance(weight[0], int) or not isinstance(weight[1], int):
        return []
    ins, outs = weight[0] // group, weight[1]
    bias = [Member("in", 2, 0, outer=group)] if node.input(2) is not None else []
    lanes = (Member("in", 0, 1, outer=group), Member("in", 1, 0, outer=group))
    ties = [
        Tie(x[0], (plain("in", 0, 0), plain("out", 0, 0))),
        Tie(ins, lanes, "sum"),
        Tie(outs, (plain("in", 1, 1), *bias, Member("out", 0, 1, outer=group))),
    ]
    if group > 1:
        whole = [Member("in", 0, 1, inner=ins), Member("in", 1, 0, inner=ins)]
        whole += [Member("in", 2, 0, inner=outs)] if bias else []
        ties.append(Tie(group, (*whole, Member("out", 0, 1, inner=outs))))
    return ties


def _transpose_weights(node: Node) -> list[Weight]:
    """W[in, out / group, *kernel]"""
    rank = len(dims(node.inputs[1]))
    return [Weight(1, (*range(2, rank), 0))] if rank > 2 else []


# -- ConvInteger -----------------------------------------------------------------------------------


def _integer_infer(node: Node) -> list[ValueType]:
    (type,) = _conv_infer(node)
    return [replace(type, dtype=DType.I32)] if isinstance(type, TensorType) else [type]


def _conv_integer(x: Any, weight: Any, x_zero: Any = None, w_zero: Any = None, **attrs: Any) -> Any:
    """In double precision, which is exact for sums of 32 bits. ``w_zero`` may be per output channel."""
    import torch

    x, weight = x.to(torch.float64), weight.to(torch.float64)
    if x_zero is not None:
        x = x - x_zero.to(torch.float64).reshape(())
    if w_zero is not None:
        weight = weight - w_zero.to(torch.float64).reshape(-1, *[1] * (weight.dim() - 1))
    return _conv(x, weight, **attrs).to(torch.int32)


def _integer_samples(rng: np.random.Generator) -> list[Sample]:
    def case(x: tuple[int, ...], w: tuple[int, ...], *zeros: int, **attrs: Any) -> Sample:
        operands = [rng.integers(0, 256, s).astype(np.uint8) for s in (x, w)]
        operands += [np.array(z, np.uint8) for z in zeros]
        return Sample(operands, attrs, frozenset({1, 2, 3}))

    return [
        case((2, 3, 9), (4, 3, 3), 7, pads=(1, 1)),
        case((2, 2, 7, 8), (3, 2, 3, 4), 120, 3, strides=(2, 3), auto_pad="SAME_UPPER"),
        case((2, 4, 7, 8), (6, 2, 3, 2), group=2, kernel_shape=(3, 2)),
    ]


# -- samples and rows ------------------------------------------------------------------------------


_HELD = frozenset({1, 2})


def _conv_samples(rng: np.random.Generator) -> list[Sample]:
    def case(*shapes: tuple[int, ...], **attrs: Any) -> Sample:
        return Sample([floats(rng, *s) for s in shapes], attrs, _HELD)

    same = {"strides": (2, 3), "auto_pad": "SAME_UPPER"}
    return [
        case((2, 3, 9), (4, 3, 3), (4,), pads=(1, 1)),  # text: [batch, embedding, length]
        case((2, 3, 9), (4, 3, 2), strides=(2,), dilations=(3,), pads=(2, 0)),
        case((2, 4, 7, 8), (6, 2, 3, 2), (6,), group=2, kernel_shape=(3, 2)),
        case((1, 4, 5, 6), (8, 1, 3, 3), (8,), group=4, pads=(1, 1, 1, 1)),  # depthwise, doubled
        case((2, 2, 7, 8), (3, 2, 3, 4), **same),
        case((2, 2, 7, 8), (3, 2, 3, 4), strides=(2, 3), auto_pad="SAME_LOWER"),
        case((2, 2, 7, 8), (3, 2, 3, 4), auto_pad="VALID"),
        case((1, 2, 4, 5, 6), (3, 2, 2, 2, 2), (3,)),
    ]


def _transpose_samples(rng: np.random.Generator) -> list[Sample]:
    def case(*shapes: tuple[int, ...], **attrs: Any) -> Sample:
        return Sample([floats(rng, *s) for s in shapes], attrs, _HELD)

    return [
        case((2, 3, 5), (3, 4, 3), (4,)),
        case((2, 3, 5), (3, 4, 3), (4,), strides=(2,), pads=(1, 0), output_padding=(1,)),
        case((2, 4, 4, 5), (4, 3, 3, 2), (6,), group=2, strides=(2, 1), dilations=(1, 2)),
        case((1, 2, 4, 5), (2, 3, 3, 3), strides=(2, 3), auto_pad="SAME_UPPER"),
        case((1, 2, 4, 5), (2, 3, 3, 3), strides=(2, 2), output_shape=(8, 10)),
        case((1, 3, 4, 4), (3, 1, 3, 3), (3,), group=3),
    ]


ROWS = with_traits("product", [
    OpDef("Conv", since=11, infer=_conv_infer, torch=_conv, cost=_conv_cost, ties=_conv_ties,
          follow=_conv_follow, weights=_conv_weights, quantizers=_conv_quantizers,
          samples=_conv_samples),
    OpDef("ConvTranspose", since=11, infer=_transpose_infer, torch=_conv_transpose,
          cost=_transpose_cost, ties=_transpose_ties, follow=_conv_follow,
          weights=_transpose_weights, quantizers=_conv_quantizers, samples=_transpose_samples),
    OpDef("ConvInteger", since=10, infer=_integer_infer, torch=_conv_integer, cost=_conv_cost,
          samples=_integer_samples),
])  # fmt: skip
