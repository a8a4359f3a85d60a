"""Fidelity of outputs: shares, cosines and errors computed by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from tersor.numerics.fidelity import Fidelity, fidelity
from tersor.plain import read_plain

A = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)


def compare(a: np.ndarray, b: np.ndarray) -> Fidelity:
    return fidelity([{"y": a}], [{"y": b}])


def test_equal_outputs_are_kept_completely() -> None:
    result = compare(A, A.copy())
    assert result.kept == 1 and result.mean_cosine == 1 and result.max_error == 0
    assert result.relative_error == 0 and result.outputs[0].elements == 4


def test_directions_and_magnitudes_both_count() -> None:
    # The same directions, magnitudes off by a half: 1 - 0.5^2 / 2.
    result = compare(A, A * np.float32(1.5))
    assert result.mean_cosine == pytest.approx(1) and result.relative_error == pytest.approx(0.5)
    assert result.kept == pytest.approx(0.875)
    # One row turned by a right angle: cosines 1 and 0.
    turned = compare(A, np.array([[3.0, 4.0], [2.0, 0.0]], np.float32))
    assert turned.mean_cosine == pytest.approx(0.5) and turned.kept == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_, np.object_])
def test_other_dtypes_are_judged_by_agreement(dtype: type) -> None:
    a = np.array([0, 1, 1, 1]).astype(dtype)
    b = np.array([1, 1, 1, 1]).astype(dtype)
    result = compare(a, b)
    assert result.agreement == 0.75 and result.kept == 0.75 and result.mean_cosine is None


def test_outputs_are_sorted_the_worst_first() -> None:
    wanted = {"fine": A, "labels": np.array([1, 2, 3, 4]), "bad": A}
    result = fidelity([wanted], [{"fine": A, "labels": np.array([1, 2, 3, 5]), "bad": -A}])
    assert [o.name for o in result.outputs] == ["bad", "labels", "fine"]
    assert result.worst is not None and result.worst.name == "bad" and result.kept == 0


@pytest.mark.parametrize(
    "array", [np.full((2, 3), np.nan, np.float32), np.zeros((0, 3), np.float32)]
)
def test_only_nan_or_no_elements_is_not_broken(array: np.ndarray) -> None:
    result = compare(array, array.copy())
    assert result.kept is None or result.kept == 1
    assert result.min_cosine is None and result.outputs[0].broken == 0


def test_new_nans_are_broken_and_lost_nans_misplaced() -> None:
    b = A.copy()
    b[0, 0] = np.nan
    assert compare(A, b).kept == 0 and compare(A, b).outputs[0].broken == 1
    back = compare(b, A)
    assert back.outputs[0].misplaced == 1 and back.outputs[0].broken == 0
    assert back.relative_error == 0 and back.max_error == np.inf
    infinite = np.array([np.inf, 1.0], np.float32)
    assert compare(infinite, infinite.copy()).kept == 1
    assert compare(infinite, -infinite).outputs[0].misplaced == 1


def test_another_shape_or_a_missing_output_is_a_total_loss() -> None:
    assert compare(A, A[:1]).kept == 0
    assert fidelity([{"y": A}], [{}]).kept == 0
    assert compare(np.array([1, 2]), np.array([1, 2, 3])).agreement == 0


def test_short_rows_have_no_direction() -> None:
    a = np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)
    result = compare(a, a + np.array([[0, 0], [1e-6, 0]], np.float32))
    assert result.min_cosine == 1 and result.outputs[0].rows == 1
    # Numbers that stand alone have none either: all of them are one row.
    assert compare(np.array([[1.0], [1e-3]]), np.array([[1.0], [-1e-3]])).min_cosine > 0.99


def test_sequences_and_complex_numbers_are_compared_by_element() -> None:
    assert fidelity([{"y": [A, A]}], [{"y": [A, A]}]).kept == 1  # type: ignore[list-item, dict-item]
    assert compare(A + 1j * A, A - 1j * A).kept == 0


def test_any_difference_from_a_reference_of_zeros_is_total() -> None:
    assert compare(np.zeros(3, np.float32), np.ones(3, np.float32)).relative_error == 1
    assert compare(np.zeros(3, np.float32), np.zeros(3, np.float32)).kept == 1


def test_fidelity_is_plain_data() -> None:
    result = fidelity([{"y": A, "l": np.array([1])}], [{"y": A, "l": np.array([1])}], "test inputs")
    assert read_plain(Fidelity, json.loads(json.dumps(asdict(result)))) == result
