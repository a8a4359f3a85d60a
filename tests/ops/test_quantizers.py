"""Which operands may be quantized, and along which axes a scale factors out of what is summed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tersor.ops import TABLE, Quantizer, Weight
from tersor.ops.evaluate import evaluate
from tersor.ops.samples import Case, cases, feeds, one_node

# What comes after their sums is not linear, so that their results do not show these.
NOT_LINEAR = {"LSTM", "GRU", "RNN", "tersor.EmbeddingLayerNormalization"}


def linear(case: Case) -> Case:
    """Without the activation that a fused op ends in."""
    attrs = case.sample.attrs
    return replace(
        case,
        sample=replace(
            case.sample, attrs={**attrs, "activation": "none"} if "activation" in attrs else attrs
        ),
    )


def quantizers(case: Case) -> list[Quantizer]:
    (node,) = one_node(case.row.op, case.sample).nodes
    return TABLE.quantizers(node)


EVERY = [(linear(case), q) for case in cases() for q in quantizers(case)]
CASES = [(case, q) for case, q in EVERY if case.row.op not in NOT_LINEAR]
each = partial(pytest.mark.parametrize, ids=lambda x: getattr(x, "name", None))


def results(case: Case, operand: int, array: np.ndarray) -> np.ndarray:
    inputs = list(case.sample.inputs)
    inputs[operand] = array
    sample = replace(case.sample, inputs=inputs)
    (first, *_) = evaluate(one_node(case.row.op, sample), feeds(sample)).values()
    return first.astype(np.float64)


def parts(case: Case, operand: int, axis: int) -> np.ndarray:
    """What each slice of an operand along an axis adds to every element of the result."""
    x = case.sample.inputs[operand]
    assert x is not None
    none = results(case, operand, np.zeros_like(x))
    made = []
    for i in range(x.shape[axis]):
        alone = np.zeros_like(x)
        at = (slice(None),) * (axis % x.ndim) + (i,)
        alone[at] = x[at]
        made.append(results(case, operand, alone) - none)
    whole = results(case, operand, x) - none
    # The same products in sums of another order.
    np.testing.assert_allclose(np.sum(made, axis=0), whole, rtol=1e-4, atol=1e-4)
    return np.array(made)


@each("case, quantizer", CASES)
def test_a_scale_along_an_axis_that_is_not_summed_factors_out(
    case: Case, quantizer: Quantizer
) -> None:
    """An element of the result has a part of one slice alone: a factor on it is one on the element. The
    parts of an axis that is summed do meet, so that no freedom is left unsaid."""
    x = case.sample.inputs[quantizer.operand]
    assert x is not None
    summed = {axis % x.ndim for axis in quantizer.summed}
    # Along strides, a kernel's positions may lie apart in the result.
    apart = case.row.op == "ConvTranspose"
    own = quantizer.operand in {form.operand for form in _weights(case)}
    for axis in range(x.ndim):
        # Parts below a rounding error of the bias that was taken off are none.
        meet = (np.abs(parts(case, quantizer.operand, axis)) > 1e-5).sum(axis=0).max(initial=0)
        if axis not in summed:
            assert meet <= 1, (axis, quantizer)
        elif not own and not apart and x.shape[axis] > 1:
            assert meet > 1, (axis, quantizer)


@each("case", [case for case in cases() if case.row.weights is not None])
def test_a_row_with_weights_says_where_quantizers_go(case: Case) -> None:
    multiplied = [form for form in _weights(case) if not form.looked_up]
    stated = {q.operand: q for q in quantizers(case)}
    for form in multiplied:
        assert stated[form.operand].summed == form.inputs
        activation = form.activation if form.activation is not None else 0
        assert activation in stated
    assert case.row.quantizers is not None or not multiplied


def test_what_multiplies_floats_may_be_quantized() -> None:
    integers = {"MatMulInteger", "QLinearMatMul", "ConvInteger"}
    stated = {case.row.op for case, _ in EVERY}
    assert {row.op for row in TABLE if "product" in row.traits} - integers <= stated


def _weights(case: Case) -> list[Weight]:
    (node,) = one_node(case.row.op, case.sample).nodes
    return list(TABLE.weights(node))
