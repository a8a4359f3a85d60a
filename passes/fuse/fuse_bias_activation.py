"""Fuses an activation into the linear layer before it.

Gelu(Linear(x, W, b))  ->  Linear(x, W, b) {activation = "gelu"}
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.match import has_one_use, operand, producer_if
from tersor.ir import Graph, Node
from tersor.pipeline import ROUNDING, Pass, Rewrite, Skip


@dataclass(frozen=True)
class FuseBiasActivation(Pass):
    """No options."""

    keeps = ROUNDING  # The fused activation may be computed in another form.

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        activation = _activation(node)
        linear = producer_if(operand(node, 0), "tersor.Linear") if activation else None
        if linear is None or linear.attrs["activation"] != "none":
            return None
        if not has_one_use(linear.output):
            raise Skip("the linear layer has another user")
        attrs = {"activation": activation}
        name = node.output.name
        return graph.emit("tersor.Linear", linear.inputs, attrs, name=name, scope=linear.scope)  # type: ignore[arg-type]


def _activation(node: Node) -> str | None:
    if node.op == "Gelu":
        return "gelu_tanh" if node.attrs["approximate"] == "tanh" else "gelu"
    if node.op == "Swish":
        return "silu" if node.attrs["alpha"] == 1.0 else None
    return {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid"}.get(node.op)
