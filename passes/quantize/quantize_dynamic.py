"""Linear layers in int8: weights per output channel, activations dynamically per tensor or per token.

    y = x W + b    becomes    q, s, z = DynamicQuantizeLinear(x);  y = DequantizeLinear(q, s, z) W' + b

W' is the same constant stored as int8 (an ``Affine`` encoding). Each weight is rounded to nearest or, with
calibration, so that rounding errors compensate (GPTQ, :mod:`tersor.numerics.rounding`). Where the target
accumulates products in 16 bits, weights fit sums of the fewest products; with calibration they fit sums of as
many as the backend is faster for, if the layer's output allows it. Per token, the quantizer is
``tersor.DynamicQuantizeRows``, and ``DequantizeLinear`` has one block per row. A backend with integer kernels
computes ``(q - z) W'`` in integers; any other executes the ops as written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tersor.analysis.insertion import insertion_point
from tersor.analysis.layers import Reader, WeightedLayer, is_table, weight_readers
from tersor.analysis.selection import LayerPass
from tersor.ir import Affine, Graph, Node, TensorType, Value
from tersor.numerics.affine import (
    ActivationForm,
    Granularity,
    fake_quantize_dynamic,
    quantize_weight,
    relative_error,
)
from tersor.numerics.rounding import coarser, round_in_order
from tersor.numerics.sums import TWO_OF_FOUR, Sums
from tersor.pipeline import LOSSY, Context
from tersor.statistics.activations import Activation, Activations
from tersor.statistics.gram import Gram, SecondMoments
from tersor.statistics.observers import Observer
from tersor.statistics.observing import TAPS, Rows, observe
from tersor.structure.ties import axis_order, retie, tied_to
from tersor.transforms.quantizers import activation_form

NOT_FINITE = "NaN in the input of an int8 layer becomes finite numbers"
# A scale per tensor depends on all rows: infinity in one of them makes every row useless.
SPREADS = (
    "its inputs contain NaN or infinity on calibration data, and one scale per tensor spreads them"
)
# Calibration rows per input of a layer that GPTQ needs. Two of MiniLM's layers of 1,536 inputs, rounded with
# 150, 400 and 1,513 rows, have 0.69, 0.62 and 0.56 times the error of nearest rounding on other sentences.
LEAST_ROWS = 0.25
# The factor by which sums of more products, which save a sixth of a layer's time, may increase its error.
FASTER = 1.2
_LINEAR = "tersor.Linear"


@dataclass(frozen=True)
class QuantizeDynamic(LayerPass):
    """Options:

    min_elements: weights smaller than this stay in float: quantizing them saves nothing.
    max_error: with calibration, a layer whose output differs by more than this (relative, root mean
        square) stays in float.
    granularity: one activation scale per ``tensor``, as in ONNX, or per ``token`` (a row of the last
        axis), which is more accurate. ``auto``: per token where the backend has kernels for it.
    """

    keeps = LOSSY
    fits = True
    min_elements: int = 4096
    max_error: float = 0.1
    granularity: Granularity = "auto"

    def wants(self, reader: Reader) -> bool:
        return reader.node.op == _LINEAR and isinstance(reader.activation.type, TensorType)

    def against(self, layer: WeightedLayer) -> str:
        return layer.quantized or layer.narrow or layer.not_finite

    def run(self, graph: Graph, context: Context) -> None:
        layers = self.layers(graph, context)
        linear = [reader for layer in layers for reader in layer.readers]
        for reader in weight_readers(graph):
            if (op := reader.node.op) != _LINEAR and super().wants(reader):
                context.skip(reader, f"{op} has no integer form: it multiplies floats")
        form = activation_form(self.granularity, context)
        saturates = context.target is not None and context.target.saturates_int8
        calibrated = context.remember(
            f"calibrated for {form.value}",
            lambda: _Calibrated.of(graph, layers, saturates, form, context),
        )
        inputs = [reader.activation for reader in linear]
        quantized: set[Node] = set()
        errors: list[float] = []
        for i, layer in enumerate(layers):
            if context.excludes(layer.name, layer.node):
                continue
            context.progress(i, len(layers), f"int8 {layer.label}")
            if form is ActivationForm.INT8 and any(
                calibrated.left_out.get(reader.activation.name) for reader in layer.readers
            ):
                context.skip(layer.node, SPREADS)
                continue
            encoding = calibrated.rounded.get(layer.name) or _nearest(layer.weight, saturates)
            measured = [
                (calibrated.errors[key], reader.node)
                for reader in layer.readers
                if (key := (layer.name, reader.activation.name)) in calibrated.errors
            ]
            worst, node = max(measured, key=lambda e: e[0], default=(0.0, layer.node))
            if worst > self.max_error:
                # All readers stay in float: storing the weight in both forms would only add bytes.
                above = f"above max_error {self.max_error}"
                context.skip(node, above, error=float(worst), of="its output on calibration")
                continue
            errors += [error for error, _ in measured]
            context.report.changed[layer.name] = (layer.label, worst if measured else None)
            _encode(layer, encoding, context)
            quantized.update(layer.nodes)
            for _ in layer.nodes:
                context.rewrote()
        unseen = sum(x.name not in calibrated.left_out for x in inputs)
        readers: dict[Value, list[Reader]] = {}
        for reader in weight_readers(graph):
            if reader.node in quantized:
                readers.setdefault(reader.activation, []).append(reader)
        for x, of_x in readers.items():
            _quantize_activation(x, of_x, form)
        if errors:
            mean, worst = float(np.mean(errors)), float(max(errors))
            context.remark(error=mean, worst=worst, of="a layer's output on calibration")
        if unseen and not context.calibration:
            context.remark("no calibration inputs: the layers' errors are unknown")
        elif unseen:
            context.remark(f"no calibration rows reach {unseen} layers: their errors are unknown")
        for line in calibrated.remarks:
            context.remark(line)
        if linear and context.report.rewrites:
            context.remark(NOT_FINITE)


def _nearest(weight: Value, saturates: bool) -> Affine:
    return quantize_weight(weight.numpy(), 1, pair_axis=0 if saturates else None)


@dataclass
class _Calibrated:
    """Results of calibration for layers outside subgraphs; empty without calibration. They are cached after
    the pass (:meth:`Context.remember`), so they contain no activation rows.

    Attributes:
        left_out: by name of each observed input, the number of its rows with NaN or infinity, which
            ``errors`` leave out.
        errors: the relative error of a layer's output, by (weight, input).
        rounded: weights rounded by GPTQ, by name.
        few: (rows, inputs) of weights that there were too few calibration rows for.
        faster: how many of ``rounded`` fit sums of more products than required.
    """

    left_out: dict[str, int] = field(default_factory=dict)
    errors: dict[tuple[str, str], float] = field(default_factory=dict)
    rounded: dict[str, Affine] = field(default_factory=dict)
    few: list[tuple[int, int]] = field(default_factory=list)
    faster: int = 0

    @staticmethod
    def of(
        graph: Graph, layers: Sequence[WeightedLayer], saturates: bool, form: ActivationForm,
        context: Context,
    ) -> _Calibrated:  # fmt: skip
        calibrated = _Calibrated()
        if not context.calibration or context.evaluate is None:
            return calibrated
        readers = [r for layer in layers for r in layer.readers if r.node.graph is graph]
        inputs = dict.fromkeys(reader.activation for reader in readers)
        fitted = _fitted(layers)
        xs = list(inputs)
        for start in range(0, len(xs), TAPS):  # Bounds the memory of the second moments.
            group = xs[start : start + TAPS]
            ranges, moments = {x: Activations() for x in group}, {x: SecondMoments() for x in group}
            wanted: dict[Rows, list[Observer[Any]]] = {}
            for x in group:
                wanted[Rows(x, padding=True)] = [ranges[x]]
                if x in fitted:
                    wanted[Rows(x)] = [moments[x]]
            observe(graph, wanted, context.calibration, context.evaluate)
            seen = {x: one.result for x, one in ranges.items() if one.result is not None}
            calibrated.left_out |= {x.name: one.left_out for x, one in seen.items()}
            for i, (x, one) in enumerate(moments.items(), start):
                context.progress(i, len(xs), f"rounding weights that multiply {x.name}")
                if one.result is not None:
                    faster = context.faster_sums if saturates else ()
                    calibrated._round(seen.get(x), fitted[x], one.result, saturates, form, faster)
            calibrated._measure(layers, seen, saturates, form)
        return calibrated

    def _measure(
        self, layers: Sequence[WeightedLayer], seen: Mapping[Value, Activation], saturates: bool,
        form: ActivationForm,
    ) -> None:  # fmt: skip
        """Records the errors of layers with ``seen`` inputs, each with the encoding that it would get."""
        for layer in layers:
            for x in dict.fromkeys(reader.activation for reader in layer.readers):
                if x in seen:
                    encoding = self.rounded.get(layer.name) or _nearest(layer.weight, saturates)
                    error = _layer_error(seen[x], layer.weight.numpy(), encoding, form)
                    self.errors[layer.name, x.name] = error

    def _round(
        self, seen: Activation | None, weights: list[Value], gram: Gram, saturates: bool,
        form: ActivationForm, faster: Sequence[Sums],
    ) -> None:  # fmt: skip
        """Rounds all weights that multiply one input. They fit the same sums, because a backend may merge
        them into one product."""
        inputs = len(gram.xtx)
        if LEAST_ROWS * inputs > gram.rows:
            self.few += [(gram.rows, inputs)] * len(weights)
        elif seen is not None and np.isfinite(gram.xtx).all():
            exact = [w.numpy() for w in weights]
            nearest = [(w.numpy(), _nearest(w, saturates)) for w in weights]
            rounded = round_in_order(nearest, gram.xtx, TWO_OF_FOUR if saturates else None)
            errors = _errors(seen, exact, rounded, form)
            for sums in reversed(faster):
                steps = [(w, coarser(w, np.diagonal(gram.xtx), sums)) for w in exact]
                larger = round_in_order(steps, gram.xtx, sums)
                if (_errors(seen, exact, larger, form) <= FASTER * errors).all():
                    rounded, self.faster = larger, self.faster + len(weights)
                    break
            self.rounded |= {w.name: e for w, e in zip(weights, rounded, strict=True)}

    @property
    def remarks(self) -> list[str]:
        if not self.rounded and not self.few:
            return []
        lines = [
            f"weights of {len(self.rounded)} layers are rounded so that their errors compensate"
        ]
        if self.faster:
            lines.append(
                f"{self.faster} of them with coarser steps, so that sums of more products fit"
            )
        if self.few:
            rows, inputs = max(self.few, key=lambda f: f[1] / max(f[0], 1))
            lines.append(
                f"{len(self.few)} are rounded to nearest: calibration has {rows:,} rows for {inputs:,} inputs"
            )
        return lines


def _fitted(layers: Sequence[WeightedLayer]) -> dict[Value, list[Value]]:
    """Weights to round with calibration, by their activation: those outside subgraphs with one activation and
    no other use. Any other weight is rounded to nearest."""
    fitted: dict[Value, list[Value]] = {}
    for layer in layers:
        sources = {reader.activation for reader in layer.readers}
        if len(sources) == 1 and not (layer.shared or layer.tied or layer.in_subgraph):
            fitted.setdefault(sources.pop(), []).append(layer.weight)
    return fitted


def _errors(
    seen: Activation, weights: list[np.ndarray], encodings: list[Affine], form: ActivationForm
) -> np.ndarray:
    pairs = zip(weights, encodings, strict=True)
    return np.array([_layer_error(seen, weight, encoding, form) for weight, encoding in pairs])


def _layer_error(
    seen: Activation, weight: np.ndarray, encoding: Affine, form: ActivationForm
) -> float:
    # In f64: products of subnormal numbers underflow in f32, and their errors with them.
    rows, decoded = seen.rows.astype(np.float64), encoding.decode().astype(np.float64)
    quantized = fake_quantize_dynamic(seen.rows, seen.range(form=form)).astype(np.float64)
    return relative_error(rows @ weight.astype(np.float64), quantized @ decoded)


def _encode(layer: WeightedLayer, encoding: Affine, context: Context) -> None:
    """Encodes the layer's weight, in one copy for all its readers if the constant has other uses. Pruned
    weights stay zero, which symmetric scales represent exactly. An embedding table tied to the weight shares
    its integers."""
    weight = layer.weight
    encoded = layer.encoding.with_values(encoding)
    tables = [(v, axis_order(weight, v)) for v in tied_to(weight) if is_table(v)]
    if not layer.shared:
        weight.graph.set_encoding(weight, encoded)
    else:
        copy = weight.graph.constant(encoded, weight.name)
        for reader in layer.readers:
            assert reader.node.graph is not None
            reader.node.graph.set_input(reader.node, reader.form.operand, copy)
        weight = copy
    for table, perm in tables:
        retie(weight, table, perm)
        context.remark(f"stored as @{weight.name}, its head", layer=f"@{table.name}")


def _quantize_activation(x: Value, readers: list[Reader], form: ActivationForm) -> None:
    """Quantizes ``x`` once for all ``readers``, which are in execution order."""
    op, attrs = "DynamicQuantizeLinear", {}
    if form is ActivationForm.INT8_ROWS:
        op = "tersor.DynamicQuantizeRows"
        (inner,) = readers[0].form.inputs
        attrs = {"axis": -1, "block_size": readers[0].weight.tensor.shape[inner]}
    first = insertion_point(x, [reader.node for reader in readers])
    graph = first.graph
    assert graph is not None
    with graph.at(first):
        # The scope is that of the layers, not of the If or Loop that they may be in.
        scope = readers[0].scope
        quantizer = graph.emit_node(op, [x], names=["", "", ""], scope=scope)
        dequantized = graph.emit("DequantizeLinear", quantizer.outputs, attrs, scope=scope)
    for reader in readers:
        node, operand = reader.node, reader.form.activation
        assert node.graph is not None and operand is not None
        node.graph.set_input(node, operand, dequantized)
