"""Floats of eight and four bits: every code, and every border between two of them."""

from __future__ import annotations

import numpy as np
import pytest
from contract import run_in_tvm

from tersor.ir import DType, TensorType
from tersor.ops import TABLE
from tersor.ops.onnx_schema import TO_ONNX

pytest.importorskip("tvm", reason="the tvm backend is not installed")

SMALL = [DType.F8E4M3FN, DType.F8E4M3FNUZ, DType.F8E5M2, DType.F8E5M2FNUZ, DType.F4E2M1]


def cast(x: np.ndarray, to: DType, saturate: int) -> np.ndarray:
    """By TVM; small floats are codes there."""
    source = DType.of(x)
    graph = TABLE.graph()
    value = graph.add_input("x", TensorType(source, x.shape))
    attrs = {"to": TO_ONNX[to], "saturate": saturate}
    graph.set_outputs([graph.emit("Cast", [value], attrs)], ["y"])
    given = x.view(np.uint8) if source in SMALL else x
    (made,) = run_in_tvm(graph, {"x": given})
    return made.view(to.numpy)


def codes(dtype: DType) -> np.ndarray:
    return np.arange(2**dtype.bits, dtype=np.uint8).view(dtype.numpy)


@pytest.mark.parametrize("dtype", SMALL, ids=lambda d: d.value)
def test_every_code_is_a_number(dtype: DType) -> None:
    made = cast(codes(dtype), DType.F32, 1)
    np.testing.assert_array_equal(made, codes(dtype).astype(np.float32))


@pytest.mark.parametrize("dtype", SMALL, ids=lambda d: d.value)
def test_every_number_has_the_nearest_code(dtype: DType) -> None:
    held = codes(dtype).astype(np.float32)
    held = np.unique(held[np.isfinite(held)])
    middle = (held[1:] + held[:-1]) / 2
    beside = [np.nextafter(middle, np.float32(s * np.inf)) for s in (-1, 1)]
    x = np.concatenate([held, middle, *beside, np.array([-0.0, 1e-9, -1e-9], np.float32)])
    # The NaN of both signs may have several codes; of what is finite each has one.
    made, want = cast(x, dtype, 1), x.astype(dtype.numpy)
    np.testing.assert_array_equal(made.view(np.uint8), want.view(np.uint8))


@pytest.mark.parametrize("dtype", SMALL[:4], ids=lambda d: d.value)
def test_what_is_over_the_largest_saturates_or_does_not(dtype: DType) -> None:
    most = np.nanmax(np.where(np.isinf(f := codes(dtype).astype(np.float32)), np.nan, f))
    x = np.array([most, -most * 2, np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(
        cast(x, dtype, 1).astype(np.float32),
        np.array([most, -most, most, -most, np.nan], np.float32),
    )
    np.testing.assert_array_equal(
        cast(x, dtype, 0).astype(np.float32), x.astype(dtype.numpy).astype(np.float32)
    )
