"""Peak memory does not grow with the number of calibration samples."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scripts import script

from tersor.backends.ort import Evaluator
from tersor.calibration import sources
from tersor.calibration.sources import open_calibration
from tersor.ir import parse
from tersor.ops import TABLE
from tersor.passes.factorize.factorize_linear import FactorizeLinear
from tersor.passes.prune.prune_structure import PruneStructure
from tersor.passes.quantize.quantize_dynamic import QuantizeDynamic
from tersor.passes.quantize.smooth_activations import SmoothActivations
from tersor.passes.sparsify.prune_weights import PruneWeights
from tersor.pipeline import Pass, Pipeline

MLP = """graph main(%x: f32[n, 256]) -> (y = %y) {
  @w: f32[256, 64] = dense normal(0)
  @v: f32[64, 8] = dense normal(1)
  %h: f32[n, 64] = tersor.Linear(%x, @w) {activation = "relu"}
  %y: f32[n, 8] = tersor.Linear(%h, @v)
}"""
PASSES = [
    [SmoothActivations(), QuantizeDynamic(min_elements=0)],
    [FactorizeLinear(method="whitened-svd", amount=0.5)],
    [PruneStructure(macs=0.75)],
    [PruneStructure(ratio=0.25, criterion="wanda")],
    [PruneWeights(criterion="sparsegpt", sparsity=0.5)],
]


def batches(count: int) -> Iterator[dict[str, np.ndarray]]:
    draws = np.random.default_rng(0)
    for _ in range(count):
        yield {"x": draws.normal(size=(256, 256)).astype(np.float32)}


@pytest.mark.parametrize("passes", PASSES, ids=lambda steps: steps[-1].label)
def test_passes_keep_no_samples(passes: list[Pass], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 batches and of 40, which are 2.5 and 10 MB: what is kept of 2,048 rows is full by then."""
    monkeypatch.setattr(sources, "IN_MEMORY", 0)
    graph = parse(MLP, TABLE)

    def peak(count: int) -> int:
        given = open_calibration(batches(count), graph)
        pipeline = Pipeline(passes, calibration=given, evaluate=Evaluator())
        tracemalloc.start()
        pipeline.run(graph)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert pipeline.reports[-1].rewrites
        return found

    peak(1)  # What is loaded and cached at first use.
    assert peak(40) < peak(10) + 2.5e6


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["int8", "lowrank", "prune", "prune-int8"])
def test_two_thousand_sentences_take_less_than_1500_megabytes(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = script("calibration_memory", monkeypatch)
    model, texts = benchmark.prepare(tmp_path, 2000)
    assert benchmark.peak(model, texts, recipe)["mib"] < 1500
