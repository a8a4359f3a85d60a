"""Prunes single weights or patterns of them to zero; a mask keeps the zeros (``Masked`` encoding).

    W = [[ 3, -1],     magnitude, half of each layer:     [[3, 0],     mask = [[1, 0],
         [.5,  2]]                                         [0, 2]]             [0, 1]]

The score of a weight W_ij (output i, input j); the lowest are pruned first:

    magnitude    |W_ij|
    random       a number in [0, 1)
    wanda        |W_ij| * |x_j|_2, x_j: input j over the calibration rows (Sun et al. 2023, arXiv 2306.11695)
    sparsegpt    (W_ij / U_jj)^2, U: the Cholesky factor of the inverse of H = X^T X.  Inputs are pruned in
                 order, and later ones compensate (Frantar and Alistarh 2023, arXiv 2301.00774; see
                 ``tersor.numerics.second_order``).  The only criterion that updates the remaining weights.

X has the rows that a layer multiplies (``tersor.statistics.products``): of a convolution, the patches of its
window; of a recurrent layer's R, the states of all directions.

Layers are observed in groups, with the inputs that they have after earlier groups are pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tersor.analysis.layers import Reader, WeightedLayer
from tersor.analysis.selection import LayerPass
from tersor.errors import InvalidOption
from tersor.ir import Dense, Graph, Masked
from tersor.numerics.masks import Pattern, by_sparsity, by_threshold, n_of_m
from tersor.numerics.second_order import COLUMNS, damped, inverse_factor, prune_in_order
from tersor.pipeline import LOSSY, Context, Skip
from tersor.pipeline.report import Remark
from tersor.statistics.gram import Gram
from tersor.statistics.layers import Observed, observed, unobservable

Criterion = Literal["magnitude", "random", "wanda", "sparsegpt"]
Across = Literal["auto", "output", "layer", "model"]


@dataclass(frozen=True)
class PruneWeights(LayerPass):
    """Options:

    criterion: the score of a weight: ``magnitude``, ``random``, ``wanda`` or ``sparsegpt``; the last two
        need calibration.
    pattern: ``unstructured``; ``N:M``: N of every M consecutive inputs of an output stay (2:4); ``RxC``:
        blocks of R consecutive outputs by C consecutive inputs are pruned as a whole (32x1; 1x8 for groups
        of 8 inputs). The inputs of a convolution are the channels at each position of the kernel in turn.
    sparsity: the share to prune, in [0, 1). N:M implies it.
    threshold: instead of a sparsity: prune weights below this magnitude, or blocks whose mean is below it.
    across: where scores are compared: within each ``output`` or ``layer``, or in the whole ``model``.
        ``auto``: each output for wanda, each layer otherwise. Sparsegpt compares in 128 inputs of a layer at
        a time.
    embeddings: also prune embedding tables.
    seed: for ``random``.
    damping: added to H's diagonal by sparsegpt, relative to its mean.
    """

    keeps = LOSSY
    fits = True
    budget = frozenset({"sparsity", "threshold", "pattern"})
    criterion: Criterion = "magnitude"
    pattern: str = "unstructured"
    sparsity: float = 0.0
    threshold: float = 0.0
    across: Across = "auto"
    embeddings: bool = False
    seed: int = 0
    damping: float = 0.01

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise InvalidOption(f"pass prune-weights: {problem}")

    def run(self, graph: Graph, context: Context) -> None:
        if self._needs_data and not (context.calibration and context.evaluate):
            raise InvalidOption(f"{self.label} needs calibration inputs, and none were given")
        layers = self.layers(graph, context)
        if not (self.sparsity or self.threshold or Pattern.parse(self.pattern).kept):
            context.remark("sparsity 0: nothing is pruned")
            return
        masks: Mapping[WeightedLayer, np.ndarray] = {}
        if self.across == "model":
            masks = self._choose_together(graph, layers, context)
        done, errors = list[WeightedLayer](), list[float]()
        for i, seen in enumerate(observed(graph, layers, context)):
            layer = seen.layer
            context.progress(i, len(layers), f"pruning {layer.label}")
            if not context.may_rewrite():
                break
            before = layer.matrix()
            with context.trying(layer.node):
                if self._prune(seen, masks.get(layer)):
                    context.rewrote()
                done.append(layer)
                if seen.gram is not None:
                    errors.append(_output_error(seen.gram, before, layer.matrix()))
        context.report.notes += _remarks(done, errors, bool(context.calibration))

    # -- options -----------------------------------------------------------------------------------

    def _problem(self) -> str:
        """What is wrong with the options; empty if nothing is."""
        kept = Pattern.parse(self.pattern).kept
        if kept and (self.sparsity or self.threshold or self.across != "auto"):
            return f"pattern {self.pattern} takes no sparsity, threshold or across"
        if self.sparsity and self.threshold:
            return "set sparsity or threshold, not both"
        if not 0 <= self.sparsity < 1:
            return f"sparsity {self.sparsity:g} is not in [0, 1)"
        if not 0 <= self.threshold < np.inf:
            return f"threshold {self.threshold:g} is not a finite number of at least 0"
        if self.threshold and (self.criterion, self.across) != ("magnitude", "auto"):
            return "threshold needs criterion magnitude and takes no across"
        if self.criterion == "sparsegpt" and self.across == "model":
            return "sparsegpt compares within a layer: set across to output or layer"
        if not self.damping > 0:
            return f"damping {self.damping:g} is not above 0"
        return ""

    @property
    def _needs_data(self) -> bool:
        return self.criterion in ("wanda", "sparsegpt")

    @property
    def _per_output(self) -> bool:
        return self.across == "output" or (self.across == "auto" and self.criterion == "wanda")

    # -- which layers ------------------------------------------------------------------------------

    def wants(self, reader: Reader) -> bool:
        return reader.is_float_constant and (self.embeddings or not reader.form.looked_up)

    def against(self, layer: WeightedLayer) -> str:
        if reason := layer.shared or layer.empty or layer.not_finite:
            return reason
        if misfit := Pattern.parse(self.pattern).misfit(layer.matrix().shape):
            return misfit
        if self._needs_data and (reason := unobservable(layer)):
            return f"{self.criterion} needs the layer's inputs: {reason}"
        if self.criterion == "sparsegpt" and not layer.encoding.storage.is_float:
            return "sparsegpt updates the remaining weights, but these are quantized: prune first"
        return ""

    # -- which weights -----------------------------------------------------------------------------

    def _prune(self, seen: Observed, mask: np.ndarray | None) -> bool:
        """Masks the layer's weight, with ``mask`` if given; returns whether that prunes anything new.

        Raises:
            Skip: calibration gives no scores for its weights.
        """
        before, updated = _kept(seen.layer), None
        if self._needs_data and seen.unseen:
            raise Skip(seen.unseen)
        if self.criterion == "sparsegpt":
            updated, kept = self._in_order(seen, before)
        elif mask is not None:
            kept = mask & before
        else:
            kept = self._choose(self._scores(seen.layer, seen.gram)) & before
        if (kept == before).all():
            return False
        _mask(seen.layer, kept, updated)
        return True

    def _in_order(self, seen: Observed, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sparsegpt: the updated weights and the mask. Weights pruned by an earlier pass cost nothing and are
        pruned again."""
        assert seen.gram is not None

        def choose(costs: np.ndarray, at: slice) -> np.ndarray:
            return np.asarray(self._choose(np.where(before[:, at], costs, 0)) & before[:, at])

        try:
            factor = inverse_factor(damped(seen.gram.xtx, self.damping))
        except np.linalg.LinAlgError:
            raise Skip("its inputs are nearly linearly dependent: increase damping") from None
        return prune_in_order(seen.layer.matrix(), factor, choose, self._step)

    def _choose_together(
        self, graph: Graph, layers: Sequence[WeightedLayer], context: Context
    ) -> dict[WeightedLayer, np.ndarray]:
        """The masks of all layers, by comparing the scores of all their weights."""
        if self._needs_data:
            seen = (one for one in observed(graph, layers, context) if not one.unseen)
            scores = {one.layer: self._scores(one.layer, one.gram) for one in seen}
        else:
            scores = {layer: self._scores(layer, None) for layer in layers}
        masks = by_sparsity(list(scores.values()), Pattern.parse(self.pattern), self.sparsity)
        return dict(zip(scores, masks, strict=True))

    def _scores(self, layer: WeightedLayer, gram: Gram | None) -> np.ndarray:
        """f64[outputs, inputs], at least 0; 0 for weights that an earlier pass pruned."""
        numbers = layer.matrix()
        if self.criterion == "random":
            drawn = np.random.default_rng((self.seed, layer.index)).random(numbers.shape)
            return np.where(_kept(layer), drawn, 0)
        if self.criterion == "wanda":
            assert gram is not None
            return np.asarray(np.abs(numbers) * gram.norm)
        return np.asarray(np.abs(numbers))

    def _choose(self, scores: np.ndarray) -> np.ndarray:
        """The mask of the weights to keep."""
        pattern = Pattern.parse(self.pattern)
        if pattern.kept:
            return n_of_m(scores, pattern)
        if self.threshold:
            return by_threshold(scores, pattern, self.threshold)
        return by_sparsity([scores], pattern, self.sparsity, per_output=self._per_output)[0]

    @property
    def _step(self) -> int:
        """The number of inputs that sparsegpt compares at a time: whole blocks, or one group of N:M."""
        pattern = Pattern.parse(self.pattern)
        return pattern.columns * (1 if pattern.kept else max(COLUMNS // pattern.columns, 1))


def _kept(layer: WeightedLayer) -> np.ndarray:
    """bool[outputs, inputs]: the weights that no earlier pass pruned."""
    mask = layer.encoding.mask
    return layer.form.matrix(np.ones(layer.weight.tensor.shape, bool) if mask is None else mask)


def _mask(layer: WeightedLayer, kept: np.ndarray, numbers: np.ndarray | None) -> None:
    """Masks the weight with ``kept``; its values become ``numbers`` if given."""
    weight, values = layer.weight, layer.encoding.unmasked
    if numbers is not None:
        tensor = layer.form.tensor(numbers, weight.tensor.shape)
        updated = Dense(np.ascontiguousarray(tensor, weight.tensor.dtype.numpy))
        values = values.with_values(updated)
    masked = Masked.of(layer.form.tensor(kept, weight.tensor.shape), values)
    weight.graph.set_encoding(weight, masked)


def _output_error(gram: Gram, before: np.ndarray, after: np.ndarray) -> float:
    """|X (W - V)^T| / |X W^T|, from X's second moments."""
    change = before - after
    lost = float(np.sum((change @ gram.xtx) * change))
    whole = float(np.sum((before @ gram.xtx) * before))
    return (max(lost, 0) / whole) ** 0.5 if whole > 0 else float(lost > 0)


def _remarks(
    layers: Sequence[WeightedLayer], errors: Sequence[float], calibrated: bool
) -> list[Remark]:
    if not layers:
        return [Remark("no weight was pruned")]
    total = sum(_kept(layer).size for layer in layers)
    gone = total - sum(int(_kept(layer).sum()) for layer in layers)
    zeros = (
        f"{gone:,} of {total:,} weights are zero ({gone / total:.1%}), in {len(layers)} constants"
    )
    remarks = [Remark(method=zeros)]
    if errors:
        mean, worst = float(np.mean(errors)), float(max(errors))
        remarks.append(Remark(error=mean, worst=worst, of="a layer's output on calibration"))
    else:
        reason = "no calibration rows reach the layers" if calibrated else "no calibration inputs"
        remarks.append(Remark(f"{reason}: the layers' errors are unknown"))
    written = "a backend without sparse kernels stores the zeros: its file does not get smaller"
    return [*remarks, Remark(written)]
