"""The kernel of embeddings and their norm against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import Machine, call, compiled, on

from tersor.backends.tvm.kernels import embedding
from tersor.backends.tvm.kernels.embedding import EmbeddingNorm, Table

N = 48
SPECS = {
    "words, positions and a kind": EmbeddingNorm(
        N, 1e-12,
        (
            Table(50, True, "int64", True, True),
            Table(40, False, "int32", False, True),
            Table(2, True, "int64", True, False),
        ),
    ),
    "one for all": EmbeddingNorm(
        N, 1e-5, (Table(9, False, "int64", False, False), Table(7, True, "int32", True, True))
    ),
}  # fmt: skip


@on(["vnni", "widen8", "lane4"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_embeddings_agree_with_numpy(machine: Machine, spec: EmbeddingNorm) -> None:
    """Negative ids, and ids out of range, which are clamped: tables end at an inaccessible page."""
    for batch, length in ((1, 1), (3, 7), (2, 33), (0, 4)):
        rng = np.random.default_rng(length)
        norm = rng.standard_normal((2, N)).astype(np.float32)
        operands, total = [norm], np.zeros((batch, length, N))
        for table in spec.tables:
            shape = (batch if table.per_batch else 1, length if table.per_position else 1)
            ids = rng.integers(-2 * table.rows, 2 * table.rows, shape).astype(table.ids_dtype)
            ids.reshape(-1)[:2] = np.array([-(2**31), 2**31 - 1])[: ids.size]
            held = rng.standard_normal((table.rows, N)).astype(np.float32)
            operands.append(ids)
            if table.quantized:
                scale = rng.uniform(0.01, 0.02, table.rows).astype(np.float32)
                held = rng.integers(-128, 128, held.shape).astype(np.int8)
                operands += [held, scale]
                held = held.astype(np.float64) * scale[:, None]
            else:
                operands.append(held)
            wide = ids.astype(np.int64)
            at = np.clip(np.where(wide < 0, wide + table.rows, wide), 0, table.rows - 1)
            total = total + held[at]
        out = np.full((batch, length, N), 7, np.float32)
        (got,) = call(compiled(embedding.kernel, spec, machine), operands, [out])
        centred = total - total.mean(-1, keepdims=True)
        want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + spec.epsilon)
        # Numbers of size one or so, rounded a few times.
        np.testing.assert_allclose(got, want * norm[0] + norm[1], rtol=0, atol=1e-5)


def test_kernel_names_are_unique() -> None:
    tables = [
        Table(rows, quantized, ids, batch, position)
        for rows in (5, 50) for quantized in (False, True) for ids in ("int32", "int64")
        for batch in (False, True) for position in (False, True)
    ]  # fmt: skip
    specs = [EmbeddingNorm(n, e, (t,)) for n in (16, 32) for e in (1e-5, 1.2e-5) for t in tables]
    assert len({s.name for s in specs}) == len(specs)
    assert all(s.name.isidentifier() for s in specs)
