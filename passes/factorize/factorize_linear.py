"""Factorizes a linear layer into two of lower rank (see :mod:`tersor.numerics.lowrank`).

    x[., k] W[k, n] + b   ->   (x A[k, r]) B[r, n] + b'          r (k + n) weights instead of k n

384 x 1536 at rank 128: 245,760 instead of 589,824, 0.42 of the multiplications.  From rank 308 on the factors
are larger than the layer.  At which rank they become faster depends on the machine, so a layer is factorized
only if measurements say that it pays, or by operation counts where nothing can be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

import numpy as np

from tersor.analysis.layers import Reader, WeightedLayer
from tersor.analysis.match import operand
from tersor.analysis.selection import LayerPass
from tersor.errors import InvalidOption
from tersor.ir import Graph, Value
from tersor.numerics.decompositions import landmarks, nystrom, semi_nmf
from tersor.numerics.lowrank import (
    Factors,
    centred,
    count_limit,
    decompose,
    output_error,
    rank_of_energy,
    rank_of_ratio,
    ranks_of_budget,
    refit,
    spectrum,
    truncate,
    weight_error,
    whitening,
)
from tersor.ops.fisher import fisher
from tersor.pipeline import LOSSY, Context, Skip
from tersor.statistics.gram import Gram, report_few_rows
from tersor.statistics.layers import Observed, observed, unobservable
from tersor.transforms.factors import FactoredLayer, emit_factored, rank_label
from tersor.tuning.break_even import Verdict, weigh

Method = Literal["svd", "whitened-svd", "fisher-svd", "pca", "nmf", "nystrom"]
RankBy = Literal["energy", "ratio", "rank", "parameters", "break-even"]

_NEED_DATA = ("whitened-svd", "fisher-svd", "pca")
_OPTIMAL = ("whitened-svd", "pca")  # Their B already minimizes the output error.
TILE = 16  # Larger ranks are multiples of it: kernels run full tiles anyway.


@dataclass(frozen=True)
class FactorizeLinear(LayerPass):
    """Options:

    method: ``svd`` minimizes the error of the weight, ``whitened-svd`` that of the layer's outputs on
        calibration inputs, ``fisher-svd`` an estimate for the model's outputs. ``pca``: whitened-svd
        about the mean row, which moves into the bias. ``nmf``: B is not negative (semi-NMF).
        ``nystrom``: columns and rows of the weight itself, selected by leverage. With calibration, B is
        refitted to the layer's outputs where that is better.
    rank_by: meaning of ``amount``. ``energy``: kept share of the squared singular values under the
        method's metric; for whitened-svd, 0.99 is a relative output error of 0.1. ``ratio``: remaining
        share of each layer's weights. ``rank``: the rank. ``parameters``: remaining share of the whole
        model's weights, with one threshold for all layers. ``break-even``: the largest rank that takes
        at most this share of the layer's time.
    amount: see ``rank_by``.
    max_error: leave layers with a larger error alone: the relative root mean square error of the output on
        calibration inputs, or of the weight without any. 1 is the error of removing the layer.
    must_pay: leave layers alone whose factors are not faster; False: whose factors are not smaller.
    """

    keeps = LOSSY
    fits = True
    budget = frozenset({"rank_by", "amount"})
    method: Method = "whitened-svd"
    rank_by: RankBy = "energy"
    amount: float = 0.99
    max_error: float = 1.0
    must_pay: bool = True

    def __post_init__(self) -> None:
        if self.rank_by == "rank" and (self.amount < 1 or self.amount % 1):
            raise InvalidOption(
                f"{self.pass_name()}: rank {self.amount:g} is not a positive whole number"
            )
        if self.rank_by != "rank" and not 0 < self.amount < 1:
            raise InvalidOption(
                f"{self.pass_name()}: {self.rank_by} {self.amount:g} is not between 0 and 1 (exclusive)"
            )

    def run(self, graph: Graph, context: Context) -> None:
        if self.method in _NEED_DATA and not (context.calibration and context.evaluate):
            raise InvalidOption(
                f"{self.pass_name()}: method {self.method} needs calibration inputs, and none were given; "
                "svd, nmf and nystrom need none"
            )
        layers = self.layers(graph, context)
        planned = context.remember("plans", lambda: self._plans(graph, layers, context))
        before = _parameters(graph)
        done = []
        for layer in layers:
            plan = planned.get(layer.name)
            if plan is None or context.excludes(layer.name, layer.node):
                continue
            if context.may_rewrite():
                replace(plan, layer=layer).apply(context)
                done.append(plan)
        _summarize(done, before, _parameters(graph), context)

    def _plans(
        self, graph: Graph, layers: Sequence[WeightedLayer], context: Context
    ) -> dict[str, FactoredLayer]:
        """Plans by the name of the weight."""
        metrics = self._sensitivities(graph, layers, context)
        ranks = self._budgeted(graph, layers, metrics, context)
        plans, rows = {}, []
        for i, seen in enumerate(observed(graph, layers, context)):
            layer = seen.layer
            context.progress(i, len(layers), f"factorizing {layer.label}")
            with context.trying(layer.node):
                plans[layer.name] = self._plan(seen, ranks.get(layer.weight), metrics, context)
                rows += [(seen.gram.rows, len(seen.gram.xtx))] if seen.gram is not None else []
        report_few_rows(rows, context.report)
        return plans

    # -- selection ---------------------------------------------------------------------------------

    def wants(self, reader: Reader) -> bool:
        return reader.node.op == "tersor.Linear"

    def against(self, layer: WeightedLayer) -> str:
        return (
            layer.encoded
            or self._misfit(layer)
            or layer.tied
            or layer.shared
            or layer.not_finite
            or (unobservable(layer) if self.method in _NEED_DATA else "")
        )

    def _misfit(self, layer: WeightedLayer) -> str:
        if min(layer.weight.tensor.shape) < 2:
            return f"@{layer.name} has no rank above 1"
        biases = [reader.bias for reader in layer.readers if reader.bias is not None]
        if self.method == "pca" and not all(bias.is_dense for bias in biases):
            return "its bias is not a dense constant"
        return ""

    # -- metrics -----------------------------------------------------------------------------------

    def _sensitivities(
        self, graph: Graph, layers: Sequence[WeightedLayer], context: Context
    ) -> dict[Value, np.ndarray]:
        """For ``fisher-svd``, the metric of each weight: the root of the Fisher information of each row."""
        if self.method != "fisher-svd" or not layers:
            return {}
        information = fisher(graph, [layer.weight for layer in layers], context.calibration)
        return {weight: np.diag(np.sqrt(f.sum(axis=1))) for weight, f in information.items()}

    def _metric(self, seen: Observed, sensitivities: dict[Value, np.ndarray]) -> np.ndarray | None:
        """M of :mod:`tersor.numerics.lowrank`; None: the identity."""
        if self.method == "fisher-svd":
            sensitivity = sensitivities[seen.layer.weight]
            if not np.isfinite(sensitivity).all():
                raise Skip("gradients of its weight contain NaN or infinity")
            return sensitivity
        if self.method not in _NEED_DATA:
            return None
        if seen.gram is None:
            raise Skip(seen.unseen)
        return whitening(_about(seen.gram) if self.method == "pca" else seen.gram.xtx)

    # -- ranks -------------------------------------------------------------------------------------

    def _budgeted(
        self,
        graph: Graph,
        layers: Sequence[WeightedLayer],
        sensitivities: dict[Value, np.ndarray],
        context: Context,
    ) -> dict[Value, int]:
        """Ranks by weight under one budget for the whole model; empty for other ``rank_by``."""
        if self.rank_by != "parameters":
            return {}
        total = _parameters(graph)
        fixed = total - sum(k * n for k, n in map(_sizes, layers))
        budget = int(self.amount * total) - fixed
        if budget < sum(k + n for k, n in map(_sizes, layers)):
            raise InvalidOption(
                f"{self.pass_name()}: parameters {self.amount:g} cannot be reached: {fixed:,} of {total:,} "
                "are outside the layers that can be factorized"
            )
        spectra: dict[Value, np.ndarray] = {}
        for seen in observed(graph, layers, context):
            dense = _dense(seen.layer)
            try:
                metric = self._metric(seen, sensitivities)
            except Skip:
                budget -= dense.size
                continue  # Reported when the layer is planned.
            spectra[seen.layer.weight] = spectrum(dense, metric)
        shapes = [_sizes(layer) for layer in layers if layer.weight in spectra]
        ranks = ranks_of_budget(list(spectra.values()), shapes, budget)
        return dict(zip(spectra, ranks, strict=True))

    def _rank(self, layer: WeightedLayer, values: np.ndarray, context: Context) -> int:
        k, n = _sizes(layer)
        if self.rank_by == "energy":
            rank = rank_of_energy(values, self.amount)
            rounded = ceil(rank / TILE) * TILE
            return rounded if rank > 4 * TILE and rounded < count_limit(k, n) else rank
        if self.rank_by == "ratio":
            rank = rank_of_ratio(k, n, self.amount)
            return rank // TILE * TILE if rank > 4 * TILE else rank
        if self.rank_by == "break-even":
            return self._largest_that_pays(layer, context)
        return int(self.amount)

    def _largest_that_pays(self, layer: WeightedLayer, context: Context) -> int:
        """By bisection, as time grows with the rank."""
        limit = ceil(count_limit(*_sizes(layer)))
        ranks = range(TILE, limit, TILE) if limit > 4 * TILE else range(1, max(limit, 2))
        low, high = 0, len(ranks)
        verdict = None
        while low < high:
            middle = (low + high) // 2
            measured = self._verdict(layer, ranks[middle], context)
            if measured.pays:
                low = middle + 1
            else:
                high, verdict = middle, measured
        if low == 0 and verdict is not None:
            raise Skip(verdict.numbers, method=rank_label(ranks[0], layer))
        return ranks[low - 1]

    def _verdict(self, layer: WeightedLayer, rank: int, context: Context) -> Verdict:
        """Whether factors of ``rank`` pay."""
        (k, n), node = _sizes(layer), layer.node
        dtype = layer.weight.tensor.dtype.numpy
        a, b = (np.zeros(shape, dtype) for shape in ((k, rank), (rank, n)))

        def dense(graph: Graph, x: Value) -> Value:
            weight = graph.constant(layer.weight.numpy(), "w")
            return graph.emit("tersor.Linear", [x, weight], node.attrs)

        def factored(graph: Graph, x: Value) -> Value:
            return emit_factored(
                graph, node, [x, graph.constant(a, "a"), graph.constant(b, "b"), None]
            )

        share = self.amount if self.rank_by == "break-even" else 1.0
        latency = context.latency if self.must_pay else None
        counts = (float(k * n), float(rank * (k + n)))
        return weigh(latency, operand(node, 0), dense, factored, counts, share)

    # -- factors -----------------------------------------------------------------------------------

    def _plan(
        self,
        seen: Observed,
        rank: int | None,
        sensitivities: dict[Value, np.ndarray],
        context: Context,
    ) -> FactoredLayer:
        """Raises:
        Skip: the layer is left alone.
        """
        layer, metric = seen.layer, self._metric(seen, sensitivities)
        values, rows = decompose(_dense(layer), metric)
        if not values[0] > 0:
            raise Skip("it has no effect: its weight or its calibration inputs are zero")
        rank = self._rank(layer, values, context) if rank is None else rank
        if rank >= min(_sizes(layer)):
            raise Skip("the rank is not lower", method=rank_label(rank, layer))
        verdict = self._verdict(layer, rank, context)
        if not verdict.pays:
            raise Skip(verdict.numbers, method=rank_label(rank, layer))
        plan = self._rounded(seen, self._factors(seen, rows, rank), verdict)
        if plan.error > self.max_error:
            raise Skip(
                f"above max_error {self.max_error:g}",
                method=rank_label(rank, layer),
                error=float(plan.error),
                of=f"the {plan.of}",
            )
        return plan

    def _factors(self, seen: Observed, rows: np.ndarray, rank: int) -> Factors:
        dense = _dense(seen.layer)
        if self.method == "nmf":
            return semi_nmf(dense, rank)  # Its A is already optimal for its B, for any inputs.
        factors = truncate(dense, rows, rank)
        if self.method == "nystrom":
            left = np.linalg.qr(factors.a)[0]
            factors = nystrom(dense, landmarks(left.T, rank), landmarks(rows[:rank], rank))
        if seen.gram is None or self.method in _OPTIMAL:
            return factors
        moments = seen.gram.xtx
        fitted = refit(dense, factors.a, whitening(moments))
        errors = [output_error(dense, f.product, moments) for f in (factors, fitted)]
        return fitted if errors[1] < errors[0] else factors

    def _rounded(self, seen: Observed, factors: Factors, verdict: Verdict) -> FactoredLayer:
        """The factors in the weight's dtype, with their error after rounding."""
        layer, gram, dtype = seen.layer, seen.gram, seen.layer.weight.tensor.dtype
        with np.errstate(over="ignore"):
            a, b = factors.a.astype(dtype.numpy), factors.b.astype(dtype.numpy)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise Skip(f"its factors overflow {dtype.value}")
        dense, product = _dense(layer), a.astype(np.float64) @ b.astype(np.float64)
        if gram is None:
            return FactoredLayer(layer, a, b, None, weight_error(dense, product), verdict.numbers)
        shift, about = None, None
        if self.method == "pca":
            shift, about = (gram.mean @ (dense - product)).astype(dtype.numpy), _about(gram)
        error = output_error(dense, product, gram.xtx, about)
        return FactoredLayer(layer, a, b, shift, error, verdict.numbers, of="output")


def _dense(layer: WeightedLayer) -> np.ndarray:
    """W, f64[k, n]."""
    return layer.matrix().T


def _sizes(layer: WeightedLayer) -> tuple[int, int]:
    k, n = layer.weight.tensor.shape
    return k, n


def _about(gram: Gram) -> np.ndarray:
    """f64[k, k], second moments about the mean row."""
    return centred(gram.xtx, gram.total, gram.rows)


def _parameters(graph: Graph) -> int:
    """Elements of all float constants."""
    return sum(
        int(np.prod(v.tensor.shape))
        for g in graph.all_graphs()
        for v in g.constants.values()
        if v.tensor.dtype.is_float
    )


def _summarize(plans: Sequence[FactoredLayer], before: int, after: int, context: Context) -> None:
    if not plans:
        context.remark("no layer was factorized")
        return
    context.remark(
        f"{len(plans)} weights factorized: {before:,} parameters before, {after:,} after"
    )
