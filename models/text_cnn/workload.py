"""The text CNN as a workload."""

from __future__ import annotations

import numpy as np

from tersor.models.text_cnn import build, data
from tersor.models.zoo import Run, Workload


def metric(run: Run) -> dict[str, float]:
    """The share of unseen passages whose module is told right."""
    scores = np.concatenate([run(feed)[build.OUTPUT] for feed in data.test_feeds()])
    return {"accuracy": float((scores.argmax(-1) == data.labels(data.passages("test"))).mean())}


WORKLOAD = Workload(
    name="text_cnn",
    module=build.module,
    build=build.build,
    example_inputs=build.example_inputs,
    dynamic_shapes=build.DYNAMIC_SHAPES,
    outputs=(build.OUTPUT,),
    export_onnx=build.export_onnx,
    calibration=data.calibration,
    test=data.test_feeds,
    metric=metric,
    floor={"accuracy": 0.7},
    sizes=(
        {"batch": 1, "sequence": 32},
        {"batch": 1, "sequence": 64},
        {"batch": 32, "sequence": 64},
    ),
)
