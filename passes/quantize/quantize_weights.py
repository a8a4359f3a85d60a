"""Weight-only int8: a quarter of the file, at the speed of floats.

    w[o, i] ~ scale[o] * q[o, i],   scale[o] = max|w[o, :]| / 127       one scale per output

For layers that do not compute in integers: convolutions, recurrent layers, and linear layers that quantized
activations would make too inaccurate. Runtimes decode such a weight when they load the model. The op table's
``Weight`` says which slices of a weight are its outputs: a Conv's filters, an LSTM's rows of W and R for each
gate and direction, a linear layer's columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tersor.analysis.layers import Reader, WeightedLayer, weight_readers
from tersor.analysis.selection import LayerPass
from tersor.ir import Encoding, Graph, Value
from tersor.numerics.affine import quantize_outputs, relative_error
from tersor.pipeline import LOSSY, Context
from tersor.statistics.layer_outputs import output_errors


@dataclass(frozen=True)
class QuantizeWeights(LayerPass):
    """Options:

    min_elements: weights smaller than this stay in float: quantizing them saves little.
    max_error: a weight stays in float if the output of a layer that reads it would differ by more than this
        (relative, root mean square) on calibration inputs or, if they reach no such layer, the weight itself.
    """

    keeps = LOSSY
    min_elements: int = 1024
    max_error: float = 0.1

    def wants(self, reader: Reader) -> bool:
        return super().wants(reader) and reader.weight.stores_floats

    def against(self, layer: WeightedLayer) -> str:
        return layer.empty or layer.tied or layer.shared or layer.not_finite

    def run(self, graph: Graph, context: Context) -> None:
        layers, forms = [], dict[Value, Encoding]()
        for layer in self.layers(graph, context):
            form = layer.encoding.with_values(
                quantize_outputs(layer.weight.numpy(), layer.form.inputs)
            )
            if form.nbytes > 0.9 * layer.encoding.nbytes:
                small = f"@{layer.name} would be no smaller: it has a scale for every few weights"
                context.skip(layer.node, small)
                continue
            layers.append(layer)
            forms[layer.weight] = form
        of_outputs = context.remember("errors", lambda: output_errors(graph, forms, context))
        outputs, weights = list[float](), list[float]()
        for layer in layers:
            if context.excludes(layer.name, layer.node):
                continue
            form = forms[layer.weight]
            error, errors, of = of_outputs.get(layer.name), outputs, "its output on calibration"
            if error is None:
                error, errors = relative_error(layer.weight.numpy(), form.decode()), weights
                of = "the weight"
            if error > self.max_error:
                above = f"above max_error {self.max_error}"
                context.skip(layer.node, above, error=float(error), of=of)
                continue
            layer.weight.graph.set_encoding(layer.weight, form)
            context.rewrote()
            errors.append(error)
            context.report.changed[layer.name] = (f"{layer.label} @{layer.name}", error)
        _report(outputs, weights, context)
        self._name_others(graph, context)

    def _name_others(self, graph: Graph, context: Context) -> None:
        """Skips large tables that no weighted layer reads (positions that a Slice takes), so that none stays
        in float without a reason."""
        readers = list(weight_readers(graph))
        layers, named = {reader.node for reader in readers}, {reader.weight for reader in readers}
        for node in graph.walk():
            for value in node.inputs if node not in layers else ():
                if value is None or value in named or not value.stores_floats:
                    continue
                named.add(value)
                sizes = [n for n in value.tensor.shape if n > 1]
                if len(sizes) > 1 and math.prod(sizes) >= self.min_elements:
                    context.skip(node, f"@{value.name} is no weight of a layer")


def _report(outputs: list[float], weights: list[float], context: Context) -> None:
    count = len(outputs) + len(weights)
    if count:
        context.remark(f"{count} weights are stored in int8 and decoded to floats")
    for what, errors in (
        ("a layer's output on calibration", outputs),
        ("a weight (its layer's output is unknown)", weights),
    ):
        if errors:
            context.remark(error=float(np.mean(errors)), worst=float(max(errors)), of=what)
