"""Random graphs with hostile weights: factorizing never fails, and what comes out has the graph's types and
runs."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case
from strategies.lossy import lossy_cases
from strategies.profile import scaled

from tersor.ir import verify
from tersor.ops.evaluate import evaluate
from tersor.passes.factorize.factorize_embedding import FactorizeEmbedding
from tersor.passes.factorize.factorize_linear import FactorizeLinear, Method
from tersor.passes.factorize.tensor_train_embedding import TensorTrainEmbedding
from tersor.pipeline import Pipeline
from tersor.pipeline.registry import optimization


@pytest.mark.slow
@scaled(100)
@given(
    lossy_cases(),
    st.sampled_from(get_args(Method)),
    st.sampled_from([("ratio", 0.6), ("energy", 0.9), ("rank", 2), ("break-even", 0.9)]),
)
def test_whatever_the_weights_it_does_not_fail(
    case: Case, method: Method, by: tuple[str, float]
) -> None:
    graph = Pipeline(optimization()).run(case.graph)
    steps = [
        FactorizeLinear(method, *by, must_pay=False),  # type: ignore[arg-type]
        FactorizeEmbedding("ratio", 0.6, "frequency", min_elements=1),
        TensorTrainEmbedding(0.9, min_elements=1),
    ]
    feeds = case.feeds[:2]
    with np.errstate(all="ignore"):
        pipeline = Pipeline(steps, level="text", evaluate=evaluate, calibration=feeds)
        after = pipeline.run(graph)
        verify(after)
        for feed in feeds:
            wanted, got = evaluate(graph, feed), evaluate(after, feed)
            for name, array in wanted.items():
                assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
