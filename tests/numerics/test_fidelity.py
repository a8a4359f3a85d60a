"""How far outputs are apart: shares, cosines and errors said by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from tersor.numerics.fidelity import Fidelity, fidelity
from tersor.plain import read_plain

A = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)


def told(a: np.ndarray, b: np.ndarray) -> Fidelity:
    return fidelity([{"y": a}], [{"y": b}])


def test_the_same_is_kept_whole() -> None:
    found = told(A, A.copy())
    assert found.kept == 1 and found.mean_cosine == 1 and found.max_error == 0
    assert found.relative_error == 0 and found.outputs[0].elements == 4


def test_directions_and_magnitudes_both_count() -> None:
    # The same directions, magnitudes off by a half: 1 - 0.5^2 / 2.
    found = told(A, A * np.float32(1.5))
    assert found.mean_cosine == pytest.approx(1) and found.relative_error == pytest.approx(0.5)
    assert found.kept == pytest.approx(0.875)
    # One row turned by a right angle: cosines 1 and 0.
    turned = told(A, np.array([[3.0, 4.0], [2.0, 0.0]], np.float32))
    assert turned.mean_cosine == pytest.approx(0.5) and turned.kept == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_, np.object_])
def test_what_is_no_float_is_judged_by_agreement(dtype: type) -> None:
    a = np.array([0, 1, 1, 1]).astype(dtype)
    b = np.array([1, 1, 1, 1]).astype(dtype)
    found = told(a, b)
    assert found.agreement == 0.75 and found.kept == 0.75 and found.mean_cosine is None


def test_every_output_is_told_the_worst_first() -> None:
    wanted = {"fine": A, "labels": np.array([1, 2, 3, 4]), "bad": A}
    found = fidelity([wanted], [{"fine": A, "labels": np.array([1, 2, 3, 5]), "bad": -A}])
    assert [o.name for o in found.outputs] == ["bad", "labels", "fine"]
    assert found.worst is not None and found.worst.name == "bad" and found.kept == 0


@pytest.mark.parametrize(
    "array", [np.full((2, 3), np.nan, np.float32), np.zeros((0, 3), np.float32)]
)
def test_nothing_but_nan_and_nothing_at_all_tell_nothing(array: np.ndarray) -> None:
    found = told(array, array.copy())
    assert found.kept is None or found.kept == 1
    assert found.min_cosine is None and found.outputs[0].broken == 0


def test_what_becomes_nan_is_broken_and_where_nan_was_a_number_is_misplaced() -> None:
    b = A.copy()
    b[0, 0] = np.nan
    assert told(A, b).kept == 0 and told(A, b).outputs[0].broken == 1
    back = told(b, A)
    assert back.outputs[0].misplaced == 1 and back.outputs[0].broken == 0
    assert back.relative_error == 0 and back.max_error == np.inf
    infinite = np.array([np.inf, 1.0], np.float32)
    assert told(infinite, infinite.copy()).kept == 1
    assert told(infinite, -infinite).outputs[0].misplaced == 1


def test_another_shape_or_no_output_has_nothing_of_it() -> None:
    assert told(A, A[:1]).kept == 0
    assert fidelity([{"y": A}], [{}]).kept == 0
    assert told(np.array([1, 2]), np.array([1, 2, 3])).agreement == 0


def test_rows_without_a_length_have_no_direction() -> None:
    a = np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)
    found = told(a, a + np.array([[0, 0], [1e-6, 0]], np.float32))
    assert found.min_cosine == 1 and found.outputs[0].rows == 1
    # Numbers that stand alone have none either: all of them are one row.
    assert told(np.array([[1.0], [1e-3]]), np.array([[1.0], [-1e-3]])).min_cosine > 0.99


def test_sequences_and_complex_numbers_are_compared_by_what_they_hold() -> None:
    assert fidelity([{"y": [A, A]}], [{"y": [A, A]}]).kept == 1  # type: ignore[list-item, dict-item]
    assert told(A + 1j * A, A - 1j * A).kept == 0


def test_a_reference_of_zeros_has_no_share() -> None:
    assert told(np.zeros(3, np.float32), np.ones(3, np.float32)).relative_error == 1
    assert told(np.zeros(3, np.float32), np.zeros(3, np.float32)).kept == 1


def test_it_is_plain_data() -> None:
    found = fidelity([{"y": A, "l": np.array([1])}], [{"y": A, "l": np.array([1])}], "test inputs")
    assert read_plain(Fidelity, json.loads(json.dumps(asdict(found)))) == found
