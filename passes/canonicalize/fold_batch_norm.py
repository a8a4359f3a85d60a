"""Folds BatchNormalization into the convolution or linear layer that produces its input.

y = gamma * (xW + b - mean) / sqrt(var + eps) + beta  =  x(W s) + ((b - mean) s + beta),
s = gamma / sqrt(var + eps), along the output channels: axis 0 of a Conv's weight, 1 of a Linear's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import has_one_use, operand
from tersor.ir import Graph, Node
from tersor.pipeline import Keeps, Pass, Rewrite, Skip

_CHANNEL_AXIS = {"Conv": 0, "tersor.Linear": 1}


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """No options."""

    keeps = Keeps(values=1e-4)  # Weights are scaled before they are rounded to their dtype.

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op != "BatchNormalization":
            return None
        x = operand(node, 0)
        layer = x.producer
        if layer is None or layer.op not in _CHANNEL_AXIS:
            return None
        if node.attrs["training_mode"]:
            raise Skip("it is in training mode")
        if not has_one_use(x):
            raise Skip(f"the {layer.op} has another user")
        if layer.op == "tersor.Linear" and (
            layer.attrs["activation"] != "none" or x.tensor.rank != 2
        ):
            raise Skip("its channels are not the columns of the linear layer")
        parameters = [*node.inputs[1:5], layer.inputs[1], layer.input(2)]
        if any(v is not None and not v.is_constant for v in parameters):
            raise Skip("a parameter is not a constant")
        weight = operand(layer, 1).encoding
        assert weight is not None
        if weight.storage.is_float and weight.storage is not weight.type.dtype:
            raise Skip("the weight is stored in half precision, and folding would widen it")
        return _folded(graph, node, layer)


def _folded(graph: Graph, node: Node, layer: Node) -> Rewrite:
    gamma, beta, mean, var = (operand(node, i).numpy().astype(np.float64) for i in range(1, 5))
    weight, old_bias = operand(layer, 1), layer.input(2)
    # Folding would not preserve NaN and infinity, nor the NaN of a negative variance.
    deviation = var + float(node.attrs["epsilon"])  # type: ignore[arg-type]
    numbers = [gamma, beta, mean, var, weight.numpy()]
    numbers += [] if old_bias is None else [old_bias.numpy()]
    if not (deviation > 0).all() or not all(np.isfinite(n).all() for n in numbers):
        raise Skip("its parameters contain NaN, infinity or a negative variance")
    factor = gamma / np.sqrt(deviation)
    assert weight.encoding is not None
    with np.errstate(over="ignore"):
        scaled = weight.encoding.scaled(factor, _CHANNEL_AXIS[layer.op])
        shift = ((0.0 if old_bias is None else old_bias.numpy()) - mean) * factor + beta
        shifted = shift.astype(weight.tensor.dtype.numpy)
    if not np.isfinite(scaled.decode()).all() or not np.isfinite(shifted).all():
        raise Skip(f"the folded weights do not fit in {weight.tensor.dtype.value}")
    operands = [
        operand(layer, 0),
        graph.constant(scaled, weight.name),
        graph.constant(shifted, f"{weight.name}_bias"),
    ]
    return graph.emit(layer.op, operands, layer.attrs, name=node.output.name, scope=layer.scope)
