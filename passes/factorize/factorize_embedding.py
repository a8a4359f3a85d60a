"""Factorizes an embedding table (ALBERT's factorized embedding: Lan et al. 2020).

    E[ids],  E: [V, d]   ->   A[ids] B,   A: [V, r],  B: [r, d]

30,522 x 384 at rank 128: 3.96 M weights instead of 11.7 M.  It saves size and costs time: a plain lookup is
always faster.  The factors are those of :mod:`tersor.numerics.lowrank` with the metric diag(sqrt(f)), f_i the
frequency of row i: unused words may lose more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tersor.analysis.layers import WeightedLayer, readers_of
from tersor.analysis.selection import TablePass
from tersor.errors import InvalidOption
from tersor.ir import Graph, Value
from tersor.numerics.lowrank import (
    Factors,
    count_limit,
    decompose,
    rank_of_energy,
    rank_of_ratio,
    truncate,
    weight_error,
)
from tersor.pipeline import LOSSY, Context, Skip
from tersor.statistics.frequencies import frequencies
from tersor.transforms.lookups import irreplaceable, replace_lookups


@dataclass(frozen=True)
class FactorizeEmbedding(TablePass):
    """Options:

    rank_by: meaning of ``amount``. ``ratio``: remaining share of the table's elements. ``energy``: kept
        share of the squared singular values. ``rank``: the rank.
    amount: see ``rank_by``.
    weighting: ``none``: all rows count the same; ``frequency``: by 1 + their number of lookups in
        calibration.
    min_elements: smaller tables are left alone: there is little to save.
    """

    keeps = LOSSY
    budget = frozenset({"rank_by", "amount"})
    rank_by: Literal["ratio", "energy", "rank"] = "ratio"
    amount: float = 0.5
    weighting: Literal["none", "frequency"] = "none"
    min_elements: int = field(default=1_000_000, kw_only=True)

    def against(self, layer: WeightedLayer) -> str:
        return layer.encoded or irreplaceable(layer) or super().against(layer)

    def __post_init__(self) -> None:
        if self.rank_by == "rank" and (self.amount < 1 or self.amount % 1):
            raise InvalidOption(
                f"{self.pass_name()}: rank {self.amount:g} is not a positive whole number"
            )
        if self.rank_by != "rank" and not 0 < self.amount < 1:
            raise InvalidOption(
                f"{self.pass_name()}: {self.rank_by} {self.amount:g} is not between 0 and 1 (exclusive)"
            )

    def run(self, graph: Graph, context: Context) -> None:
        if self.weighting == "frequency" and not (context.calibration and context.evaluate):
            raise InvalidOption(
                f"{self.pass_name()}: weighting frequency needs calibration inputs, and none were given"
            )
        for layer in self.layers(graph, context):
            if not context.may_rewrite():
                return
            with context.trying(layer.node):
                self._factorize(graph, layer, context)

    def _factorize(self, graph: Graph, layer: WeightedLayer, context: Context) -> None:
        table = layer.weight
        dense = layer.matrix()
        counts = np.ones(len(dense))
        if self.weighting == "frequency" and context.evaluate is not None:
            counts += frequencies(
                graph, table, readers_of(table), context.calibration, context.evaluate
            )
        factors = self._factors(table, dense, np.sqrt(counts))
        dtype = table.tensor.dtype.numpy
        tables = [table.graph.constant(f.astype(dtype), table.name) for f in (factors.a, factors.b)]

        def rows(graph: Graph, ids: Value) -> Value:
            short = graph.emit("Gather", [tables[0], ids], {"axis": 0})
            return graph.emit("tersor.Linear", [short, tables[1]])

        replace_lookups(table, rows)
        context.rewrote()
        shape = "x".join(map(str, dense.shape))
        error = weight_error(dense, factors.product)
        looked_up = ""
        if self.weighting == "frequency":
            root = np.sqrt(counts)[:, None]
            counted = weight_error(root * dense, root * factors.product)
            looked_up = f"weighted by frequency {counted:.4f}"
        context.remark(
            looked_up,
            layer=f"@{table.name}",
            method=f"rank {len(factors.b)} of {shape}",
            error=float(error),
        )

    def _factors(self, table: Value, dense: np.ndarray, root: np.ndarray) -> Factors:
        values, rows = decompose(root[:, None] * dense, None)
        if not values[0] > 0:
            raise Skip(f"@{table.name} is zero")
        v, d = dense.shape
        rank = int(self.amount)
        if self.rank_by == "ratio":
            rank = rank_of_ratio(v, d, self.amount)
        elif self.rank_by == "energy":
            rank = rank_of_energy(values, self.amount)
        if rank >= count_limit(v, d):
            raise Skip("it has no fewer elements than the table", method=f"rank {rank} of {v}x{d}")
        return truncate(dense, rows, rank)
