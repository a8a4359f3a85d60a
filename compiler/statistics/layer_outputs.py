"""What it does to the outputs of layers when a constant that they read is held in another form.

Each layer is run twice on the calibration inputs, with the constant as it was and as it would be:

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
    """By name, of each constant of ``graph`` the largest relative error (root mean square) of an output of
    a layer that reads it, if it alone were held in its form: infinite where numbers are no numbers any more.
    Left out: constants of which no layer of the outermost level is reached by calibration."""
    if not context.calibration or context.evaluate is None:
        return {}
    found: dict[str, float] = {}
    wanted = [value for value in forms if value.graph is graph]
    for start in range(0, len(wanted), TAPS):
        context.progress(start, len(wanted), "errors of layers' outputs")
        group = wanted[start : start + TAPS]
        found |= _errors(graph, {value: forms[value] for value in group}, context)
    return found


def _errors(graph: Graph, forms: Mapping[Value, Encoding], context: Context) -> dict[str, float]:
    assert context.evaluate is not None
    copy = graph.copy()
    constants = {value.name: value for value in copy.constants.values()}
    pairs: list[tuple[str, Value, Value]] = []
    for value, form in forms.items():
        mine = constants[value.name]
        other = copy.constant(form, value.name)
        for node in (n for n in mine.users if n.graph is copy):
            pairs += [(value.name, *both) for both in _with_its_twin(copy, node, mine, other)]
    if not pairs:
        return {}
    copy.set_outputs(
        [v for _, *both in pairs for v in both],
        [f"{i}{end}" for i in range(len(pairs)) for end in ("", "'")],
    )
    erase_unread(copy)
    sums = [_Sums() for _ in pairs]
    for feed in context.calibration:
        made = context.evaluate(copy, feed)
        for i, one in enumerate(sums):
            one.add(made[str(i)], made[f"{i}'"])
    found: dict[str, float] = {}
    for (name, *_), one in zip(pairs, sums, strict=True):
        if one.count:
            found[name] = max(found.get(name, 0.0), one.error)
    return found


def _with_its_twin(
    graph: Graph, node: Node, constant: Value, other: Value
) -> Sequence[tuple[Value, Value]]:
    """(An output that is read, the same of a node that reads ``other`` in place of ``constant``)"""
    inputs = [other if v is constant else v for v in node.inputs]
    twin = graph.emit_node(
        node.op, inputs, node.attrs,
        names=[""] * len(node.outputs), types=[v.type for v in node.outputs], before=node,
    )  # fmt: skip
    return [both for both in zip(node.outputs, twin.outputs, strict=True) if both[0].uses]


class _Sums:
    """Of squares, over places where the layer gives numbers."""

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
