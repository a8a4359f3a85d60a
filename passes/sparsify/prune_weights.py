"""Weights become zero, one by one or in patterns, and a mask keeps them so (``Masked`` encoding).

    W = [[ 3, -1],     magnitude, half of each layer:     [[3, 0],     mask = [[1, 0],
         [.5,  2]]                                         [0, 2]]             [0, 1]]

What a weight W_ij (output i, input j) is worth, the lowest go first:

    magnitude    |W_ij|
    random       a number in [0, 1)
    wanda        |W_ij| * |x_j|_2, x_j: input j over the calibration rows (Sun et al. 2023, arXiv 2306.11695)
    sparsegpt    (W_ij / U_jj)^2, U: the factor of the inverse of H = X^T X.  Going through the inputs, those
                 that come later make up for what went (Frantar and Alistarh 2023, arXiv 2301.00774; see
                 ``tersor.numerics.second_order``).  The only criterion that moves the weights that stay.

Inputs are rows of what is multiplied (``tersor.statistics.products``): of a convolution what its window sees
at each place, of a recurrent layer's R the states of all directions.

Some layers are observed at a time, with the inputs that they have once those before these are pruned.
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

    criterion: what a weight is worth: ``magnitude``, ``random``, ``wanda`` or ``sparsegpt``; the last two
        need calibration.
    pattern: ``unstructured``; ``N:M``: N of every M consecutive inputs of an output stay (2:4); ``RxC``:
        blocks of R consecutive outputs by C consecutive inputs go as a whole (32x1; 1x8 for groups of 8
        inputs). The inputs of a convolution are the channels, one place of the kernel after the other.
    sparsity: the share that goes, from 0 to less than 1. N:M says it itself, and takes none.
    threshold: in place of a sparsity: weights below this magnitude go, or blocks whose mean is.
    across: what the lowest are sought in: every ``output``, ``layer``, or the whole ``model``. ``auto``:
        every output for wanda, every layer else. Sparsegpt seeks in 128 inputs of a layer at a time.
    embeddings: also tables that rows are looked up in.
    seed: of ``random``.
    damping: what sparsegpt adds to H's diagonal, relative to its mean.
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
            return f"pattern {self.pattern} leaves nothing to sparsity, threshold and across"
        if self.sparsity and self.threshold:
            return "sparsity or threshold says how much goes, not both"
        if not 0 <= self.sparsity < 1:
            return (
                f"sparsity {self.sparsity:g} is not from 0 to less than 1, where no weight is left"
            )
        if not 0 <= self.threshold < np.inf:
            return f"threshold {self.threshold:g} is no magnitude"
        if self.threshold and (self.criterion, self.across) != ("magnitude", "auto"):
            return "a threshold is for magnitudes, each by itself: no other criterion, no across"
        if self.criterion == "sparsegpt" and self.across == "model":
            return "sparsegpt chooses among the inputs of a layer: across is output or layer"
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
            return f"{self.criterion} needs a layer's inputs: {reason}"
        if self.criterion == "sparsegpt" and not layer.encoding.storage.is_float:
            return "sparsegpt moves the weights that stay, and these are quantized: prune first"
        return ""

    # -- which weights -----------------------------------------------------------------------------

    def _prune(self, seen: Observed, mask: np.ndarray | None) -> bool:
        """Puts a mask over the layer's weight, perhaps one that was chosen before; False where nothing more
        goes.

        Raises:
            Skip: calibration does not tell what its weights are worth.
        """
        was, moved = _kept(seen.layer), None
        if self._needs_data and seen.unseen:
            raise Skip(seen.unseen)
        if self.criterion == "sparsegpt":
            moved, kept = self._in_order(seen, was)
        elif mask is not None:
            kept = mask & was
        else:
            kept = self._choose(self._scores(seen.layer, seen.gram)) & was
        if (kept == was).all():
            return False
        _mask(seen.layer, kept, moved)
        return True

    def _in_order(self, seen: Observed, was: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sparsegpt: the weights and the mask. What an earlier pass pruned costs nothing, and goes
        again."""
        assert seen.gram is not None

        def choose(costs: np.ndarray, at: slice) -> np.ndarray:
            return np.asarray(self._choose(np.where(was[:, at], costs, 0)) & was[:, at])

        try:
            factor = inverse_factor(damped(seen.gram.xtx, self.damping))
        except np.linalg.LinAlgError:
            raise Skip("its inputs depend on each other too closely: more damping helps") from None
        return prune_in_order(seen.layer.matrix(), factor, choose, self._step)

    def _choose_together(
        self, graph: Graph, layers: Sequence[WeightedLayer], context: Context
    ) -> dict[WeightedLayer, np.ndarray]:
        """The masks of all layers, from the worth of all their weights."""
        if self._needs_data:
            seen = (one for one in observed(graph, layers, context) if not one.unseen)
            scores = {one.layer: self._scores(one.layer, one.gram) for one in seen}
        else:
            scores = {layer: self._scores(layer, None) for layer in layers}
        masks = by_sparsity(list(scores.values()), Pattern.parse(self.pattern), self.sparsity)
        return dict(zip(scores, masks, strict=True))

    def _scores(self, layer: WeightedLayer, gram: Gram | None) -> np.ndarray:
        """f64[outputs, inputs], at least 0; 0 for what an earlier pass pruned."""
        numbers = layer.matrix()
        if self.criterion == "random":
            drawn = np.random.default_rng((self.seed, layer.index)).random(numbers.shape)
            return np.where(_kept(layer), drawn, 0)
        if self.criterion == "wanda":
            assert gram is not None
            return np.asarray(np.abs(numbers) * gram.norm)
        return np.asarray(np.abs(numbers))

    def _choose(self, scores: np.ndarray) -> np.ndarray:
        """The mask of what stays, among these weights."""
        pattern = Pattern.parse(self.pattern)
        if pattern.kept:
            return n_of_m(scores, pattern)
        if self.threshold:
            return by_threshold(scores, pattern, self.threshold)
        return by_sparsity([scores], pattern, self.sparsity, per_output=self._per_output)[0]

    @property
    def _step(self) -> int:
        """How many inputs sparsegpt chooses among at a time: whole blocks; N:M one group."""
        pattern = Pattern.parse(self.pattern)
        return pattern.columns * (1 if pattern.kept else max(COLUMNS // pattern.columns, 1))


def _kept(layer: WeightedLayer) -> np.ndarray:
    """bool[outputs, inputs]: what no earlier pass pruned."""
    mask = layer.encoding.mask
    return layer.form.matrix(np.ones(layer.weight.tensor.shape, bool) if mask is None else mask)


def _mask(layer: WeightedLayer, kept: np.ndarray, numbers: np.ndarray | None) -> None:
    """Puts the mask ``kept`` over the weight, with other ``numbers`` where they are given."""
    weight, values = layer.weight, layer.encoding.unmasked
    if numbers is not None:
        tensor = layer.form.tensor(numbers, weight.tensor.shape)
        moved = Dense(np.ascontiguousarray(tensor, weight.tensor.dtype.numpy))
        values = values.with_values(moved)
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
        reason = (
            "calibration shows no layer's inputs as rows" if calibrated else "no calibration inputs"
        )
        remarks.append(Remark(f"{reason}: the layers' errors are unknown"))
    written = "a backend without sparse kernels writes the zeros out: its file is no smaller"
    return [*remarks, Remark(written)]
