"""Embedding tables in int8 with one scale a row: a quarter of the size, read a row at a time.

E[i, :] ~ scale[i] * Q[i, :],   scale[i] = max|E[i, :]| / 127
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.lookups import Lookup, lookups_of
from tersor.ir import DType, Graph, Value
from tersor.numerics.affine import quantize_rows, relative_error
from tersor.numerics.masks import stores_floats
from tersor.pipeline import LOSSY, Context, Pass
from tersor.structure.ties import tied_to


@dataclass(frozen=True)
class QuantizeEmbedding(Pass):
    """Options:

    min_elements: tables smaller than this stay in float.
    max_error: a table that would lose more (relative, root mean square) stays in float.
    """

    keeps = LOSSY
    min_elements: int = 4096
    max_error: float = 0.05

    def run(self, graph: Graph, context: Context) -> None:
        for owner in graph.all_graphs():
            for table in list(owner.constants.values()):
                if lookups := lookups_of(table):
                    self._quantize(table, lookups, context)

    def _quantize(self, table: Value, lookups: Sequence[Lookup], context: Context) -> None:
        reader = lookups[0].node
        held = table.encoding
        if held is None or not stores_floats(table) or table.tensor.dtype is not DType.F32:
            return
        dense = np.asarray(held.decode())
        if dense.size < self.min_elements:
            return
        if len(lookups) != len(table.uses):
            context.skip(reader, f"@{table.name} is also read by something else than a lookup")
            return
        if tied := tied_to(table):
            context.skip(
                reader, f"@{table.name} is tied to @{tied[0].name}, which is not quantized"
            )
            return
        if not np.isfinite(dense).all():
            context.skip(reader, f"@{table.name} holds NaN or infinity")
            return
        if context.spares(table.name, reader):
            return
        encoding = quantize_rows(dense)
        error = relative_error(dense, encoding.decode())
        if error > self.max_error:
            context.skip(reader, f"error {error:.3f} is above max_error {self.max_error}")
            return
        table.graph.set_encoding(table, held.with_values(encoding))
        context.rewrote()
        context.report.changed[table.name] = (f"@{table.name}", error)
        context.report.notes.append(f"@{table.name}: relative error {error:.4f}")
