"""Whitened against plain SVD on the layers of a real model."""

import numpy as np
import pytest

from tersor.backends import ort
from tersor.frontends import load_model
from tersor.models.minilm import build, data
from tersor.numerics.lowrank import decompose, output_error, truncate, whitening
from tersor.pipeline import Pipeline
from tersor.pipeline.registry import optimization
from tersor.statistics.gram import grams

RANKS = (16, 64, 128, 192, 256, 320)


@pytest.mark.sweep
def test_whitened_svd_is_nearer_at_every_rank() -> None:
    imported = load_model(
        build.build(),
        example_inputs=build.example_inputs(),
        dynamic_shapes=build.DYNAMIC_SHAPES,
        output_names=[build.OUTPUT],
    )
    graph = Pipeline(optimization()).run(imported.graph)
    linears = [n for n in graph.nodes if n.op == "tersor.Linear"]
    layers = [n for n in linears if "layer.0." in n.scope or "layer.4." in n.scope]
    assert len(layers) == 12
    seen = grams(
        graph,
        [x for n in layers if (x := n.inputs[0]) is not None],
        data.calibration()[:4],
        ort.Evaluator(),
    )
    ratios = []
    for node in layers:
        x, held = node.inputs[0], node.inputs[1]
        assert x is not None and held is not None
        weight, moments = held.numpy().astype(np.float64), seen[x].xtx
        _, whitened = decompose(weight, whitening(moments))
        _, plain = decompose(weight, None)
        for rank in RANKS:
            errors = [
                output_error(weight, truncate(weight, rows, rank).product, moments)
                for rows in (whitened, plain)
            ]
            assert errors[0] < errors[1], f"{node.scope} at rank {rank}"
            ratios.append(errors[1] / errors[0])
    assert np.median(ratios) > 1.5
