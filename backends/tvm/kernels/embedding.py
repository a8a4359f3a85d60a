"""A sum of embeddings and its layer norm: one kernel gathers rows, adds and normalizes them.

    y[b, s] = norm(table_0[ids_0[b, s]] + table_1[ids_1[b, s]] + …) * gamma + beta

Tables are float32, or int8 with a scale per row. Ids broadcast over batch and sequence; negative ones count
from the end, and those out of range are clamped, so that no memory outside of the table is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit, rowwise
from tersor.backends.tvm.kernels.emit import Isa

GRAIN = 32  # Rows per task.


@dataclass(frozen=True)
class Table:
    """A table [rows, n], in float32 or ``quantized`` to int8 with scales; its ids are [batch, length], or 1
    in place of either."""

    rows: int
    quantized: bool
    ids_dtype: str
    per_batch: bool
    per_position: bool

    def __str__(self) -> str:
        storage = "q" if self.quantized else "f"
        axes = "b" * self.per_batch + "s" * self.per_position
        return f"{self.rows}{storage}{self.ids_dtype}{axes}"


@dataclass(frozen=True)
class EmbeddingNorm:
    """The specialization of a kernel."""

    n: int
    epsilon: float
    tables: tuple[Table, ...]

    @property
    def name(self) -> str:
        """Unique among kernels."""
        epsilon = emit.name_part(self.epsilon)
        return "_".join(["embedding_norm", str(self.n), epsilon, *map(str, self.tables)])


def kernel(spec: EmbeddingNorm, isa: Isa) -> tirx.PrimFunc:
    """The kernel of ``spec``.

    Operands: float32[2, n] gamma and beta; for each table its ids, the table, and float32[rows] scales where
    it is int8.
    Result: float32[batch, length, n].
    """
    return emit.function(spec.name, lambda: _emit(spec, isa))


def _emit(spec: EmbeddingNorm, isa: Isa) -> None:
    n, lanes = spec.n, isa.lanes
    batch, length = emit.size("batch"), emit.size("length")
    norm = emit.parameter("norm", (2, n), "float32")
    operands = []
    for i, table in enumerate(spec.tables):
        shape = (batch if table.per_batch else 1, length if table.per_position else 1)
        ids = emit.parameter(f"ids{i}", shape, table.ids_dtype)
        dtype = "int8" if table.quantized else "float32"
        values = emit.parameter(f"table{i}", (table.rows, n), dtype)
        scale = emit.parameter(f"scale{i}", (table.rows,), "float32") if table.quantized else None
        operands.append((table, ids, values, scale))
    out = emit.parameter("out", (batch, length, n), "float32")

    def row(b: Any, s: Any) -> None:
        rows = []
        for table, ids, values, scale in operands:
            row_id = emit.cast(
                ids[b if table.per_batch else 0, s if table.per_position else 0], "int64"
            )
            from_start = T.Select(row_id < 0, row_id + table.rows, row_id)
            at = emit.bind(T.max(T.min(from_start, T.int64(table.rows - 1)), T.int64(0)))
            factor = None if scale is None else emit.bind(emit.splat(scale[at], lanes))
            rows.append((values, at, factor))

        def read(c: Any) -> Any:
            total: Any = None
            for values, at, factor in rows:
                value = emit.load(values, at, c, lanes=lanes)
                if factor is not None:
                    value = emit.cast(value, f"float32x{lanes}") * factor
                total = value if total is None else total + value
            return total

        rowwise.for_each_vector(isa, n, lambda c, i: emit.store(out, read(c), b, s, c, lanes=lanes))
        rowwise.normalize(
            isa, "layer", n, spec.epsilon,
            lambda c: emit.load(out, b, s, c, lanes=lanes),
            lambda c: emit.load(norm, 0, c, lanes=lanes),
            lambda c: emit.load(norm, 1, c, lanes=lanes),
            lambda c, value: emit.store(out, value, b, s, c, lanes=lanes),
        )  # fmt: skip

    rows = batch * length
    with T.parallel(0, T.ceildiv(rows, T.int64(GRAIN))) as task, T.serial(0, GRAIN) as i:
        at = emit.bind(task * GRAIN + i)
        with T.If(at < rows), T.Then():
            row(emit.bind(T.floordiv(at, length)), emit.bind(at % length))
