"""Which operands hold weights, by what the ops compute with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tersor.ops import TABLE, Sample, Weight
from tersor.ops.evaluate import evaluate
from tersor.ops.samples import Case, cases, feeds, one_node

CASES = [case for case in cases() if case.row.weights is not None]


def weights(case: Case) -> list[Weight]:
    (node,) = one_node(case.row.op, case.sample).nodes
    return list(TABLE.weights(node))


def test_what_multiplies_or_looks_up_has_weights() -> None:
    assert {case.row.op for case in CASES} == {
        "MatMul", "Gemm", "tersor.Linear", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Gather",
        "tersor.EmbeddingLayerNormalization",
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_weight_is_a_matrix_and_back(case: Case) -> None:
    for form in weights(case):
        held = case.sample.inputs[form.operand]
        assert held is not None
        matrix = form.matrix(held)
        assert matrix.shape[1] == np.prod([held.shape[i] for i in form.inputs])
        np.testing.assert_array_equal(form.tensor(matrix, held.shape), held)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_column_meets_one_input(case: Case) -> None:
    """Without column j of the matrix, the result is what it is without input j; under a window, without
    all columns of a channel, what it is without the channel."""
    told = [form for form in weights(case) if form.activation is not None]
    for form in told:
        assert form.activation is not None
        x, held = case.sample.inputs[form.activation], case.sample.inputs[form.operand]
        assert x is not None and held is not None
        silent, matrix = x.copy(), form.matrix(held).copy()
        channels = x.shape[-1 if form.window is None else 1]
        silent[(slice(None), 1) if form.window else (..., 1)] = 0
        matrix[:, 1::channels] = 0
        without_input = changed(case.sample, form.activation, silent)
        without_column = changed(case.sample, form.operand, form.tensor(matrix, held.shape))
        for a, b in zip(run(case, without_input), run(case, without_column), strict=True):
            # The same products with zeros in them, summed in the same order.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_channels_of_one_place_lie_side_by_side() -> None:
    case = next(c for c in CASES if c.row.op == "Conv")
    (form,) = weights(case)
    held = np.arange(4 * 3 * 5).reshape(4, 3, 5)  # out, in, kernel
    np.testing.assert_array_equal(form.matrix(held)[2, :3], held[2, :, 0])


def changed(sample: Sample, operand: int, array: np.ndarray) -> Sample:
    inputs = list(sample.inputs)
    inputs[operand] = array
    return replace(sample, inputs=inputs)


def run(case: Case, sample: Sample) -> list[np.ndarray]:
    return list(evaluate(one_node(case.row.op, sample), feeds(sample)).values())
