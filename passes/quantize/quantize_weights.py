"""Weights in int8 that layers read as floats: a quarter of the file, at the speed of floats.

    w[o, i] ~ scale[o] * q[o, i],   scale[o] = max|w[o, :]| / 127       one scale an output

For what has no integer form (convolutions, recurrent layers, linear layers that would lose too much by
quantized activations): runtimes make floats of such a weight when they load the model.  What makes the
outputs of a layer is told by the op table's ``Weight``: a Conv's filters, an LSTM's rows of W and R, of
each gate and direction; a linear layer's columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.layers import Reader, WeightedLayer
from tersor.analysis.selection import LayerPass
from tersor.ir import Graph
from tersor.numerics.affine import quantize_outputs, relative_error
from tersor.numerics.masks import stores_floats
from tersor.pipeline import LOSSY, Context, Skip


@dataclass(frozen=True)
class QuantizeWeights(LayerPass):
    """Options:

    min_elements: weights smaller than this stay: little is won there.
    max_error: a weight that would lose more (relative, root mean square) stays in float.
    """

    keeps = LOSSY
    min_elements: int = 1024
    max_error: float = 0.05

    def wants(self, reader: Reader) -> bool:
        return super().wants(reader) and stores_floats(reader.weight)

    def against(self, layer: WeightedLayer) -> str:
        return layer.empty or layer.narrow or layer.tied or layer.shared or layer.not_finite

    def run(self, graph: Graph, context: Context) -> None:
        errors = []
        for layer in self.layers(graph, context):
            if context.spares(layer.name, layer.node):
                continue
            try:
                errors.append(self._quantize(layer))
            except Skip as reason:
                context.skip(layer.node, str(reason))
                continue
            context.rewrote()
            context.report.changed[layer.name] = (f"{layer.label} @{layer.name}", errors[-1])
        if errors:
            context.report.notes.append(
                f"{len(errors)} weights are held in int8 and read as floats; relative error: mean "
                f"{np.mean(errors):.4f}, worst {max(errors):.4f}"
            )

    def _quantize(self, layer: WeightedLayer) -> float:
        """The relative error of the weight.

        Raises:
            Skip: it stays in float.
        """
        held, dense = layer.encoding, layer.weight.numpy()
        encoding = held.with_values(quantize_outputs(dense, layer.form.inputs))
        if encoding.nbytes > 0.9 * held.nbytes:
            raise Skip(f"@{layer.name} would be no smaller: a scale for a few weights")
        error = relative_error(dense, encoding.decode())
        if error > self.max_error:
            raise Skip(f"error {error:.3f} is above max_error {self.max_error}")
        layer.weight.graph.set_encoding(layer.weight, encoding)
        return error
