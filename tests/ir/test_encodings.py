"""decode() against explicit numpy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import InvalidGraph
from tersor.ir import (
    Affine,
    Dense,
    DType,
    Masked,
    TensorType,
    parse,
    print_graph,
    verify,
    weights_of,
)
from tersor.ops import TABLE

STORAGE = [np.int8, np.uint8, np.int16, np.int32, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2]


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    info = ml_dtypes.iinfo(dtype)
    low, high = max(int(info.min), -(2**20)), min(int(info.max), 2**20)
    return rng.integers(low, high + 1, shape).astype(dtype)


def decoded_by_loops(encoding: Affine) -> np.ndarray:
    out = np.empty(encoding.values.shape, encoding.scale.dtype)
    for index in itertools.product(*map(range, encoding.values.shape)):
        if encoding.axis is None:
            at: tuple[int, ...] = ()
        elif encoding.block:
            at = tuple(
                n // encoding.block if i == encoding.axis else n for i, n in enumerate(index)
            )
        else:
            at = (index[encoding.axis],)
        out[index] = (int(encoding.values[index]) - int(encoding.zero_point[at])) * encoding.scale[
            at
        ]
    return out


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    axis=st.none() | st.integers(0, 2),
    block=st.integers(0, 3),
    storage=st.sampled_from(STORAGE),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 1000),
)
def test_affine_decodes_by_its_formula(
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
    encoding = Affine(
        integers(rng, shape, storage),
        np.asarray(scale),
        integers(rng, parameters, storage),
        axis,
        block,
    )
    assert encoding.type == TensorType(DType.of(np.dtype(dtype)), shape)
    assert encoding.decode().dtype == dtype
    # One multiplication of the same two numbers: exactly equal.
    np.testing.assert_array_equal(encoding.decode(), decoded_by_loops(encoding))


def test_packed_size_counts_bits() -> None:
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


def test_digests_differ_by_contents_shape_type_and_form() -> None:
    q = np.arange(4, dtype=np.int8)
    one, zero = np.array(1, np.float32), np.array(0, np.int8)
    encodings = [
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
        Affine(q, one, zero, bits=4),
    ]
    assert len({h.digest for h in encodings}) == len(encodings)
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
def test_parameters_of_the_wrong_shape_are_rejected(
    axis: int | None, block: int, shape: tuple[int, ...], message: str
) -> None:
    values = np.zeros((3, 4), np.int8)
    with pytest.raises(ValueError, match=message):
        Affine(values, np.ones(shape, np.float32), np.zeros(shape, np.int8), axis, block)


def test_a_zero_point_of_the_wrong_dtype_is_rejected() -> None:
    with pytest.raises(ValueError, match="zero point is uint8, values are int8"):
        Affine(np.zeros(3, np.int8), np.array(1, np.float32), np.array(0, np.uint8))


# -- masks -----------------------------------------------------------------------------------------


def affine(seed: int = 0, zero: int = 3) -> Affine:
    rng = np.random.default_rng(seed)
    values = integers(rng, (3, 5), np.int8)
    scale = rng.uniform(0.01, 2, 5).astype(np.float32)
    return Affine(values, scale, np.full(5, zero, np.int8), axis=1)


def checkers(shape: tuple[int, ...] = (3, 5)) -> np.ndarray:
    """8 of 15 are kept."""
    return (np.arange(int(np.prod(shape))) % 2 == 0).reshape(shape)


@given(
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple),
    dtype=st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_masked_decodes_to_values_or_zero(shape: tuple[int, ...], dtype: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape).astype(dtype)
    mask = np.asarray(rng.random(shape) < 0.5)
    encoding = Masked.of(mask, Dense(array))
    assert encoding.type == Dense(array).type
    assert encoding.decode().dtype == array.dtype
    np.testing.assert_array_equal(encoding.mask, mask)
    assert encoding.kept == mask.sum()
    flat = [v if m else 0 for v, m in zip(array.reshape(-1), mask.reshape(-1), strict=True)]
    np.testing.assert_array_equal(encoding.decode(), np.array(flat, dtype).reshape(shape))


def test_masked_quantized_numbers_are_exactly_zero() -> None:
    for inner in (affine(), Affine(affine().values, np.array(0.3), np.array(-7, np.int8))):
        encoding = Masked.of(checkers(), inner)
        np.testing.assert_array_equal(encoding.decode(), np.where(checkers(), inner.decode(), 0))
        assert isinstance(encoding.unmasked, Affine)
        np.testing.assert_array_equal(encoding.unmasked.decode(), encoding.decode())
    assert Dense(np.zeros(2)).unmasked.describe() == "dense"


def test_masked_size_is_a_bit_an_element_and_the_kept_values() -> None:
    f32 = Masked.of(checkers(), Dense(np.ones((3, 5), np.float32)))
    assert f32.nbytes == 2 + 8 * 4
    assert Masked.of(checkers(), affine()).nbytes == 2 + 8 + 20 + 5  # scales and zero points
    four = Affine(
        np.ones((3, 5), ml_dtypes.int4), np.ones(5, np.float32), np.zeros(5, ml_dtypes.int4), axis=1
    )
    assert Masked.of(checkers(), four).nbytes == 2 + 4 + 20


def test_with_values_keeps_the_mask() -> None:
    pruned = Masked.of(checkers(), Dense(np.ones((3, 5), np.float32)))
    then = pruned.with_values(affine())
    np.testing.assert_array_equal(then.mask, checkers())
    np.testing.assert_array_equal(then.decode(), np.where(checkers(), affine().decode(), 0))
    assert Dense(np.ones(3)).with_values(affine()).describe() == "affine(i8, axis=1)"


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("block", [None, 0, 2])
def test_take_keeps_the_form(block: int | None, axis: int) -> None:
    """Scales per tensor, per column, and per two columns of a row."""
    shape = {None: (), 0: (5,), 2: (3, 3)}[block]
    rng = np.random.default_rng(0)
    encoding = Affine(
        integers(rng, (3, 5), np.int8), rng.uniform(0.1, 1, shape).astype(np.float32),
        integers(rng, shape, np.int8), None if block is None else 1, block or 0,
    )  # fmt: skip
    taken = encoding.take(np.array([2, 0]), axis)
    # The same numbers, each by the same multiplication: exactly equal.
    np.testing.assert_array_equal(taken.decode(), np.take(encoding.decode(), [2, 0], axis))
    if block and axis == 1:  # Blocks are torn apart, to single numbers: there is no such form.
        assert taken.describe() == "dense"
    else:
        assert isinstance(taken, Affine)
        assert taken.describe() == encoding.describe()
        np.testing.assert_array_equal(taken.values, np.take(encoding.values, [2, 0], axis))


def test_take_of_a_dense_array() -> None:
    taken = Dense(np.arange(6.0).reshape(2, 3)).take(np.array([2]), 1)
    np.testing.assert_array_equal(taken.decode(), [[2], [5]])
    assert taken.type == TensorType(DType.F64, (2, 1))


@pytest.mark.parametrize("axis", [0, 1])
def test_take_keeps_masks(axis: int) -> None:
    blocks = Affine(
        affine().values, np.ones((3, 3), np.float32), np.ones((3, 3), np.int8), axis=1, block=2
    )
    for inner in (Dense(np.ones((3, 5), np.float32)), affine(), blocks):
        encoding = Masked.of(checkers(), inner)
        taken = encoding.take(np.array([2, 0]), axis)
        assert isinstance(taken, Masked)
        np.testing.assert_array_equal(taken.mask, np.take(checkers(), [2, 0], axis))
        np.testing.assert_array_equal(taken.decode(), np.take(encoding.decode(), [2, 0], axis))


def test_digests_differ_by_mask() -> None:
    zeros = Dense(np.zeros((3, 5), np.float32))
    encodings = [
        zeros,
        Masked.of(checkers(), zeros),
        Masked.of(~checkers(), zeros),
        Masked.of(checkers(), Dense(np.ones((3, 5), np.float32))),
        Masked.of(checkers(), affine()),
        Masked.of(checkers((5, 3)), Dense(np.zeros((5, 3), np.float32))),
    ]
    assert len({h.digest for h in encodings}) == len(encodings)
    assert Masked.of(checkers(), affine()).digest == Masked.of(checkers(), affine()).digest


@pytest.mark.parametrize(
    ("mask", "array", "message"),
    [
        ([True, False, False], [1, 2, 0], "outside the mask are not zero"),
        ([True, False, False], [1, np.nan, 0], "outside the mask are not zero"),
        ([True, False], [0, 0, 0], r"a mask of bool\[2\] over values of f32\[3\]"),
        (np.zeros(3, np.int8), [0, 0, 0], r"a mask of i8\[3\] over values of f32\[3\]"),
    ],
)
def test_masks_that_do_not_fit_are_rejected(
    mask: Sequence[bool], array: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Masked(Dense(np.array(array, np.float32)), np.asarray(mask))


def test_a_mask_of_the_wrong_shape_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"a mask of \(5, 3\) over values of \(3, 5\)"):
        Masked.of(checkers((5, 3)), affine())


def test_masked_constants_round_trip_and_copy() -> None:
    graph = TABLE.graph()
    x = graph.add_input("x", TensorType(DType.F32, (2, 3)))
    numbers = Dense(np.arange(15, dtype=np.float32).reshape(3, 5))
    y = x
    for name, inner in (("pruned", numbers), ("pruned_int8", affine())):
        y = graph.emit("MatMul", [x, graph.constant(Masked.of(checkers(), inner), name)])
    graph.set_outputs([y], ["y"])
    text = print_graph(graph)
    assert "@pruned: f32[3, 5] = masked(dense, kept=8) #" in text
    assert "@pruned_int8: f32[3, 5] = masked(affine(i8, axis=1), kept=8) #" in text
    again = parse(text, TABLE, weights_of(graph))
    assert print_graph(again) == text
    for other in (again, graph.copy()):
        verify(other)
        encoding = other.constants["pruned_int8"].encoding
        assert isinstance(encoding, Masked)
        np.testing.assert_array_equal(encoding.mask, checkers())


def test_an_unterminated_description_is_rejected() -> None:
    with pytest.raises(InvalidGraph, match="unexpected end of text"):
        parse("graph main() -> () { @w: f32[2] = masked(affine(i8)")
