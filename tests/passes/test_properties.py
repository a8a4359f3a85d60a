"""What every lossless pass must keep, on random graphs: outputs, signature, a valid graph; and a second
run finds nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from strategies import Builder, Case, cases, layers

from tersor.ir import Graph, print_graph
from tersor.ops.evaluate import evaluate
from tersor.passes import optimization
from tersor.passes.canonicalize.fold_batch_norm import FoldBatchNorm
from tersor.passes.canonicalize.matmul_to_linear import MatMulToLinear
from tersor.passes.canonicalize.simplify_masks import SimplifyMasks
from tersor.passes.fuse.fuse_attention import FuseAttention
from tersor.passes.fuse.fuse_embedding_norm import FuseEmbeddingNorm
from tersor.passes.fuse.fuse_gelu import FuseGelu
from tersor.passes.fuse.fuse_layer_norm import FuseLayerNorm
from tersor.passes.fuse.fuse_rms_norm import FuseRmsNorm
from tersor.passes.fuse.fuse_skip_norm import FuseSkipNorm
from tersor.passes.fuse.merge_linears import MergeLinears
from tersor.pipeline import Pass, Pipeline, Step, passes_in

# Building a graph costs more than a draw is supposed to.
SLOW_DRAWS = [HealthCheck.too_slow, HealthCheck.data_too_large]
LOSSLESS = [*passes_in(optimization()), MergeLinears()]

# What makes the pattern that a pass looks for, or something near to it; the others meet theirs anywhere.
FOCUS: dict[type[Pass], tuple[Callable[[Builder], None], ...]] = {
    FoldBatchNorm: (layers.linear,),
    MatMulToLinear: (layers.linear,),
    SimplifyMasks: (layers.masked_mean, layers.logic),
    FuseLayerNorm: (layers.layer_norm,),
    FuseRmsNorm: (layers.layer_norm,),
    FuseGelu: (layers.gelu,),
    FuseAttention: (layers.attention,),
    FuseEmbeddingNorm: (layers.embedding,),
    FuseSkipNorm: (layers.layer_norm,),
}


def optimized(case: Case, passes: Sequence[Step]) -> Graph:
    """The pipeline verifies after each pass: structure, types, text, signature, and the pass's own
    claim to keep values."""
    pipeline = Pipeline(passes, level="values", feeds=[case.feed], evaluate=evaluate)
    after = pipeline.run(case.graph)
    # No group of passes goes round in a circle.
    assert not [(report.name, report.notes) for report in pipeline.reports if report.notes]
    return after


def check_same_outputs(case: Case, after: Graph) -> None:
    expected, got = evaluate(case.graph, case.feed), evaluate(after, case.feed)
    assert list(expected) == list(got)
    for name in expected:
        assert expected[name].shape == got[name].shape, name
        assert expected[name].dtype == got[name].dtype, name
        # f64 in another order, and exponents that attention keeps as f32: 1e-6 of the largest number.
        scale = np.abs(expected[name], dtype=np.float64).max(initial=1.0)
        assert np.allclose(expected[name], got[name], rtol=0, atol=1e-6 * scale), name


@pytest.mark.parametrize("step", LOSSLESS, ids=lambda step: step.label)
def test_a_pass_keeps_what_it_claims_and_is_idempotent(step: Pass) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=SLOW_DRAWS)
    @given(cases(focus=FOCUS.get(type(step), ())))
    def check(case: Case) -> None:
        before = print_graph(case.graph)
        once = optimized(case, [step])
        assert print_graph(case.graph) == before, "the input graph has changed"
        check_same_outputs(case, once)
        again = Pipeline([step])
        assert print_graph(again.run(once)) == print_graph(once)
        # A group of passes is run until none counts a rewrite.
        assert again.reports[0].rewrites == 0

    check()


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=SLOW_DRAWS)
@given(cases(steps=10))
def test_the_whole_pipeline_keeps_outputs(case: Case) -> None:
    after = optimized(case, optimization())
    check_same_outputs(case, after)
    assert len(after) <= len(case.graph)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=SLOW_DRAWS)
@given(cases(steps=10))
def test_a_second_run_of_the_whole_pipeline_changes_nothing(case: Case) -> None:
    once = Pipeline(optimization()).run(case.graph)
    assert print_graph(Pipeline(optimization()).run(once)) == print_graph(once)
