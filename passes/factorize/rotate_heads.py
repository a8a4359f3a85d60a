"""Sorts lanes of attention heads by importance, by a lossless change of basis.

A head's scores and its part of the result are products of two matrices, and the basis between them is
arbitrary.  With A = [Wq; bq], B = [Wk; bk] (the bias belongs to an input that is always 1):

    scores = x A B^T z^T = (x A M) (z B M^-T)^T            y O = p (z V) O = p (z V M) (M^-1 O)

M is chosen so that the first lanes are the most important.  With x^T x = L^T L, the second moments of the
inputs on calibration data, a singular value decomposition gives

    L A (L' B)^T = U S W^T        A M = L^-1 U S^1/2        B M^-T = L'^-1 W S^1/2
    L'' O        = U S W^T        M = L''^-1 U S^1/2        M^-1 O = S^1/2 W^T           L''^T L'' = y^T y

so the error without the last lanes, the sum of all |scores - scores'|^2 or |y O - y' O'|^2, is the sum of
their S^2, and no product of that rank is nearer (Eckart and Young 1936; whitening as in Wang et al. 2024,
SVD-LLM).  A softmax is invariant to what is the same for all keys, so L' is about the mean of z, unless there
is a softcap.  Without calibration L = L' = 1, and V O is decomposed as A B^T is.

Query heads that share a key head share its basis: their A are stacked, as are the O^T of those that share
values, under the sum of their moments (optimal if these are equal).  The bias of the values is rotated with
them and not moved behind O, where it would also reach queries without any key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.ir import Dense, Graph, Node, TensorType, Value
from tersor.numerics.lowrank import whitening
from tersor.ops.families.attention import head_counts
from tersor.pipeline import ROUNDING, Context, Pass, Skip
from tersor.statistics.gram import Gram, grams
from tersor.statistics.observing import TAPS

_OPERANDS = ("queries", "keys", "values")


@dataclass(frozen=True)
class RotateHeads(Pass):
    """No options."""

    keeps = ROUNDING

    def run(self, graph: Graph, context: Context) -> None:
        attentions = [node for node in graph.walk() if node.op == "Attention"]
        for start in range(0, len(attentions), TAPS):
            group = attentions[start : start + TAPS]
            moments = _observed(graph, group, context)
            for i, node in enumerate(group, start):
                context.progress(i, len(attentions), f"rotating the heads of {node.label}")
                for rotate in (_rotate_scores, _rotate_values):
                    self._try(rotate, node, moments, context)

    def _try(self, rotate: _Rotate, node: Node, moments: _Moments, context: Context) -> None:
        if not context.may_rewrite():
            return
        with context.trying(node):
            description = rotate(node, moments)
            context.rewrote()
            context.remark(layer=node.scope or node.output.name, method=description)


# -- selection -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """A linear layer as one matrix.

    Attributes:
        matrix: f64[k, n], or f64[k + 1, n] with the bias as the last row.
    """

    node: Node
    matrix: np.ndarray

    @property
    def biased(self) -> bool:
        return self.node.input(2) is not None

    def store(self, matrix: np.ndarray) -> None:
        """Sets its weight, and its bias if it has one, to those in ``matrix``."""
        parts = [matrix[:-1], matrix[-1]] if self.biased else [matrix]
        for operand, part in enumerate(parts, 1):
            self._set(operand, part)

    def _set(self, operand: int, array: np.ndarray) -> None:
        graph, old = self.node.graph, self.node.inputs[operand]
        assert graph is not None and old is not None
        encoding = Dense(array.astype(old.tensor.dtype.numpy))
        if len(old.uses) == 1:
            old.graph.set_encoding(old, encoding)
        else:  # A bias of zeros that several layers share.
            graph.set_input(self.node, operand, graph.constant(encoding, old.name))


def _producer(node: Node, index: int) -> _Layer:
    """The linear layer that produces an operand of an attention and has no other users.

    Raises:
        Skip: there is none.
    """
    value, what = node.inputs[index], _OPERANDS[index]
    assert value is not None
    linear = value.producer
    if linear is None or linear.op != "tersor.Linear":
        source = "an input" if linear is None else linear.label
        raise Skip(f"its {what} come from {source}, not from a linear layer")
    if linear.attrs["activation"] != "none":
        raise Skip(f"its {what} come from a linear layer with an activation")
    if value.is_output or len(value.uses) > 1:
        raise Skip(f"its {what} have another user")
    return _layer(linear, f"of its {what}")


def _layer(node: Node, what: str) -> _Layer:
    weight, bias = node.inputs[1], node.input(2)
    assert weight is not None
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if not value.is_dense:
            raise Skip(f"the {name} {what} is not a dense constant")
        if not np.isfinite(value.numpy()).all():
            raise Skip(f"the {name} {what} contains NaN or infinity")
    if len(weight.uses) > 1:
        raise Skip(f"the weight {what} has other users")
    matrix = weight.numpy().astype(np.float64)
    if bias is not None:
        row = np.broadcast_to(bias.numpy().astype(np.float64), matrix.shape[1:])
        matrix = np.concatenate([matrix, row[None]])
    return _Layer(node, matrix)


def _counts(node: Node) -> tuple[int, int]:
    """(query heads, key heads)."""
    counts, q = head_counts(node), node.inputs[0]
    assert q is not None
    if counts is None or q.tensor.rank != 3:
        raise Skip("its operands are not [batch, length, hidden]")
    return counts


# -- calibration -----------------------------------------------------------------------------------

_Moments = dict[Value, Gram]


def _observed(graph: Graph, nodes: Sequence[Node], context: Context) -> _Moments:
    """Moments of the inputs of query and key layers, and of results; empty without calibration."""
    if not context.calibration or context.evaluate is None:
        return {}
    producers = [v.producer for n in nodes for v in n.inputs[:2] if v is not None]
    reads = [p.inputs[0] for p in producers if p is not None and p.op == "tersor.Linear"]
    tapped = [x for x in (*reads, *(n.output for n in nodes)) if x is not None and x.graph is graph]
    floats = [x for x in tapped if isinstance(x.type, TensorType) and x.type.dtype.is_float]
    return grams(graph, floats, context.calibration, context.evaluate)


def _metric(layer: _Layer, moments: _Moments, *, centred: bool = False) -> np.ndarray:
    """L of the module for a layer's input, f64[m, m] for m rows of its matrix."""
    x = layer.node.inputs[0]
    gram = moments.get(x) if x is not None else None
    size = len(layer.matrix)
    if gram is None:
        return np.eye(size)
    total, second = gram.total, gram.xtx
    if layer.biased:
        total = np.append(total, gram.rows)
        second = np.block([[second, gram.total[:, None]], [total]])
    if centred:
        second = second - np.outer(total, total) / max(gram.rows, 1)
    _check_finite(second)
    return whitening(second)


# -- rotating --------------------------------------------------------------------------------------


def _rotate_scores(node: Node, moments: _Moments) -> str:
    heads, groups = _counts(node)
    _refuse_cache(node, 4, 1, "keys")
    q, k = _producer(node, 0), _producer(node, 1)
    centred = not node.attrs.get("softcap")
    lq, lk = _metric(q, moments), _metric(k, moments, centred=centred)
    # [k, heads * d] -> [groups, heads of a group * k, d]
    each = heads // groups
    a = (lq @ q.matrix).reshape(len(lq), groups, each, -1).transpose(1, 2, 0, 3)
    b = (lk @ k.matrix).reshape(len(lk), groups, -1).transpose(1, 0, 2)
    left, right, values = balanced(a.reshape(groups, each * len(lq), -1), b)
    left = left.reshape(groups, each, len(lq), -1).transpose(2, 0, 1, 3)
    _store(
        (q, np.linalg.solve(lq, left.reshape(len(lq), -1))),
        (k, np.linalg.solve(lk, right.transpose(1, 0, 2).reshape(len(lk), -1))),
    )
    return _describe("queries and keys", values)


def _rotate_values(node: Node, moments: _Moments) -> str:
    heads, groups = _counts(node)
    _refuse_cache(node, 5, 2, "values")
    v, y = _producer(node, 2), node.output
    reader = y.only_user()
    if reader is None or reader.op != "tersor.Linear" or y.is_output or len(y.uses) > 1:
        raise Skip("its result has other users than one linear layer")
    o = _layer(reader, "behind it")
    weight = o.matrix[:-1] if o.biased else o.matrix
    n, each = weight.shape[1], heads // groups
    # [heads * d, n] -> [groups, heads of a group * n, d]
    b = weight.reshape(groups, each, -1, n).transpose(0, 1, 3, 2).reshape(groups, each * n, -1)
    a = v.matrix.reshape(len(v.matrix), groups, -1).transpose(1, 0, 2)
    if y in moments:
        metric = _of_heads(moments.pop(y).xtx, heads, groups)  # Popped: rotation changes the lanes.
        left, right, values = balanced(metric, b)
        left = a @ np.linalg.solve(metric, left)
    else:
        left, right, values = balanced(a, b)
    behind = right.reshape(groups, each, n, -1).transpose(0, 1, 3, 2).reshape(weight.shape)
    if o.biased:
        behind = np.concatenate([behind, o.matrix[-1:]])
    _store((v, left.transpose(1, 0, 2).reshape(v.matrix.shape)), (o, behind))
    return _describe("values", values)


def _of_heads(moments: np.ndarray, heads: int, groups: int) -> np.ndarray:
    """L'' of each group, f64[groups, d, d], from the moments f64[heads * d, heads * d] of a result."""
    _check_finite(moments)
    d = len(moments) // heads
    own = np.einsum("hihj->hij", moments.reshape(heads, d, heads, d))
    return np.stack([whitening(m) for m in own.reshape(groups, -1, d, d).sum(axis=1)])


def _check_finite(moments: np.ndarray) -> None:
    if not np.isfinite(moments).all():
        raise Skip("the inputs of its layers contain NaN or infinity on calibration data")


def balanced(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A', B', S) of A[..., m, d] and B[..., n, d]:  A' B'^T = A B^T = U S W^T,  A' = U S^1/2,  B' = W S^1/2.

    S f64[..., d] is descending; if the product has a lower rank, the last lanes are zero. By QR of A and B,
    so that the SVD is only of a d x d matrix.
    """
    (qa, ra), (qb, rb) = np.linalg.qr(a), np.linalg.qr(b)
    u, s, wt = np.linalg.svd(ra @ rb.swapaxes(-1, -2), full_matrices=False)
    s = np.where(s > np.finfo(np.float64).eps * a.shape[-1] * s[..., :1], s, 0)
    root = np.sqrt(s)[..., None, :]
    missing = [(0, 0)] * (a.ndim - 1) + [(0, a.shape[-1] - s.shape[-1])]
    left, right = qa @ u * root, qb @ wt.swapaxes(-1, -2) * root
    return np.pad(left, missing), np.pad(right, missing), np.pad(s, missing[1:])


_Rotate = Callable[[Node, _Moments], str]


def _refuse_cache(node: Node, past: int, present: int, what: str) -> None:
    returned = len(node.outputs) > present and (
        node.outputs[present].uses or node.outputs[present].is_output
    )
    if node.input(past) is not None or returned:
        raise Skip(f"its {what} are cached, and the cache would see the change of basis")


def _store(*layers: tuple[_Layer, np.ndarray]) -> None:
    """Stores all matrices.

    Raises:
        Skip: one overflows its dtype; then nothing is changed.
    """
    for layer, matrix in layers:
        weight = layer.node.inputs[1]
        assert weight is not None
        dtype = weight.tensor.dtype
        with np.errstate(over="ignore"):
            if not np.isfinite(matrix.astype(dtype.numpy)).all():
                raise Skip(f"its rotated weights overflow {dtype.value}")
    for layer, matrix in layers:
        layer.store(matrix)


def _describe(what: str, values: np.ndarray) -> str:
    squares = values**2
    half = max(1, squares.shape[-1] // 2)
    share = float(squares[..., :half].sum() / max(squares.sum(), np.finfo(np.float64).tiny))
    return f"{half} of {squares.shape[-1]} lanes of {what} carry {share:.2%} of the energy"
