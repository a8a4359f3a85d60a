"""Replacing linear layers by two of lower rank.

act(x W + b)   ->   act((x A) B + (b + shift))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.layers import WeightedLayer
from tersor.ir import Graph, Node, Value
from tersor.pipeline.rewriting import Context, replace_node


@dataclass(frozen=True)
class FactoredLayer:
    """How to factorize a layer, and for what gain and loss.

    Attributes:
        a, b: the factors.
        shift: to add to the bias; None: nothing.
        error: relative, ``of`` the layer's output or its weight.
        gain: the time or operations saved, for the report.
    """

    layer: WeightedLayer
    a: np.ndarray
    b: np.ndarray
    shift: np.ndarray | None
    error: float
    gain: str
    of: str = "weight"

    def apply(self, context: Context) -> None:
        """Replaces the layer's nodes, and reports rank, gain and error."""
        weight = self.layer.weight
        error = self.error if self.of == "output" else None
        context.report.changed[weight.name] = (self.layer.label, error)
        a, b = (weight.graph.constant(f, weight.name) for f in (self.a, self.b))
        for node in self.layer.nodes:
            graph, x = node.graph, node.inputs[0]
            assert graph is not None and x is not None
            with graph.at(node):
                bias = _shifted(graph, node.input(2), self.shift)
                result = emit_factored(graph, node, [x, a, b, bias], node.output.name)
            replace_node(node, [result])
        context.rewrote()
        context.remark(
            self.gain,
            layer=self.layer.label,
            method=rank_label(self.a.shape[1], self.layer),
            error=float(self.error),
            of=f"the {self.of}",
        )


def emit_factored(
    graph: Graph, node: Node, operands: Sequence[Value | None], name: str = ""
) -> Value:
    """activation((x A) B + bias) of the operands x, A, B and bias, with the activation of ``node``."""
    x, a, *rest = operands
    inner = graph.emit("tersor.Linear", [x, a])
    return graph.emit("tersor.Linear", [inner, *rest], node.attrs, name=name)


def rank_label(rank: int, layer: WeightedLayer) -> str:
    """For reports: ``rank 128 of 384x1536``."""
    return f"rank {rank} of {'x'.join(map(str, layer.weight.tensor.shape))}"


def _shifted(graph: Graph, bias: Value | None, shift: np.ndarray | None) -> Value | None:
    if shift is None:
        return bias
    if bias is None:
        return graph.constant(shift, "bias")
    return graph.constant(bias.numpy() + shift, bias.name)
