"""The error of layers' outputs if a constant that they read gets another encoding.

Each layer is run twice on the calibration inputs, with the old and the new encoding:

    y = Conv(x, w),   y' = Conv(x, w')        error = |y - y'| / |y|        over all batches
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tersor.ir import Encoding, Graph, Node, Value
from tersor.pipeline import Context, erase_unread
from tersor.statistics.observing import TAPS


def output_errors(
    graph: Graph, forms: Mapping[Value, Encoding], context: Context
) -> dict[str, float]:
    """For each constant, by name, the largest relative error (root mean square) of an output of a layer that
    reads it, if only this constant got its encoding in ``forms``; infinite if finite numbers become NaN or
    infinity. Constants whose layers are in subgraphs or not reached by calibration are left out."""
    if not context.calibration or context.evaluate is None:
        return {}
    errors: dict[str, float] = {}
    wanted = [value for value in forms if value.graph is graph]
    for start in range(0, len(wanted), TAPS):
        context.progress(start, len(wanted), "errors of layers' outputs")
        group = wanted[start : start + TAPS]
        errors |= _errors(graph, {value: forms[value] for value in group}, context)
    return errors


def _errors(graph: Graph, forms: Mapping[Value, Encoding], context: Context) -> dict[str, float]:
    assert context.evaluate is not None
    copy = graph.copy()
    constants = {value.name: value for value in copy.constants.values()}
    pairs: list[tuple[str, Value, Value]] = []
    for value, form in forms.items():
        old = constants[value.name]
        new = copy.constant(form, value.name)
        for node in (n for n in old.users if n.graph is copy):
            pairs += [(value.name, *pair) for pair in _add_twin(copy, node, old, new)]
    if not pairs:
        return {}
    copy.set_outputs(
        [v for _, *pair in pairs for v in pair],
        [f"{i}{end}" for i in range(len(pairs)) for end in ("", "'")],
    )
    erase_unread(copy)
    sums = [_Sums() for _ in pairs]
    for feed in context.calibration:
        outputs = context.evaluate(copy, feed)
        for i, one in enumerate(sums):
            one.add(outputs[str(i)], outputs[f"{i}'"])
    errors: dict[str, float] = {}
    for (name, *_), one in zip(pairs, sums, strict=True):
        if one.count:
            errors[name] = max(errors.get(name, 0.0), one.error)
    return errors


def _add_twin(graph: Graph, node: Node, old: Value, new: Value) -> Sequence[tuple[Value, Value]]:
    """Adds a copy of ``node`` that reads ``new`` in place of ``old``; returns pairs of their outputs that
    have uses."""
    inputs = [new if v is old else v for v in node.inputs]
    twin = graph.emit_node(
        node.op, inputs, node.attrs,
        names=[""] * len(node.outputs), types=[v.type for v in node.outputs], before=node,
    )  # fmt: skip
    return [pair for pair in zip(node.outputs, twin.outputs, strict=True) if pair[0].uses]


class _Sums:
    """Sums of squares over elements whose reference is finite."""

    def __init__(self) -> None:
        self.reference = self.difference = 0.0
        self.count = 0

    def add(self, want: np.ndarray, got: np.ndarray) -> None:
        finite = np.isfinite(want)
        a, b = want[finite].astype(np.float64), got[finite].astype(np.float64)
        self.reference += float(np.square(a).sum())
        self.difference += float(np.square(a - b).sum())
        self.count += a.size

    @property
    def error(self) -> float:
        if not (np.isfinite(self.reference) and np.isfinite(self.difference)):
            return float("inf")
        if self.reference > 0:
            return float((self.difference / self.reference) ** 0.5)
        return float(self.difference > 0)
