"""Every workload on TVM, as its passes leave it, against ONNX Runtime on the same graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tersor.driver.recipe import Recipe
from tersor.frontends import load_model
from tersor.ir import Graph
from tersor.models import zoo
from tersor.numerics.fidelity import fidelity
from tersor.pipeline import Pipeline, registry
from tersor.target import Target

pytest.importorskip("tvm", reason="the tvm backend is not installed")

FEEDS = 3
# Sums in another order, and polynomials in place of the C library's functions: 1e-6 a value, which a
# few layers amplify.
FLOAT = 2e-4
# Where a value falls on the other side of a rounding to int8, a step of its row's scale is apart; AMX
# multiplies in bfloat16 in attention.
INT8_COSINE = 0.999


def _graph(workload: zoo.Workload, recipe: str, folder: Path) -> Graph:
    target = Target.host()
    # Not trained: that takes minutes, and changes nothing in what has to agree.
    path = workload.export_onnx(folder / f"{workload.name}.onnx", workload.module())
    graph = load_model(path).graph
    graph = Pipeline(registry.optimization(), target=target, level="none").run(graph)
    steps = Recipe.of(recipe).build()
    evaluate = registry.backend(registry.REFERENCE).Evaluator()
    return Pipeline(
        steps, target=target, calibration=workload.calibration(), evaluate=evaluate,
        supports=registry.backend("tvm").supports, level="none",
    ).run(graph)  # fmt: skip


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize("recipe", ["fp32", "int8"])
@pytest.mark.parametrize("name", zoo.names())
def test_tvm_gives_what_onnx_runtime_gives(name: str, recipe: str, tmp_path: Path) -> None:
    workload = zoo.find(name)
    graph = _graph(workload, recipe, tmp_path)
    backend = registry.backend("tvm")
    choice = backend.Choice.of(Target.host())
    session = backend.open_session(backend.build(graph, choice), choice)
    evaluate = registry.backend(registry.REFERENCE).Evaluator()
    feeds = workload.test()[:FEEDS]
    wanted = [evaluate(graph, feed) for feed in feeds]
    got = [session.run(feed) for feed in feeds]
    for want, made in zip(wanted, got, strict=True):
        assert list(made) == list(want)
        for key, array in want.items():
            assert made[key].shape == array.shape
            assert made[key].dtype == array.dtype
            if recipe == "fp32" and array.dtype.kind == "f" and array.size:
                scale = float(np.abs(array).max())
                np.testing.assert_allclose(made[key], array, rtol=FLOAT, atol=FLOAT * scale)
    told = fidelity(wanted, got)
    assert told.mean_cosine is None or told.mean_cosine > INT8_COSINE
