"""Normalization with its residual for ONNX Runtime: one fused kernel, or Add and the norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tersor.backends.ort.lowering import Lowering
from tersor.backends.ort.options import LowerOptions
from tersor.ir import Attribute, Graph, Node, Value


def lower_add_layer_norm(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value]:
    """s = x + skip; LayerNormalization(s), s."""
    x, skip, scale, bias = node.inputs[0], node.inputs[1], node.inputs[2], node.input(3)
    assert x is not None and skip is not None
    if _fusable(node, lowering.options):
        attrs = {"epsilon": node.attrs["epsilon"]}
        return _skip_norm(graph, node, "SkipLayerNormalization", [x, skip, scale, bias], attrs)
    total = graph.emit("Add", [x, skip])
    attrs = {"axis": node.attrs["axis"], "epsilon": node.attrs["epsilon"]}
    return [graph.emit("LayerNormalization", [total, scale, bias], attrs), total]


def lower_add_rms_norm(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value]:
    """s = x + skip; RMSNormalization(s), s."""
    x, skip, scale = node.inputs[:3]
    assert x is not None and skip is not None and scale is not None
    if _fusable(node, lowering.options):
        attrs = {"epsilon": node.attrs["epsilon"]}
        operands = [x, skip, scale]
        return _skip_norm(graph, node, "SkipSimplifiedLayerNormalization", operands, attrs)
    total = graph.emit("Add", [x, skip])
    attrs = {"axis": node.attrs["axis"], "epsilon": node.attrs["epsilon"]}
    return [graph.emit("RMSNormalization", [total, scale], attrs), total]


def lower_rms_norm(graph: Graph, node: Node, lowering: Lowering) -> Sequence[Value] | None:
    """Keeps the op: ONNX Runtime has a kernel for it."""
    return None


def _fusable(node: Node, options: LowerOptions) -> bool:
    """The fused kernels normalize the last axis of operands of equal shape."""
    x, skip = node.inputs[0], node.inputs[1]
    assert x is not None and skip is not None
    rank = x.tensor.rank
    last = node.attrs["axis"] in (-1, None if rank is None else rank - 1)
    return (
        options.skip_norm == "fused"
        and not options.portable
        and last
        and rank in (2, 3)
        and x.tensor.dims == skip.tensor.dims
    )


def _skip_norm(
    graph: Graph,
    node: Node,
    op: str,
    operands: Sequence[Value | None],
    attrs: Mapping[str, Attribute],
) -> Sequence[Value]:
    """Outputs of the kernel: y, mean, inverse deviation, sum; the middle two are not used."""
    type = node.output.type
    if len(node.outputs) < 2 or not node.outputs[1].uses:
        y = graph.emit_node(f"com.microsoft.{op}", operands, attrs, types=[type]).output
        return [y, y]
    fused = graph.emit_node(
        f"com.microsoft.{op}", operands, attrs, names=[""] * 4, types=[type] * 4
    )
    return [fused.outputs[0], fused.outputs[3]]
