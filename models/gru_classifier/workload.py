"""The GRU classifier as a workload."""

from __future__ import annotations

import numpy as np

from tersor.models.gru_classifier import build, data
from tersor.models.zoo import Run, Workload


def metric(run: Run) -> dict[str, float]:
    """The share of unseen words whose valence is told right."""
    scores = np.concatenate([run(feed)[build.OUTPUT] for feed in data.test_feeds()])
    return {"accuracy": float((scores.argmax(-1) == data.labels("test")).mean())}


WORKLOAD = Workload(
    name="gru_classifier",
    module=build.module,
    build=build.build,
    example_inputs=build.example_inputs,
    dynamic_shapes=build.DYNAMIC_SHAPES,
    outputs=(build.OUTPUT,),
    export_onnx=build.export_onnx,
    calibration=data.calibration,
    test=data.test_feeds,
    metric=metric,
    floor={"accuracy": 0.8},
    sizes=(
        {"batch": 1, "sequence": 8},
        {"batch": 1, "sequence": 16},
        {"batch": 64, "sequence": 16},
    ),
)
