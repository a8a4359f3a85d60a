"""Half-precision linear layers in float32, as a CPU computes them anyway.

    y = x W + b   (f16)    becomes    y = f16(f32(x) W' + f32(b))

W' stores the same halves and is read as float32. The quantization passes then treat these layers like all
others: integer products are scaled in float32, and ONNX quantizes only float32 activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.insertion import insertion_point
from tersor.analysis.layers import Reader, WeightedLayer
from tersor.analysis.match import operand
from tersor.analysis.selection import LayerPass
from tersor.ir import Cast, DType, Graph, Node, Value
from tersor.ops.onnx_schema import TO_ONNX
from tersor.pipeline import ROUNDING, Context

_HALVES = (DType.F16, DType.BF16)


@dataclass(frozen=True)
class WidenLinear(LayerPass):
    """Options:

    min_elements: layers with smaller weights stay unchanged, as in ``quantize-dynamic``.
    """

    keeps = ROUNDING
    min_elements: int = 4096

    def wants(self, reader: Reader) -> bool:
        return reader.node.op == "tersor.Linear" and reader.weight.tensor.dtype in _HALVES

    def against(self, layer: WeightedLayer) -> str:
        return layer.encoded or layer.tied or layer.shared or layer.not_finite

    def run(self, graph: Graph, context: Context) -> None:
        if context.target is not None and context.target.kind != "cpu":
            context.remark(
                f"{context.target.kind} multiplies in half precision: linear layers are not widened"
            )
            return
        weights, widened = dict[Node, Value](), dict[Value, list[Node]]()
        layers = self.layers(graph, context)
        for layer in layers:
            wide = Cast(layer.encoding, DType.F32)
            weight = layer.weight.graph.constant(wide, layer.weight.name)
            for node in layer.nodes:
                weights[node] = weight
                widened.setdefault(operand(node, 0), []).append(node)
        order = {node: i for i, node in enumerate(graph.walk())}
        for readers in widened.values():
            readers.sort(key=order.__getitem__)
            _widen(readers, weights)
            for _ in readers:
                context.rewrote()
        for half in list(graph.constants.values()):
            if not half.uses and half.tensor.dtype in _HALVES:
                graph.erase_constant(half)


def _widen(readers: Sequence[Node], weights: Mapping[Node, Value]) -> None:
    """Widens all layers that read one value; ``readers`` are in execution order."""
    x, to_wide = operand(readers[0], 0), {"to": TO_ONNX[DType.F32]}
    place = insertion_point(x, readers)
    assert place.graph is not None
    with place.graph.at(place):
        wide = place.graph.emit("Cast", [x], to_wide, scope=readers[0].scope)
    for node in readers:
        graph, bias = node.graph, node.input(2)
        assert graph is not None
        with graph.at(node):
            if bias is not None:
                bias = _wide_bias(graph, bias)
            y = graph.emit("tersor.Linear", [wide, weights[node], bias], node.attrs)
            to_short = {"to": TO_ONNX[node.output.tensor.dtype]}
            graph.replace(node.output, graph.emit("Cast", [y], to_short))
        graph.erase(node)


def _wide_bias(graph: Graph, bias: Value) -> Value:
    """A constant stays a constant, so that kernels can add it."""
    if bias.is_constant:
        return graph.constant(bias.numpy().astype(np.float32), bias.name)
    return graph.emit("Cast", [bias], {"to": TO_ONNX[DType.F32]})
