"""Linear layers in int8: weights per output channel, activations dynamically per tensor or per token.

    y = x W + b    becomes    q, s, z = DynamicQuantizeLinear(x);  y = DequantizeLinear(q, s, z) W' + b

with W' the same constant held as int8 (an ``Affine`` encoding), each weight rounded to the nearest step, or
with calibration so that weights make up for each other (:mod:`tersor.numerics.rounding`).  Where the target
adds up products in 16 bits, weights fit the smallest sums, and with calibration the largest that the backend
is faster for and the layer's output allows.  Per token, the quantizer is ``tersor.DynamicQuantizeRows``, and
``DequantizeLinear`` has one block a row.  A backend that has integer products computes ``(q - z) W'`` in
integers; everywhere else the graph means just what it says.
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

NOT_FINITE = "NaN in what an int8 layer reads comes out as finite numbers"
# One scale for a whole tensor is taken of all its rows: of one that holds infinity, none is left.
SPREADS = (
    "its inputs on calibration hold NaN or infinity, which one scale a tensor spreads to every row"
)
# Of calibration for each input. Two of MiniLM's layers of 1,536 inputs, rounded by 150, 400 and 1,513 rows,
# lose 0.69, 0.62 and 0.56 of what rounding to the nearest loses on sentences that were not seen.
LEAST_ROWS = 0.25
# So much larger may the error of a layer's output be with larger sums, which save a sixth of its time.
FASTER = 1.2
_LINEAR = "tersor.Linear"


@dataclass(frozen=True)
class QuantizeDynamic(LayerPass):
    """Options:

    min_elements: weights smaller than this stay in float: nothing is won there.
    max_error: with calibration, a layer whose output differs by more than this (relative, root mean
        square) stays in float.
    granularity: one activation scale a ``tensor``, as ONNX has it, or one a ``token`` (a row of the
        last axis): more faithful. ``auto``: per token where the backend has kernels for it.
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
        told = context.remember(
            f"told of {form.value}", lambda: _Told.of(graph, layers, saturates, form, context)
        )
        inputs = [reader.activation for reader in linear]
        quantized: set[Node] = set()
        errors: list[float] = []
        for i, layer in enumerate(layers):
            if context.spares(layer.name, layer.node):
                continue
            context.progress(i, len(layers), f"int8 {layer.label}")
            if form is ActivationForm.INT8 and any(
                told.left_out.get(reader.activation.name) for reader in layer.readers
            ):
                context.skip(layer.node, SPREADS)
                continue
            encoding = told.rounded.get(layer.name) or _nearest(layer.weight, saturates)
            found = [
                (told.errors[key], reader.node)
                for reader in layer.readers
                if (key := (layer.name, reader.activation.name)) in told.errors
            ]
            worst, node = max(found, key=lambda e: e[0], default=(0.0, layer.node))
            if worst > self.max_error:
                # Its other readers stay as well: in two forms it would be larger than in one.
                above = f"above max_error {self.max_error}"
                context.skip(node, above, error=float(worst), of="its output on calibration")
                continue
            errors += [error for error, _ in found]
            context.report.changed[layer.name] = (layer.label, worst if found else None)
            _encode(layer, encoding, context)
            quantized.update(layer.nodes)
            for _ in layer.nodes:
                context.rewrote()
        unseen = sum(x.name not in told.left_out for x in inputs)
        readers: dict[Value, list[Reader]] = {}
        for reader in weight_readers(graph):
            if reader.node in quantized:
                readers.setdefault(reader.activation, []).append(reader)
        for x, reading in readers.items():
            _quantize_activation(x, reading, form)
        if errors:
            mean, worst = float(np.mean(errors)), float(max(errors))
            context.remark(error=mean, worst=worst, of="a layer's output on calibration")
        if unseen and not context.calibration:
            context.remark("no calibration inputs: the layers' errors are unknown")
        elif unseen:
            context.remark(
                f"calibration shows none of the inputs of {unseen} layers: their errors are unknown"
            )
        for line in told.remarks:
            context.remark(line)
        if linear and context.report.rewrites:
            context.remark(NOT_FINITE)


def _nearest(weight: Value, saturates: bool) -> Affine:
    return quantize_weight(weight.numpy(), 1, pair_axis=0 if saturates else None)


@dataclass
class _Told:
    """What calibration tells of the layers of the outermost level; nothing without it. It outlives the pass
    (:meth:`Context.remember`), and so has no rows of what layers read.

    Attributes:
        left_out: of each input that was seen, by name, rows of NaN or infinity that ``errors`` leave out.
        errors: by (weight, input), of the layer's result.
        rounded: weights, by name, that it says how to round.
        few: (rows, inputs) of weights that there were too few rows for.
        faster: how many of ``rounded`` fit larger sums than they have to.
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
    ) -> _Told:  # fmt: skip
        told = _Told()
        if not context.calibration or context.evaluate is None:
            return told
        readers = [r for layer in layers for r in layer.readers if r.node.graph is graph]
        inputs = dict.fromkeys(reader.activation for reader in readers)
        fitted = _fitted(layers)
        xs = list(inputs)
        for start in range(0, len(xs), TAPS):  # So many second moments at a time.
            group = xs[start : start + TAPS]
            ranges, moments = {x: Activations() for x in group}, {x: SecondMoments() for x in group}
            wanted: dict[Rows, list[Observer[Any]]] = {}
            for x in group:
                wanted[Rows(x, padding=True)] = [ranges[x]]
                if x in fitted:
                    wanted[Rows(x)] = [moments[x]]
            observe(graph, wanted, context.calibration, context.evaluate)
            seen = {x: one.result for x, one in ranges.items() if one.result is not None}
            told.left_out |= {x.name: one.left_out for x, one in seen.items()}
            for i, (x, one) in enumerate(moments.items(), start):
                context.progress(i, len(xs), f"rounding what reads {x.name}")
                if one.result is not None:
                    faster = context.faster_sums if saturates else ()
                    told._round(seen.get(x), fitted[x], one.result, saturates, form, faster)
            told._judge(layers, seen, saturates, form)
        return told

    def _judge(
        self, layers: Sequence[WeightedLayer], seen: Mapping[Value, Activation], saturates: bool,
        form: ActivationForm,
    ) -> None:  # fmt: skip
        """Errors of layers that read what was ``seen``, in the form that each is to have."""
        for layer in layers:
            for x in dict.fromkeys(reader.activation for reader in layer.readers):
                if x in seen:
                    held = self.rounded.get(layer.name) or _nearest(layer.weight, saturates)
                    error = _layer_error(seen[x], layer.weight.numpy(), held, form)
                    self.errors[layer.name, x.name] = error

    def _round(
        self, seen: Activation | None, weights: list[Value], gram: Gram, saturates: bool,
        form: ActivationForm, faster: Sequence[Sums],
    ) -> None:  # fmt: skip
        """Weights of one input: all of them fit the same sums, for a backend may multiply them at once."""
        inputs = len(gram.xtx)
        if LEAST_ROWS * inputs > gram.rows:
            self.few += [(gram.rows, inputs)] * len(weights)
        elif seen is not None and np.isfinite(gram.xtx).all():
            exact = [w.numpy() for w in weights]
            held = [(w.numpy(), _nearest(w, saturates)) for w in weights]
            made = round_in_order(held, gram.xtx, TWO_OF_FOUR if saturates else None)
            errors = _errors(seen, exact, made, form)
            for sums in reversed(faster):
                steps = [(w, coarser(w, np.diagonal(gram.xtx), sums)) for w in exact]
                found = round_in_order(steps, gram.xtx, sums)
                if (_errors(seen, exact, found, form) <= FASTER * errors).all():
                    made, self.faster = found, self.faster + len(weights)
                    break
            self.rounded |= {w.name: e for w, e in zip(weights, made, strict=True)}

    @property
    def remarks(self) -> list[str]:
        if not self.rounded and not self.few:
            return []
        found = [
            f"weights of {len(self.rounded)} layers are rounded so that they make up for each other"
        ]
        if self.faster:
            found.append(
                f"{self.faster} of them in steps so coarse that more products are added at once"
            )
        if self.few:
            rows, inputs = max(self.few, key=lambda f: f[1] / max(f[0], 1))
            found.append(
                f"{len(self.few)} are rounded to the nearest: calibration has {rows:,} rows for {inputs:,} "
                "inputs"
            )
        return found


def _fitted(layers: Sequence[WeightedLayer]) -> dict[Value, list[Value]]:
    """Weights that are rounded by calibration, by what they read: those of the outermost level whose readers
    all read the same. What lookups or others read too is rounded to the nearest."""
    found: dict[Value, list[Value]] = {}
    for layer in layers:
        sources = {reader.activation for reader in layer.readers}
        if len(sources) == 1 and not (layer.shared or layer.tied or layer.in_subgraph):
            found.setdefault(sources.pop(), []).append(layer.weight)
    return found


def _errors(
    seen: Activation, weights: list[np.ndarray], encodings: list[Affine], form: ActivationForm
) -> np.ndarray:
    pairs = zip(weights, encodings, strict=True)
    return np.array([_layer_error(seen, weight, held, form) for weight, held in pairs])


def _layer_error(
    seen: Activation, weight: np.ndarray, encoding: Affine, form: ActivationForm
) -> float:
    # In f64: products of the smallest numbers vanish in f32, and their errors with them.
    rows, held = seen.rows.astype(np.float64), encoding.decode().astype(np.float64)
    got = fake_quantize_dynamic(seen.rows, seen.range(form=form)).astype(np.float64)
    return relative_error(rows @ weight.astype(np.float64), got @ held)


def _encode(layer: WeightedLayer, encoding: Affine, context: Context) -> None:
    """The layer's weight becomes ``encoding``, in one copy for all its nodes where others read the
    constant too. What was pruned stays so: a symmetric scale holds zero exactly. A table that only
    lookups read, and that the weight is tied to, becomes the same integers."""
    weight = layer.weight
    held = layer.encoding.with_values(encoding)
    tables = [(v, axis_order(weight, v)) for v in tied_to(weight) if is_table(v)]
    if not layer.shared:
        weight.graph.set_encoding(weight, held)
    else:
        copy = weight.graph.constant(held, weight.name)
        for reader in layer.readers:
            assert reader.node.graph is not None
            reader.node.graph.set_input(reader.node, reader.form.operand, copy)
        weight = copy
    for table, perm in tables:
        retie(weight, table, perm)
        context.remark(f"held as @{weight.name}, its head", layer=f"@{table.name}")


def _quantize_activation(x: Value, readers: list[Reader], form: ActivationForm) -> None:
    """One quantizer for all ``readers``, which are in the order of execution."""
    op, attrs = "DynamicQuantizeLinear", {}
    if form is ActivationForm.INT8_ROWS:
        op = "tersor.DynamicQuantizeRows"
        (inner,) = readers[0].form.inputs
        attrs = {"axis": -1, "block_size": readers[0].weight.tensor.shape[inner]}
    first = insertion_point(x, [reader.node for reader in readers])
    graph = first.graph
    assert graph is not None
    with graph.at(first):
        # It belongs to the layers that read it, not to the If or Loop that they may be in.
        scope = readers[0].scope
        quantizer = graph.emit_node(op, [x], names=["", "", ""], scope=scope)
        held = graph.emit("DequantizeLinear", quantizer.outputs, attrs, scope=scope)
    for reader in readers:
        node, operand = reader.node, reader.form.activation
        assert node.graph is not None and operand is not None
        node.graph.set_input(node, operand, held)
