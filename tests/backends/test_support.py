"""What backends say that they have kernels for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tersor.backends import ort
from tersor.ir import Affine, Dense, Encoding
from tersor.numerics.affine import ActivationForm, quantize_rows, quantize_weight

FLOAT, INT8, ROWS = ActivationForm
W = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
DENSE, COLUMNS, TABLE = Dense(W), quantize_weight(W, 1), quantize_rows(W)
ZERO_POINTS = Affine(COLUMNS.values, COLUMNS.scale, np.full(4, 3, np.int8), 1)
LINEAR, EMBEDDING = "tersor.Linear", "tersor.EmbeddingLayerNormalization"


@pytest.mark.parametrize(
    ("op", "encoding", "activations", "on_ort", "on_tvm"),
    [
        (LINEAR, DENSE, FLOAT, None, None),
        (LINEAR, COLUMNS, INT8, None, "not tersor.Linear of int8 activations"),
        (LINEAR, COLUMNS, ROWS, "one scale per row", None),
        (LINEAR, ZERO_POINTS, INT8, None, "int8 activations"),
        (LINEAR, ZERO_POINTS, ROWS, "one scale per row", "int8: it has zero points"),
        (LINEAR, TABLE, INT8, "one scale per column only", "int8 activations"),
        (LINEAR, COLUMNS, FLOAT, "no kernel of tersor.Linear", "no kernel of tersor.Linear"),
        (LINEAR, DENSE, ROWS, "one scale per row", "int8: it is dense"),
        ("Gather", TABLE, FLOAT, None, None),
        (EMBEDDING, TABLE, FLOAT, None, None),
        (EMBEDDING, ZERO_POINTS, FLOAT, None, "no kernel"),
        ("Conv", COLUMNS, FLOAT, "no kernel of Conv", "no kernel of Conv"),
        ("tersor.Nothing", DENSE, FLOAT, "no form of tersor.Nothing", "no lowering"),
    ],
)
def test_what_there_are_kernels_for(
    op: str, encoding: Encoding, activations: ActivationForm, on_ort: str | None, on_tvm: str | None
) -> None:
    check(ort.supports, op, encoding, activations, on_ort)
    tvm = pytest.importorskip("tersor.backends.tvm", reason="TVM is not installed")
    check(tvm.supports, op, encoding, activations, on_tvm)


def check(
    supports: Callable[..., str | None],
    op: str,
    encoding: Encoding,
    activations: ActivationForm,
    reason: str | None,
) -> None:
    told = supports(op, [encoding], activations)
    assert told is None if reason is None else told is not None and reason in told, told
