"""The decoder's two ways to run are one graph: a prefill is a step without a past."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import tersor
from tersor.backends import ort
from tersor.frontends import load_model
from tersor.models import zoo
from tersor.models.gpt2_tiny import data, generate, shape
from tersor.models.zoo import Run
from tersor.pipeline import Pipeline, registry

WORKLOAD = zoo.find("gpt2_tiny")
# Of logits near 10, float32 in another order of summing.
TOLERANCE = 1e-4


@cache
def module() -> Run:
    return zoo.runner(WORKLOAD, WORKLOAD.module())


@cache
def compiled(recipe: str) -> Run:
    return tersor.compile(
        WORKLOAD.module(), recipe=recipe, measure=False, **WORKLOAD.torch_arguments()
    ).run


@pytest.mark.slow
@pytest.mark.parametrize("how", ["module", "compiled"])
def test_generating_through_the_past_is_generating_anew(how: str) -> None:
    run = module() if how == "module" else compiled("fp32")
    prompt = data.windows()[:3, :40]
    steps = generate.by_steps(run, prompt, 24)
    np.testing.assert_array_equal(steps, generate.by_prefill(run, prompt, 24))
    np.testing.assert_array_equal(steps, generate.by_steps(module(), prompt, 24))


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 13, 31])
def test_a_prefill_in_two_parts_gives_the_same_logits(cut: int) -> None:
    run, ids = compiled("fp32"), data.windows()[:2, :32]
    whole = run(data.prefill(ids))
    first = run(data.prefill(ids[:, :cut]))
    rest = run(data.step(ids[:, cut:], data.past_of(dict(first))))
    for name in shape.PRESENT:
        np.testing.assert_allclose(rest[name], whole[name], atol=TOLERANCE)
    both = np.concatenate([first[shape.LOGITS], rest[shape.LOGITS]], axis=1)
    np.testing.assert_allclose(both, whole[shape.LOGITS], atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["unfused", "mha"])
def test_each_way_to_write_attention_reads_the_past(attention: str) -> None:
    graph = load_model(WORKLOAD.module(), **WORKLOAD.torch_arguments()).graph
    fused = Pipeline(registry.optimization()).run(graph)
    # One op a layer for the cache: nothing is joined, turned or split around it.
    ops = {n.op for n in fused.walk()}
    assert not ops & {"Concat", "Transpose", "Reshape", "Softmax", "MatMul"}
    session = ort.open_session(ort.build(fused, ort.Choice().replace(attention=attention)))
    prompt = data.windows()[:2, :40]
    steps = generate.by_steps(lambda feed: session.run(feed), prompt, 12)
    np.testing.assert_array_equal(steps, generate.by_prefill(module(), prompt, 12))


@pytest.mark.slow
def test_padding_on_the_left_changes_nothing() -> None:
    run, ids = compiled("fp32"), data.windows()[:2, :20]
    padded = data.prefill(np.concatenate([np.zeros((2, 5), np.int64), ids], axis=1))
    padded["attention_mask"][:, :5] = 0
    got, expected = run(padded)[shape.LOGITS], run(data.prefill(ids))[shape.LOGITS]
    np.testing.assert_allclose(got[:, 5:], expected, atol=TOLERANCE)
