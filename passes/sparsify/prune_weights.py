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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tersor.analysis.scopes import chosen
from tersor.errors import InvalidOption
from tersor.ir import Dense, Encoding, Graph, Masked, Node, TensorType, Value
from tersor.numerics.masks import Pattern, by_sparsity, by_threshold, n_of_m
from tersor.numerics.second_order import COLUMNS, damped, inverse_factor, prune_in_order
from tersor.ops import TABLE, Weight
from tersor.pipeline import LOSSY, Context, Pass, Skip
from tersor.statistics.gram import Gram, grams_of_rows
from tersor.statistics.observing import TAPS, Rows
from tersor.statistics.products import no_rows, rows_of

Criterion = Literal["magnitude", "random", "wanda", "sparsegpt"]
Across = Literal["auto", "output", "layer", "model"]


@dataclass(frozen=True)
class PruneWeights(Pass):
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
    scopes: patterns of scopes (``encoder.layer.0.*``); none: everywhere.
    ignored_scopes: patterns of scopes that stay as they are.
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
    scopes: tuple[str, ...] = field(default=())
    ignored_scopes: tuple[str, ...] = field(default=())
    seed: int = 0
    damping: float = 0.01

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise InvalidOption(f"pass prune-weights: {problem}")

    def run(self, graph: Graph, context: Context) -> None:
        if self._needs_data and not (context.calibration and context.evaluate):
            raise InvalidOption(f"{self.label} needs calibration, and none was given")
        layers = self._layers(graph, context)
        if not (self.sparsity or self.threshold or Pattern.parse(self.pattern).kept):
            context.report.notes.append("sparsity 0: nothing is pruned")
            return
        if self.across == "model":
            self._choose_together(graph, layers, context)
        done, errors = list[_Layer](), list[float]()
        for i, layer in enumerate(_observed(graph, layers, context)):
            context.progress(i, len(layers), f"pruning {layer.label}")
            if not context.may_rewrite():
                break
            before = layer.matrix()
            try:
                if self._prune(layer):
                    context.rewrote()
            except Skip as reason:
                context.skip(layer.readers[0], str(reason))
                continue
            done.append(layer)
            if layer.gram is not None and not _unseen(layer.gram):
                errors.append(_output_error(layer.gram, before, layer.matrix()))
        context.report.notes += _notes(done, errors, bool(context.calibration))

    # -- options -------------------------------------------------------------------------------------

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

    # -- which layers --------------------------------------------------------------------------------

    def _layers(self, graph: Graph, context: Context) -> list[_Layer]:
        """Constants with all their readers, in the order of the graph; skips say what stays out."""
        users = [
            (node, form, value)
            for node in graph.walk()
            for form in TABLE.weights(node)
            if (value := _held(node, form)) and (self.embeddings or not form.looked_up)
        ]
        nodes = dict.fromkeys(node for node, _, _ in users)
        wanted = set(chosen(nodes, self.scopes, self.ignored_scopes, context))
        found: dict[Value, _Layer] = {}
        for node, form, value in users:
            if node in wanted:
                layer = found.setdefault(value, _Layer(value, form, len(found)))
                if layer.form.inputs == form.inputs:
                    layer.readers.append(node)
                    layer.forms.append(form)
        layers = []
        for layer in found.values():
            if reason := self._refusal(layer, graph):
                context.skip(layer.readers[0], reason)
            else:
                layers.append(layer)
        return layers

    def _refusal(self, layer: _Layer, graph: Graph) -> str:
        """Why a layer's weight stays as it is; empty if it need not."""
        constant = layer.constant
        if len(constant.uses) != len(layer.readers):
            return f"@{constant.name} is also read by what is not pruned"
        numbers = layer.matrix()
        if not numbers.size:
            return "its weight is empty"
        if not np.isfinite(numbers).all():
            return "its weight holds NaN or infinity"
        if misfit := Pattern.parse(self.pattern).misfit(numbers.shape):
            return misfit
        if self._needs_data and (reason := layer.unseen()):
            return f"{self.criterion} needs a layer's inputs: {reason}"
        if self.criterion == "sparsegpt" and not layer.encoding.storage.is_float:
            return "sparsegpt moves the weights that stay, and these are quantized: prune first"
        return ""

    # -- which weights -------------------------------------------------------------------------------

    def _prune(self, layer: _Layer) -> bool:
        """Puts a mask over the layer's weight; False where nothing more goes.

        Raises:
            Skip: calibration does not tell what its weights are worth.
        """
        was, moved = layer.kept(), None
        if self._needs_data and (reason := _unseen(layer.gram)):
            raise Skip(reason)
        if self.criterion == "sparsegpt":
            moved, kept = self._in_order(layer, was)
        elif layer.mask is not None:
            kept = layer.mask & was
        else:
            kept = self._choose(self._scores(layer)) & was
        if (kept == was).all():
            return False
        layer.hold(kept, moved)
        return True

    def _in_order(self, layer: _Layer, was: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sparsegpt: the weights and the mask. What an earlier pass pruned costs nothing, and goes
        again."""
        assert layer.gram is not None

        def choose(costs: np.ndarray, at: slice) -> np.ndarray:
            return np.asarray(self._choose(np.where(was[:, at], costs, 0)) & was[:, at])

        try:
            factor = inverse_factor(damped(layer.gram.xtx, self.damping))
        except np.linalg.LinAlgError:
            raise Skip("its inputs depend on each other too closely: more damping helps") from None
        return prune_in_order(layer.matrix(), factor, choose, self._step)

    def _choose_together(self, graph: Graph, layers: Sequence[_Layer], context: Context) -> None:
        """The masks of all layers, from the worth of all their weights."""
        seen = _observed(graph, layers, context) if self._needs_data else layers
        told = (layer for layer in seen if not (self._needs_data and _unseen(layer.gram)))
        scores = {layer: self._scores(layer) for layer in told}
        masks = by_sparsity(list(scores.values()), Pattern.parse(self.pattern), self.sparsity)
        for layer, mask in zip(scores, masks, strict=True):
            layer.mask = mask

    def _scores(self, layer: _Layer) -> np.ndarray:
        """f64[outputs, inputs], at least 0; 0 for what an earlier pass pruned."""
        numbers = layer.matrix()
        if self.criterion == "random":
            drawn = np.random.default_rng((self.seed, layer.index)).random(numbers.shape)
            return np.where(layer.kept(), drawn, 0)
        if self.criterion == "wanda":
            assert layer.gram is not None
            return np.asarray(np.abs(numbers) * layer.gram.norm)
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


@dataclass(eq=False)
class _Layer:
    """A constant that nodes read as their weight.

    Attributes:
        form: how the first reader sees it; the matrix is the same for all.
        index: its place among the layers.
        readers, forms: nodes, and how each of them sees it.
        gram: of what it is multiplied with, while that is known.
        mask: bool[outputs, inputs], where it was chosen beforehand.
    """

    constant: Value
    form: Weight
    index: int
    readers: list[Node] = field(default_factory=list)
    forms: list[Weight] = field(default_factory=list)
    gram: Gram | None = None
    mask: np.ndarray | None = None

    @property
    def encoding(self) -> Encoding:
        assert self.constant.encoding is not None
        return self.constant.encoding

    @property
    def label(self) -> str:
        return self.readers[0].scope or self.constant.name

    def unseen(self) -> str:
        """Why calibration does not see what the readers multiply it with; empty if it does."""
        reasons = (no_rows(n, form) for n, form in zip(self.readers, self.forms, strict=True))
        return next(filter(None, reasons), "")

    def inputs(self) -> list[Rows]:
        """What the readers multiply it with, where that can be seen."""
        pairs = zip(self.readers, self.forms, strict=True)
        found = [rows_of(node, form) for node, form in pairs if not no_rows(node, form)]
        return [rows for rows in found if not rows.value.is_constant]

    def matrix(self) -> np.ndarray:
        """f64[outputs, inputs]"""
        return np.asarray(self.form.matrix(self.constant.numpy()).astype(np.float64))

    def kept(self) -> np.ndarray:
        """bool[outputs, inputs]: what no earlier pass pruned."""
        mask = self.encoding.mask
        return self.form.matrix(np.ones(self.constant.tensor.shape, bool) if mask is None else mask)

    def hold(self, kept: np.ndarray, numbers: np.ndarray | None) -> None:
        """The constant under the mask ``kept``, with other ``numbers`` where they are given."""
        shape, values = self.constant.tensor.shape, self.encoding.unmasked
        if numbers is not None:
            dtype = self.constant.tensor.dtype.numpy
            moved = Dense(np.ascontiguousarray(self.form.tensor(numbers, shape), dtype))
            values = values.with_values(moved)
        masked = Masked.of(self.form.tensor(kept, shape), values)
        self.constant.graph.set_encoding(self.constant, masked)


def _held(node: Node, form: Weight) -> Value | None:
    """The constant of floats at the operand; None where there is none."""
    value = node.input(form.operand)
    if value is None or not value.is_constant or not isinstance(value.type, TensorType):
        return None
    return value if value.tensor.dtype.is_float else None


def _observed(graph: Graph, layers: Sequence[_Layer], context: Context) -> Iterator[_Layer]:
    """The layers, with the moments of their inputs as long as each is looked at: these are as large as
    the weights. TAPS layers are seen in one run of the graph, as it is by then."""
    for start in range(0, len(layers), TAPS):
        group = layers[start : start + TAPS]
        seen = _moments(graph, [rows for layer in group for rows in layer.inputs()], context)
        for layer in group:
            layer.gram = _sum([seen[rows] for rows in layer.inputs() if rows in seen])
            yield layer
            layer.gram = None


def _moments(graph: Graph, inputs: Sequence[Rows], context: Context) -> dict[Rows, Gram]:
    """None without calibration."""
    if not context.calibration or context.evaluate is None:
        return {}
    return grams_of_rows(graph, inputs, context.calibration, context.evaluate)


def _sum(moments: Sequence[Gram]) -> Gram | None:
    """Of all rows together, where layers share a weight; None of none."""
    if len(moments) < 2:
        return moments[0] if moments else None
    xtx = np.sum([gram.xtx for gram in moments], axis=0)
    total = np.sum([gram.total for gram in moments], axis=0)
    return Gram(xtx, total, sum(gram.rows for gram in moments))


def _unseen(gram: Gram | None) -> str:
    """Why calibration tells nothing of a layer's inputs; empty if it does."""
    if gram is None or not gram.rows:
        return "calibration shows none of its inputs"
    return "" if np.isfinite(gram.xtx).all() else "its inputs on calibration hold NaN or infinity"


def _output_error(gram: Gram, before: np.ndarray, after: np.ndarray) -> float:
    """|X (W - V)^T| / |X W^T|, from X's second moments."""
    change = before - after
    lost = float(np.sum((change @ gram.xtx) * change))
    whole = float(np.sum((before @ gram.xtx) * before))
    return (max(lost, 0) / whole) ** 0.5 if whole > 0 else float(lost > 0)


def _notes(layers: Sequence[_Layer], errors: Sequence[float], calibrated: bool) -> list[str]:
    if not layers:
        return ["no weight was pruned"]
    total = sum(layer.kept().size for layer in layers)
    gone = total - sum(int(layer.kept().sum()) for layer in layers)
    notes = [
        f"{gone:,} of {total:,} weights are zero ({gone / total:.1%}), in {len(layers)} constants"
    ]
    if errors:
        notes.append(
            f"relative error of a layer's output on calibration: mean {np.mean(errors):.4f}, "
            f"worst {max(errors):.4f}"
        )
    else:
        reason = (
            "calibration shows no layer's inputs as rows" if calibrated else "no calibration inputs"
        )
        notes.append(f"{reason}: the layers' errors are unknown")
    return [*notes, "a backend without sparse kernels writes the zeros out: its file is no smaller"]
