"""What outputs lose: shares of their variance, said by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.pruning.pruned_outputs import output_loss

Y = np.array([[1.0, 2.0], [3.0, 6.0]], np.float32)


def test_the_same_loses_nothing_and_the_mean_loses_all() -> None:
    assert output_loss([{"y": Y}], [{"y": Y.copy()}]) == 0
    mean = np.broadcast_to(Y.mean(axis=0), Y.shape)
    assert output_loss([{"y": Y}], [{"y": mean}]) == pytest.approx(1)


def test_outputs_and_batches_count_alike_however_large_they_are() -> None:
    wanted = [{"y": Y, "z": 10 * Y}, {"y": Y, "z": 10 * Y}]
    got = [{"y": Y + 1, "z": 10 * Y}, {"y": Y, "z": 10 * Y + 10}]
    # Squares around the mean row [2, 4]: (1 + 4) / 2 a number; missed 1 of it in half of the batches.
    assert output_loss(wanted, got) == pytest.approx(1 / 2.5 / 2)
    # A batch of numbers that are small counts as if they were a tenth of the usual.
    loud, quiet = np.array([[-100.0], [100.0]]), np.array([[-1.0], [1.0]])
    lost = output_loss([{"y": loud}, {"y": quiet}], [{"y": loud}, {"y": 0 * quiet}])
    assert lost == pytest.approx(1 / (0.01 * (100**2 + 1) / 2) / 2)


def test_integers_lose_what_differs_and_empty_outputs_say_nothing() -> None:
    wanted = {"ids": np.array([1, 2, 3, 4]), "none": np.zeros((0, 3), np.float32)}
    assert output_loss([wanted], [{**wanted, "ids": np.array([1, 2, 3, 6])}]) == 0.25
    assert output_loss([wanted], [{**wanted, "ids": np.array([1, 2])}]) == 1
    assert output_loss([{"none": wanted["none"]}], [wanted]) == 0


def test_numbers_without_axes_and_single_rows_are_shares_of_what_they_are() -> None:
    assert output_loss([{"y": np.float32(2)}], [{"y": np.float32(1)}]) == pytest.approx(1 / 4)
    row = np.array([[3.0, 4.0]], np.float32)
    assert output_loss([{"y": row}], [{"y": 0 * row}]) == pytest.approx(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_loses_everything(bad: float) -> None:
    assert output_loss([{"y": Y}], [{"y": Y * np.float32(bad)}]) == np.inf


def test_outputs_that_are_constant() -> None:
    flat = np.zeros((2, 2), np.float32)
    assert output_loss([{"y": flat}], [{"y": flat}]) == 0
    assert output_loss([{"y": flat}], [{"y": Y}]) == 1
