"""Embedding tables in int8 with one scale per row: a quarter of the size; lookups decode only their rows.

E[i, :] ~ scale[i] * Q[i, :],   scale[i] = max|E[i, :]| / 127
"""

from __future__ import annotations

from dataclasses import dataclass

from tersor.analysis.layers import Reader, WeightedLayer
from tersor.analysis.selection import TablePass
from tersor.ir import Graph
from tersor.numerics.affine import quantize_rows, relative_error
from tersor.pipeline import LOSSY, Context


@dataclass(frozen=True)
class QuantizeEmbedding(TablePass):
    """Options:

    min_elements: tables smaller than this stay in float.
    max_error: a table whose relative error (root mean square) is larger stays in float.
    """

    keeps = LOSSY
    min_elements: int = 4096
    max_error: float = 0.05

    def wants(self, reader: Reader) -> bool:
        return super().wants(reader) and reader.weight.stores_floats

    def against(self, layer: WeightedLayer) -> str:
        return super().against(layer)

    def run(self, graph: Graph, context: Context) -> None:
        for layer in self.layers(graph, context):
            if context.excludes(layer.name, layer.node):
                continue
            dense = layer.weight.numpy()
            encoding = quantize_rows(dense)
            error = relative_error(dense, encoding.decode())
            if error > self.max_error:
                above = f"above max_error {self.max_error}"
                context.skip(layer.node, above, error=float(error), of="the weight")
                continue
            layer.weight.graph.set_encoding(layer.weight, layer.encoding.with_values(encoding))
            context.rewrote()
            context.report.changed[layer.name] = (f"@{layer.name}", error)
            context.remark(layer=f"@{layer.name}", error=float(error))
