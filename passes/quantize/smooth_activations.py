"""SmoothQuant: moves outliers from activations into weights (Xiao et al. 2022, arXiv 2211.10438).

    x W = (x / s) (s W),    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

x / s loses less with one scale per tensor or row, and s W can be stored in int8 per channel. alpha is
searched for each layer by the error of the quantized product on calibration rows; "no smoothing" is one of
the candidates. Layers that read the same x share s.

1/s is folded where it costs nothing: into the columns of the linear layer that computes x, also through the
values of an Attention. Otherwise a Mul is inserted, but only where it divides the error by ``min_gain``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tersor.analysis.layers import Reader, WeightedLayer, readings
from tersor.analysis.match import operand
from tersor.analysis.selection import LayerPass
from tersor.ir import Dense, Graph, Node, Value
from tersor.numerics.affine import (
    ActivationForm,
    Granularity,
    fake_quantize_dynamic,
    quantize_weight,
    relative_error,
)
from tersor.pipeline import LOSSY, Context
from tersor.statistics.activations import Activation, Activations
from tersor.statistics.observing import Rows, observe
from tersor.structure.ties import why_shared
from tersor.transforms.quantizers import activation_form

# Relative to the largest channel: one that is inactive on calibration inputs may be active later.
_FLOOR = 0.05


@dataclass(frozen=True)
class SmoothActivations(LayerPass):
    """Options:

    alphas: the exponents to try.
    min_gain: a Mul must divide a layer's error by at least this.
    granularity: that of ``quantize-dynamic``, which it prepares.
    """

    keeps = LOSSY
    alphas: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    min_gain: float = 1.25
    granularity: Granularity = "auto"

    def wants(self, reader: Reader) -> bool:
        return reader.node.op == "tersor.Linear"

    def against(self, layer: WeightedLayer) -> str:
        return layer.in_subgraph or layer.quantized or layer.narrow or layer.not_finite

    def run(self, graph: Graph, context: Context) -> None:
        layers = self.layers(graph, context)
        if not context.calibration or context.evaluate is None:
            context.remark("no calibration inputs: nothing was smoothed")
            return
        groups: dict[Value, list[Reader]] = {}
        for reader in (reader for layer in layers for reader in layer.readers):
            groups.setdefault(reader.activation, []).append(reader)
        observers = {x: Activations() for x in groups}
        wanted = {Rows(x, padding=True): [one] for x, one in observers.items()}
        observe(graph, wanted, context.calibration, context.evaluate)
        seen = {x: one.result for x, one in observers.items() if one.result is not None}
        saturates = context.target is not None and context.target.saturates_int8
        form = activation_form(self.granularity, context)
        for i, (x, readers) in enumerate(groups.items()):
            if x not in seen:
                context.skip(readers[0], "no calibration rows reach it")
                continue
            if not np.isfinite(seen[x].rows).all():
                context.skip(readers[0], "its inputs contain NaN or infinity on calibration data")
                continue
            context.progress(i, len(groups), f"smoothing {readers[0].scope or x.name}")
            if reason := next(filter(None, (why_shared(r.node, _weight(r)) for r in readers)), ""):
                context.skip(readers[0], f"{reason}, and would be stored twice")
                continue
            weights = np.concatenate([_weight(r).numpy() for r in readers], axis=1)
            exact = seen[x].rows @ weights
            error = partial(_error, seen[x], weights, exact, saturates, form)
            before, after, alpha, scale = self._search(seen[x], weights, error)
            errors: dict[str, Any] = {"before": float(before), "error": float(after)}
            if alpha is None:
                context.skip(readers[0], "no exponent lowers its error", error=float(before))
            elif _foldable_producer(x, readers) is None and before < after * self.min_gain:
                low = f"a Mul has to divide its error by {self.min_gain:g}"
                context.skip(readers[0], low, method=f"alpha {alpha:g}", **errors)
            else:
                _apply(graph, x, readers, scale)
                context.rewrote()
                where = readers[0].scope or readers[0].node.output.name
                context.remark(layer=where, method=f"alpha {alpha:g}", **errors)

    def _search(
        self, seen: Activation, weight: np.ndarray, error: Callable[[np.ndarray], float]
    ) -> tuple[float, float, float | None, np.ndarray]:
        """(Error without smoothing, error with the best scale, its exponent or None, the scale)"""
        best_alpha, best_scale = None, np.ones(weight.shape[0], np.float32)
        best_error = before = error(best_scale)
        for alpha in self.alphas:
            scale = smoothing_scale(seen.channel_amax, weight, alpha)
            smoothed = error(scale)
            if smoothed < best_error:
                best_error, best_alpha, best_scale = smoothed, alpha, scale
        return before, best_error, best_alpha, best_scale


def smoothing_scale(channel_amax: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
    """s, f32[k], of mean 1, for W[k, n] and x[n, k] whose largest magnitudes are ``channel_amax``."""
    activation = np.maximum(channel_amax, max(_FLOOR * float(channel_amax.max()), 1e-5))
    columns = np.maximum(np.abs(weight).max(axis=1), 1e-5)
    scale = activation**alpha / columns ** (1 - alpha)
    return np.asarray(scale / scale.mean(), np.float32)


def _error(
    seen: Activation, weight: np.ndarray, exact: np.ndarray, saturates: bool, form: ActivationForm,
    scale: np.ndarray,
) -> float:  # fmt: skip
    """Relative error of the quantized product under ``scale``."""
    encoding = quantize_weight(weight * scale[:, None], 1, pair_axis=0 if saturates else None)
    rows = fake_quantize_dynamic(seen.rows / scale, seen.range(scale, form=form))
    return relative_error(exact, rows @ encoding.decode())


def _weight(reader: Reader) -> Value:
    """The current weight: scales of later layers may have been folded into it."""
    return operand(reader.node, reader.form.operand)


def _apply(graph: Graph, x: Value, readers: Sequence[Reader], scale: np.ndarray) -> None:
    """Replaces the readers' weights by s W and their input by x / s."""
    for reader in readers:
        _set_weight(graph, reader, _weight(reader).numpy() * scale[:, None])
    producer = _foldable_producer(x, readers)
    if producer is not None:
        _set_weight(graph, producer, producer.weight.numpy() / scale)
        if (bias := producer.bias) is not None and producer.form.bias is not None:
            _set_constant(graph, producer.node, producer.form.bias.operand, bias.numpy() / scale)
        return
    nodes = [reader.node for reader in readers]
    first = next(n for n in graph.nodes if n in nodes)
    with graph.at(first):
        smoothed = graph.emit("Mul", [x, graph.constant(1 / scale, f"{x.name}_smoothing")])
    for reader in readers:
        assert reader.form.activation is not None
        graph.set_input(reader.node, reader.form.activation, smoothed)


def _foldable_producer(x: Value, readers: Sequence[Reader]) -> Reader | None:
    """The linear layer whose columns can take 1/s. It computes x, or the values of the attention that
    computes x (each channel of a head's output is a weighted mean of that channel of the values); x has no
    other reader, and the activation between, if any, commutes with positive scales."""
    producer = x.producer
    if producer is None or not set(x.users) <= {reader.node for reader in readers} or x.is_output:
        return None
    if producer.op == "Attention":
        values = producer.inputs[2]
        one_head_each = (
            producer.attrs.get("q_num_heads") == producer.attrs.get("kv_num_heads") is not None
        )
        if not one_head_each or values is None or values.only_user() is not producer:
            return None
        if values in (producer.inputs[0], producer.inputs[1]) or len(producer.outputs) > 1:
            return None
        producer = values.producer
        activations: tuple[str, ...] = ("none",)
    else:
        activations = ("none", "relu")
    if (
        producer is None
        or producer.op != "tersor.Linear"
        or producer.attrs["activation"] not in activations
    ):
        return None
    reader = next(readings(producer), None)
    if reader is None:
        return None
    constants = [reader.weight, *([reader.bias] if reader.bias is not None else [])]
    own = all(v.stores_floats for v in constants) and not why_shared(producer, reader.weight)
    return reader if own else None


def _set_weight(graph: Graph, reader: Reader, data: np.ndarray) -> None:
    _set_constant(graph, reader.node, reader.form.operand, data)


def _set_constant(graph: Graph, node: Node, operand: int, data: np.ndarray) -> None:
    """Replaces a constant operand, keeping its mask; the old constant is erased if it has no other use."""
    old = node.inputs[operand]
    assert old is not None and old.encoding is not None
    encoding = old.encoding.with_values(Dense(data.astype(old.tensor.dtype.numpy)))
    graph.set_input(node, operand, graph.constant(encoding, old.name))
    if not old.uses:
        old.graph.erase_constant(old)
