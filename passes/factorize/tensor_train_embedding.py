"""An embedding table as a tensor train of three cores (Khrulkov et al. 2019, Tensorized Embedding Layers).

Rows and columns are counted with three digits each, i = (i1, i2, i3) and j = (j1, j2, j3), and

    E[i, j] ~ G1[i1, j1, :] G2[:, i2, j2, :] G3[:, i3, j3]

30,522 x 384 as (31 x 6) x (31 x 8) x (32 x 8): at rank 32, 0.27 M numbers instead of 11.7 M.  A lookup
becomes three, by the digits of the id, and two small products a row.  It buys size, and costs time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from tersor.analysis.layers import WeightedLayer
from tersor.analysis.match import dims, dtype
from tersor.analysis.selection import TablePass
from tersor.errors import InvalidOption
from tersor.ir import Graph, Value
from tersor.numerics.lowrank import weight_error
from tersor.numerics.tensors import largest, tensor_train, train_product, train_ranks
from tersor.pipeline import LOSSY, Context, Skip
from tersor.transforms.lookups import replace_lookups, unfit


@dataclass(frozen=True)
class TensorTrainEmbedding(TablePass):
    """Options:

    ratio: the share of a table's numbers that is left, at most.
    min_elements: tables smaller than this stay: little is won there.
    """

    keeps = LOSSY
    budget = frozenset({"ratio"})
    ratio: float = 0.1
    min_elements: int = field(default=1_000_000, kw_only=True)

    def against(self, layer: WeightedLayer) -> str:
        return layer.encoded or unfit(layer) or super().against(layer)

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise InvalidOption(
                f"{self.pass_name()}: ratio {self.ratio:g} does not lie between 0, which leaves nothing, "
                "and 1, which takes nothing away"
            )

    def run(self, graph: Graph, context: Context) -> None:
        for layer in self.layers(graph, context):
            if not context.may_rewrite():
                return
            with context.trying(layer.node):
                train = self._train(layer.matrix())
                cores = train.tables(layer.weight)
                replace_lookups(layer.weight, partial(train.emit, held=cores))
                context.rewrote()
                train.tell(layer.name, context)

    def _train(self, dense: np.ndarray) -> _Train:
        rows, columns = row_digits(len(dense)), column_digits(dense.shape[1])
        shape = [v * d for v, d in zip(rows, columns, strict=True)]

        def fits(most: int) -> bool:
            bounds = [1, *train_ranks(shape, most), 1]
            sizes = zip(bounds, shape, bounds[1:], strict=False)
            return sum(r * size * s for r, size, s in sizes) <= self.ratio * dense.size

        most = largest(fits, max(train_ranks(shape)))
        if not most:
            raise Skip(f"not even rank 1 has as few as {self.ratio:g} of its numbers")
        padded = np.zeros((int(np.prod(rows)), dense.shape[1]))
        padded[: len(dense)] = dense
        digits = padded.reshape(*rows, *columns).transpose(0, 3, 1, 4, 2, 5).reshape(shape)
        cores = tensor_train(digits, train_ranks(shape, most))
        return _Train(dense, rows, columns, cores)


@dataclass(frozen=True)
class _Train:
    """The cores [r, v x d, s] for a table, with the digits v of its rows and d of its columns."""

    dense: np.ndarray
    rows: tuple[int, int, int]
    columns: tuple[int, int, int]
    cores: list[np.ndarray]

    def tell(self, name: str, context: Context) -> None:
        """Ranks and error of the table ``name``."""
        apart = train_product(self.cores).reshape(
            [n for pair in zip(self.rows, self.columns, strict=True) for n in pair]
        )
        product = apart.transpose(0, 2, 4, 1, 3, 5).reshape(-1, self.dense.shape[1])
        error = weight_error(self.dense, product[: len(self.dense)])
        ranks = " and ".join(str(core.shape[0]) for core in self.cores[1:])
        left = sum(core.size for core in self.cores) / self.dense.size
        shape = "x".join(map(str, self.dense.shape))
        method = f"{shape} at ranks {ranks}, {left:.3f} of its numbers"
        context.remark(layer=f"@{name}", method=method, error=float(error))

    def tables(self, table: Value) -> list[Value]:
        """The cores as tables [v, r x d x s], constants beside ``table``."""
        found = []
        for core, v, d in zip(self.cores, self.rows, self.columns, strict=True):
            r, _, s = core.shape
            by_row = core.reshape(r, v, d, s).transpose(1, 0, 2, 3).reshape(v, -1)
            held = by_row.astype(table.tensor.dtype.numpy)
            found.append(table.graph.constant(held, table.name))
        return found

    def emit(self, graph: Graph, ids: Value, held: list[Value]) -> Value:
        """Rows of the table, [..., d]. Ids below zero count from its end."""
        lead = len(dims(ids) or ())
        _, second, third = self.rows
        r, s = len(self.cores[1]), len(self.cores[2])
        d1, d2, d3 = self.columns

        def number(n: int) -> Value:
            kind = dtype(ids)
            assert kind is not None
            return graph.constant(np.array(n, kind.numpy), "digit")

        def shaped(value: Value, *ends: int) -> Value:
            target = np.array([*[0] * lead, *ends], np.int64)
            return graph.emit("Reshape", [value, graph.constant(target, "shape")])

        whole = graph.emit("Mod", [ids, number(len(self.dense))])
        upper = graph.emit("Div", [whole, number(third)])
        digits = [
            graph.emit("Div", [upper, number(second)]),
            graph.emit("Mod", [upper, number(second)]),
            graph.emit("Mod", [whole, number(third)]),
        ]
        found = [
            graph.emit("Gather", [core, digit], {"axis": 0})
            for core, digit in zip(held, digits, strict=True)
        ]
        left = graph.emit("MatMul", [shaped(found[0], d1, r), shaped(found[1], r, d2 * s)])
        rows = graph.emit("MatMul", [shaped(left, d1 * d2, s), shaped(found[2], s, d3)])
        return shaped(rows, d1 * d2 * d3)


def row_digits(rows: int) -> tuple[int, int, int]:
    """Three numbers, alike, whose product is at least ``rows`` and little more."""
    first = max(round(rows ** (1 / 3)), 1)
    second = max(round((rows / first) ** 0.5), 1)
    return first, second, -(-rows // (first * second))


def column_digits(columns: int) -> tuple[int, int, int]:
    """Three numbers, as alike as can be, whose product is ``columns``."""
    ways = [
        (a, b, columns // (a * b))
        for a in range(1, columns + 1)
        if columns % a == 0
        for b in range(a, columns // a + 1)
        if columns // a % b == 0 and b <= columns // (a * b)
    ]
    return min(ways, key=lambda way: way[2] - way[0])
