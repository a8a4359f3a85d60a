"""The GPT-2-like decoder as a workload."""

from __future__ import annotations

import numpy as np

from tersor.models.gpt2_tiny import build, data, shape
from tersor.models.zoo import Run, Workload


def metric(run: Run) -> dict[str, float]:
    """The share of held-out bytes that are told right from those before them in their window."""
    right = []
    for feed in data.test_feeds():
        guesses = run(feed)[shape.LOGITS].argmax(-1)
        right.append(guesses[:, :-1] == feed["input_ids"][:, 1:])
    return {"next_byte": float(np.concatenate(right).mean())}


WORKLOAD = Workload(
    name="gpt2_tiny",
    module=build.module,
    build=build.build,
    example_inputs=build.example_inputs,
    dynamic_shapes=shape.DYNAMIC_SHAPES,
    outputs=shape.OUTPUTS,
    export_onnx=build.export_onnx,
    calibration=data.calibration,
    test=data.test_feeds,
    metric=metric,
    floor={"next_byte": 0.38},
    sizes=(
        {"batch": 1, "sequence": 128, "past": 0},
        {"batch": 8, "sequence": 128, "past": 0},
        {"batch": 1, "sequence": 1, "past": 128},
        {"batch": 8, "sequence": 1, "past": 128},
    ),
)
