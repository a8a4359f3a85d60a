"""decode() against numpy written out."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.ir import Affine, Dense, DType, TensorType

STORAGE = [np.int8, np.uint8, np.int16, np.int32, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2]


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    info = ml_dtypes.iinfo(dtype)
    low, high = max(int(info.min), -(2**20)), min(int(info.max), 2**20)
    return rng.integers(low, high + 1, shape).astype(dtype)


def decoded_by_loops(held: Affine) -> np.ndarray:
    out = np.empty(held.values.shape, held.scale.dtype)
    for index in itertools.product(*map(range, held.values.shape)):
        if held.axis is None:
            at: tuple[int, ...] = ()
        elif held.block:
            at = tuple(n // held.block if i == held.axis else n for i, n in enumerate(index))
        else:
            at = (index[held.axis],)
        out[index] = (int(held.values[index]) - int(held.zero_point[at])) * held.scale[at]
    return out


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    axis=st.none() | st.integers(0, 2),
    block=st.integers(0, 3),
    storage=st.sampled_from(STORAGE),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 1000),
)
def test_affine_decodes_as_its_formula_says(
    shape: tuple[int, ...], axis: int | None, block: int, storage: type, dtype: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    axis = None if axis is None else axis % len(shape)
    parameters: tuple[int, ...] = ()
    if axis is not None:
        parameters = (
            tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
            if block
            else (shape[axis],)
        )
    scale = rng.uniform(0.01, 2, parameters).astype(dtype)
    held = Affine(
        integers(rng, shape, storage),
        np.asarray(scale),
        integers(rng, parameters, storage),
        axis,
        block,
    )
    assert held.type == TensorType(DType.of(np.dtype(dtype)), shape)
    assert held.decode().dtype == dtype
    # One multiplication of the same two numbers: exactly equal.
    np.testing.assert_array_equal(held.decode(), decoded_by_loops(held))


def test_packed_values_count_by_their_bits() -> None:
    zeros = np.zeros((3, 5), ml_dtypes.int4)
    scale, zero = np.ones(5, np.float32), np.zeros(5, ml_dtypes.int4)
    assert Affine(zeros, scale, zero, axis=1).nbytes == 8 + 20  # 15 nibbles; symmetric
    shifted = Affine(zeros, scale, np.ones(5, ml_dtypes.int4), axis=1)
    assert shifted.nbytes == 8 + 20 + 3
    assert Dense(zeros).nbytes == 8
    assert Dense(np.zeros((3, 5), np.float32)).nbytes == 60


def test_dense_is_the_array_itself() -> None:
    array = np.arange(6.0).reshape(2, 3)
    assert Dense(array).decode() is array
    assert Dense(array).type == TensorType(DType.F64, (2, 3))


def test_digests_tell_contents_shapes_types_and_forms_apart() -> None:
    q = np.arange(4, dtype=np.int8)
    one, zero = np.array(1, np.float32), np.array(0, np.int8)
    held = [
        Dense(q),
        Dense(q + 1),
        Dense(q.reshape(2, 2)),
        Dense(q.astype(np.uint8)),
        Dense(np.array(["a", "b"], object)),
        Dense(np.array(["ab", ""], object)),
        Affine(q, one, zero),
        Affine(q, one * 2, zero),
        Affine(q, one, zero + 1),
        Affine(q, np.ones(4, np.float32), np.zeros(4, np.int8), axis=0),
        Affine(q, one, zero, bits=7),
    ]
    assert len({h.digest for h in held}) == len(held)
    assert Dense(q).digest == Dense(q.copy()).digest
    assert Dense(q[::-1][::-1]).digest == Dense(q).digest


@pytest.mark.parametrize(
    ("axis", "block", "shape", "message"),
    [
        (None, 0, (4,), r"shape \(\), got \(4,\)"),
        (1, 0, (3,), r"shape \(4,\), got \(3,\)"),
        (0, 2, (3, 4), r"shape \(2, 4\), got \(3, 4\)"),
        (2, 0, (4,), r"axis 2 is outside of shape \(3, 4\)"),
    ],
)
def test_parameters_of_another_shape_are_refused(
    axis: int | None, block: int, shape: tuple[int, ...], message: str
) -> None:
    values = np.zeros((3, 4), np.int8)
    with pytest.raises(ValueError, match=message):
        Affine(values, np.ones(shape, np.float32), np.zeros(shape, np.int8), axis, block)


def test_a_zero_point_of_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="zero point is uint8, values are int8"):
        Affine(np.zeros(3, np.int8), np.array(1, np.float32), np.array(0, np.uint8))
