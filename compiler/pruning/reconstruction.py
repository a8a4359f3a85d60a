"""Refits a layer by least squares to what another model computes there.

Layers multiply rows by a matrix (``tersor.statistics.products``): linear ones, convolutions (rows are
patches), recurrent ones (rows are the inputs at each step, and x W + b the pre-activations of the gates).

A layer y = x W + b of a cut model reads x' in place of x.  Its best fit on calibration rows is

    min |x' V + c - t|^2 + r |V - W|^2,      t = x W + b  (+ s - s' where y is added to s)
    V = (X'^T X' + r)^-1 (X'^T T + r W)      on centred X' and T;      c = mean t - mean x' V

with s, s' what the layer's result is added to in the original and in the cut model: so the layer also
compensates errors from before it, and the bias those of the mean.  The ridge r, relative to the mean of the
diagonal, keeps W where calibration has no information.  If the sum is normalized, rows are weighted by what
the norm divides them by, so that errors count as users of the norm see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import has_trait
from tersor.ir import Graph, Node, Value, extract
from tersor.ops import Weight, window
from tersor.pipeline import Evaluate, Feeds
from tersor.statistics.gram import Gram
from tersor.statistics.observing import Rows
from tersor.statistics.products import columns_at, linear_weight, matrices, rows_of


@dataclass
class Moments:
    """Weighted second moments of rows x' and targets t: all that least squares needs.

    Attributes:
        xtx: f64[k + 1, k + 1], of x' with a last column of ones.
        xtt: f64[k + 1, n], with the targets.
        rows: their number.
    """

    xtx: np.ndarray
    xtt: np.ndarray
    rows: int = 0

    @staticmethod
    def of_layer(gram: Gram, matrix: np.ndarray, bias: np.ndarray | None) -> Moments:
        """Of a layer with inputs of moments ``gram`` whose targets are its own results."""
        ends = gram.total[:, None]
        xtx = np.block([[gram.xtx, ends], [ends.T, np.full((1, 1), float(gram.rows))]])
        xtt = xtx[:, :-1] @ matrix
        xtt = xtt if bias is None else xtt + np.outer(xtx[:, -1], bias)
        return Moments(xtx, xtt, gram.rows)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.xtx).all() and np.isfinite(self.xtt).all())

    def centred(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(X^T X, X^T T, mean x, mean t), the first two about the means."""
        count = self.xtx[-1, -1]
        x, t = self.xtx[-1, :-1] / count, self.xtt[-1] / count
        xtx = self.xtx[:-1, :-1] - count * np.outer(x, x)
        return xtx, self.xtt[:-1] - count * np.outer(x, t), x, t

    def solve(
        self, before: np.ndarray, kept: np.ndarray, ridge: float, *, biased: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """(V f64[kept, n], c f64[n]): the refitted layer of the inputs ``kept``.

        Args:
            before: [k, n], W.
            kept: indices of inputs.
            biased: whether the layer can have a bias; if not, c is zero.
        """
        xtx, xtt, x, t = self.centred()
        if not biased:
            xtx, xtt, x, t = self.xtx[:-1, :-1], self.xtt[:-1], 0 * x, 0 * t
        pull = ridge * max(float(np.diagonal(xtx).mean()), 1e-30)
        own = xtx[np.ix_(kept, kept)] + pull * np.eye(len(kept))
        weight = np.linalg.solve(own, xtt[kept] + pull * before[kept])
        return weight, t - x[kept] @ weight


def summand(node: Node) -> Value | None:
    """What a layer's result x W + b is added to, if that is its only use."""
    user = node.output.only_user()
    if user is None or not has_trait(user, "sum") or not _is_plain(node):
        return None
    if node.op == "Conv" and user.op != "Add":
        return None  # A row is a position; the norm is not over its channels.
    others = [v for v in user.inputs[:2] if v is not node.output]
    same = len(others) == 1 and others[0] is not None and others[0].type == node.output.type
    return others[0] if same else None


def _is_plain(node: Node) -> bool:
    """Whether the node is just a product and a bias, without activation or scaling."""
    if node.op == "tersor.Linear":
        return node.attrs["activation"] == "none"
    return node.op in ("MatMul", "Conv")


def moments(
    original: Graph,
    cut: Graph,
    name: str,
    feeds: Feeds,
    evaluate: Evaluate,
    left: np.ndarray | None = None,
    weight: Weight | None = None,
) -> Moments | None:
    """Moments for the layer with result ``name`` in both graphs: rows from ``cut``, targets from
    ``original``. None if no feed has a row.

    Args:
        left: positions of the outputs that ``cut`` still has, on the axis of the original weight; None: all.
        weight: which weight of the layer, one of :func:`products`; None: the first that can be fitted.
    """
    before_cut, after_cut = node_producing(original, name), node_producing(cut, name)
    weight = weight or linear_weight(before_cut)
    assert weight is not None
    matrix, bias = matrices(before_cut, weight)
    columns = None if left is None else columns_at(before_cut, weight, left)
    runs = [_Run(original, _inputs(before_cut, weight)), _Run(cut, _inputs(after_cut, weight))]
    user = after_cut.output.only_user()
    by_norm = user is not None and user.op != "Add"
    total: Moments | None = None
    for feed in feeds:
        before, after = (run.rows(evaluate, feed) for run in runs)
        target = before[0] @ matrix + (0 if bias is None else bias)
        addend = before[1] if len(before) > 1 else None
        if columns is not None:
            target, addend = target[:, columns], None if addend is None else addend[:, columns]
        if addend is not None and len(after) > 1:
            target = target + addend - after[1]
        scale = None
        if by_norm and len(after) > 1:
            scale = 1 / np.maximum((target + after[1]).std(axis=1, keepdims=True), 1e-6)
        total = _added(total, after[0], target, scale)
    return total if total is not None and total.xtx[-1, -1] > 0 else None


def node_producing(graph: Graph, name: str) -> Node:
    """The node of the outermost graph that produces the value ``name``."""
    return next(n for n in graph.nodes if any(v.name == name for v in n.outputs))


def _inputs(node: Node, weight: Weight) -> list[Rows]:
    """The layer's input, followed by its summand if there is one."""
    x, addend = rows_of(node, weight), summand(node)
    if addend is None:
        return [x]
    # Of a convolution: the channels at each position, as windows of size 1.
    one = None if x.window is None else window([1] * len(x.window.kernel), {})
    return [x, Rows(addend, one)]


class _Run:
    """A graph to observe rows in; the padding mask of the first ones applies to all."""

    def __init__(self, graph: Graph, wanted: list[Rows]) -> None:
        self.tapped = extract(graph, None, [rows.value for rows in wanted])
        self.wanted = wanted
        self.mask = wanted[0].mask(graph)

    def rows(self, evaluate: Evaluate, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        outputs = evaluate(self.tapped, feed)
        return [rows.of(outputs[rows.value.name], feed, self.mask) for rows in self.wanted]


def _added(
    total: Moments | None, x: np.ndarray, target: np.ndarray, scale: np.ndarray | None
) -> Moments:
    rows = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
    target = target.astype(np.float32)
    if scale is not None:
        rows, target = rows * scale.astype(np.float32), target * scale.astype(np.float32)
    # f32 within a feed: the error over a thousand rows is below the rounding of the weights.
    xtx, xtt = (rows.T @ rows).astype(np.float64), (rows.T @ target).astype(np.float64)
    if total is None:
        return Moments(xtx, xtt, len(x))
    return Moments(total.xtx + xtx, total.xtt + xtt, total.rows + len(x))
