"""BERT-tiny as a workload."""

from __future__ import annotations

import numpy as np

from tersor.models.bert_tiny import build, data
from tersor.models.zoo import Run, Workload


def metric(run: Run) -> dict[str, float]:
    """The share of held-out paragraphs whose subject is told right."""
    guesses = np.concatenate([run(f)[build.OUTPUT].argmax(1) for f in data.test_feeds()])
    return {"accuracy": float((guesses == np.array(data.examples()[1].labels)).mean())}


WORKLOAD = Workload(
    name="bert_tiny",
    module=build.module,
    build=build.build,
    example_inputs=build.example_inputs,
    dynamic_shapes=build.DYNAMIC_SHAPES,
    outputs=(build.OUTPUT,),
    export_onnx=build.export_onnx,
    calibration=data.calibration,
    test=data.test_feeds,
    metric=metric,
    floor={"accuracy": 0.55},
    sizes=(
        {"batch": 1, "sequence": 32},
        {"batch": 1, "sequence": 128},
        {"batch": 8, "sequence": 128},
    ),
)
