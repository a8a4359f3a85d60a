"""The MobileNet on digits as a workload."""

from __future__ import annotations

import numpy as np

from tersor.models.mobilenet_digits import build, data
from tersor.models.zoo import Run, Workload


def metric(run: Run) -> dict[str, float]:
    """The share of unseen digits that are read right."""
    scores = np.concatenate([run(feed)[build.OUTPUT] for feed in data.test_feeds()])
    return {"accuracy": float((scores.argmax(-1) == data.digits("test")[1]).mean())}


WORKLOAD = Workload(
    name="mobilenet_digits",
    module=build.module,
    build=build.build,
    example_inputs=build.example_inputs,
    dynamic_shapes=build.DYNAMIC_SHAPES,
    outputs=(build.OUTPUT,),
    export_onnx=build.export_onnx,
    calibration=data.calibration,
    test=data.test_feeds,
    metric=metric,
    floor={"accuracy": 0.9},
    sizes=({"batch": 1}, {"batch": 8}, {"batch": 64}),
)
