"""Weights in int8 that layers read as floats: a quarter of the file, at the speed of floats.

    w[o, i] ~ scale[o] * q[o, i],   scale[o] = max|w[o, :]| / 127       one scale an output

For what has no integer form (convolutions, recurrent layers, linear layers that would lose too much by
quantized activations): runtimes make floats of such a weight when they load the model.  What makes the
outputs of a layer is told by the op table's ``Weight``: a Conv's filters, an LSTM's rows of W and R, of
each gate and direction; a linear layer's columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from tersor.ir import DType, Graph, Node, Value
from tersor.numerics.affine import quantize_outputs, relative_error
from tersor.numerics.masks import stores_floats
from tersor.ops import TABLE
from tersor.pipeline import LOSSY, Context, Pass
from tersor.structure.ties import tied_to


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Options:

    min_elements: weights smaller than this stay: little is won there.
    max_error: a weight that would lose more (relative, root mean square) stays in float.
    ignored_scopes: patterns of scopes (``encoder.layer.0.*``) that stay in float.
    """

    keeps = LOSSY
    min_elements: int = 1024
    max_error: float = 0.05
    ignored_scopes: tuple[str, ...] = field(default=())

    def run(self, graph: Graph, context: Context) -> None:
        errors = []
        for owner in graph.all_graphs():
            for value in list(owner.constants.values()):
                error = self._quantize(value, context)
                if error is not None:
                    errors.append(error)
        if errors:
            context.report.notes.append(
                f"{len(errors)} weights are held in int8 and read as floats; relative error: mean "
                f"{np.mean(errors):.4f}, worst {max(errors):.4f}"
            )

    def _quantize(self, value: Value, context: Context) -> float | None:
        """The relative error of a weight that is now held in int8; None where it stays."""
        held, inputs = value.encoding, _summed_axes(value)
        if held is None or inputs is None or not stores_floats(value) or _elements(value) == 0:
            return None
        layers = [use.user for use in value.uses if isinstance(use.user, Node)]
        if reason := self._stays(value, layers):
            context.skip(layers[0], reason)
            return None
        if context.spares(value.name, layers[0]):
            return None
        dense = np.asarray(held.decode())
        encoding = held.with_values(quantize_outputs(dense, inputs))
        if encoding.nbytes > 0.9 * held.nbytes:
            context.skip(layers[0], f"@{value.name} would be no smaller: a scale for a few weights")
            return None
        error = relative_error(dense, encoding.decode())
        if error > self.max_error:
            context.skip(layers[0], f"error {error:.3f} is above max_error {self.max_error}")
            return None
        value.graph.set_encoding(value, encoding)
        context.rewrote()
        label = layers[0].scope or layers[0].output.name
        context.report.changed[value.name] = (f"{label} @{value.name}", error)
        return error

    def _stays(self, value: Value, layers: Sequence[Node]) -> str:
        """Why a weight is not quantized; empty where it may be."""
        scopes = [n.scope for n in layers]
        if any(fnmatchcase(scope, p) for scope in scopes for p in self.ignored_scopes):
            return "its scope is ignored by option"
        if _elements(value) < self.min_elements:
            return f"@{value.name} has fewer than {self.min_elements} elements"
        if value.tensor.dtype is not DType.F32:
            return f"@{value.name} is {value.tensor.dtype.value}: only f32 is quantized"
        if tied := tied_to(value):
            return f"@{value.name} is tied to @{tied[0].name}, which is not quantized"
        if not np.isfinite(value.numpy()).all():
            return f"@{value.name} holds NaN or infinity"
        return ""


def _elements(value: Value) -> int:
    numel = value.tensor.numel
    assert isinstance(numel, int)
    return numel


def _summed_axes(value: Value) -> tuple[int, ...] | None:
    """The axes of a constant that one output of a layer sums over; None where not all that read it are
    layers, or not all of them read it alike."""
    found: set[tuple[int, ...] | None] = set()
    for use in value.uses:
        weights = TABLE.weights(use.user) if isinstance(use.user, Node) else ()
        mine = [w.inputs for w in weights if w.operand == use.operand and not w.looked_up]
        found.add(mine[0] if mine else None)
    return found.pop() if len(found) == 1 else None
