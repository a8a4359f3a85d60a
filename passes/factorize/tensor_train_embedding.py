"""Decomposes an embedding table into a tensor train of three cores (Khrulkov et al. 2019, Tensorized
Embedding Layers).

Row and column indices have three digits each, i = (i1, i2, i3) and j = (j1, j2, j3), and

    E[i, j] ~ G1[i1, j1, :] G2[:, i2, j2, :] G3[:, i3, j3]

30,522 x 384 as (31 x 6) x (31 x 8) x (32 x 8): at rank 32, 0.27 M elements instead of 11.7 M.  A lookup
becomes three, one per digit of the id, and two small products per row.  It saves size and costs time.
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
from tersor.transforms.lookups import irreplaceable, replace_lookups


@dataclass(frozen=True)
class TensorTrainEmbedding(TablePass):
    """Options:

    ratio: remaining share of a table's elements, at most.
    min_elements: smaller tables are left alone: there is little to save.
    """

    keeps = LOSSY
    budget = frozenset({"ratio"})
    ratio: float = 0.1
    min_elements: int = field(default=1_000_000, kw_only=True)

    def against(self, layer: WeightedLayer) -> str:
        return layer.encoded or irreplaceable(layer) or super().against(layer)

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise InvalidOption(
                f"{self.pass_name()}: ratio {self.ratio:g} is not between 0 and 1 (exclusive)"
            )

    def run(self, graph: Graph, context: Context) -> None:
        for layer in self.layers(graph, context):
            if not context.may_rewrite():
                return
            with context.trying(layer.node):
                train = self._train(layer.matrix())
                cores = train.tables(layer.weight)
                replace_lookups(layer.weight, partial(train.emit, tables=cores))
                context.rewrote()
                train.report(layer.name, context)

    def _train(self, dense: np.ndarray) -> _Train:
        rows, columns = row_digits(len(dense)), column_digits(dense.shape[1])
        shape = [v * d for v, d in zip(rows, columns, strict=True)]

        def fits(most: int) -> bool:
            bounds = [1, *train_ranks(shape, most), 1]
            sizes = zip(bounds, shape, bounds[1:], strict=False)
            return sum(r * size * s for r, size, s in sizes) <= self.ratio * dense.size

        most = largest(fits, max(train_ranks(shape)))
        if not most:
            raise Skip(f"even rank 1 has more than {self.ratio:g} of its elements")
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

    def report(self, name: str, context: Context) -> None:
        """Reports ranks and error for the table ``name``."""
        digits = train_product(self.cores).reshape(
            [n for pair in zip(self.rows, self.columns, strict=True) for n in pair]
        )
        product = digits.transpose(0, 2, 4, 1, 3, 5).reshape(-1, self.dense.shape[1])
        error = weight_error(self.dense, product[: len(self.dense)])
        ranks = " and ".join(str(core.shape[0]) for core in self.cores[1:])
        left = sum(core.size for core in self.cores) / self.dense.size
        shape = "x".join(map(str, self.dense.shape))
        method = f"{shape} at ranks {ranks}, {left:.3f} of its elements"
        context.remark(layer=f"@{name}", method=method, error=float(error))

    def tables(self, table: Value) -> list[Value]:
        """The cores as tables [v, r x d x s], constants in the graph of ``table``."""
        tables = []
        for core, v, d in zip(self.cores, self.rows, self.columns, strict=True):
            r, _, s = core.shape
            by_row = core.reshape(r, v, d, s).transpose(1, 0, 2, 3).reshape(v, -1)
            rows = by_row.astype(table.tensor.dtype.numpy)
            tables.append(table.graph.constant(rows, table.name))
        return tables

    def emit(self, graph: Graph, ids: Value, tables: list[Value]) -> Value:
        """Rows of the table, [..., d]. Negative ids count from its end."""
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
        slices = [
            graph.emit("Gather", [core, digit], {"axis": 0})
            for core, digit in zip(tables, digits, strict=True)
        ]
        left = graph.emit("MatMul", [shaped(slices[0], d1, r), shaped(slices[1], r, d2 * s)])
        rows = graph.emit("MatMul", [shaped(left, d1 * d2, s), shaped(slices[2], s, d3)])
        return shaped(rows, d1 * d2 * d3)


def row_digits(rows: int) -> tuple[int, int, int]:
    """Three similar factors of a number slightly above ``rows``."""
    first = max(round(rows ** (1 / 3)), 1)
    second = max(round((rows / first) ** 0.5), 1)
    return first, second, -(-rows // (first * second))


def column_digits(columns: int) -> tuple[int, int, int]:
    """The three most similar factors of ``columns``."""
    ways = [
        (a, b, columns // (a * b))
        for a in range(1, columns + 1)
        if columns % a == 0
        for b in range(a, columns // a + 1)
        if columns // a % b == 0 and b <= columns // (a * b)
    ]
    return min(ways, key=lambda way: way[2] - way[0])
