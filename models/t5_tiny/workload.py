"""The T5-like encoder-decoder as a workload."""

from __future__ import annotations

import numpy as np

from tersor.models.t5_tiny import build, data
from tersor.models.zoo import Run, Workload


def metric(run: Run) -> dict[str, float]:
    """The share of letters of held-out names that are told right after the right ones before them, and
    of names that are right in all letters."""
    letters, whole = [], []
    for batch in data.test_names():
        wanted = data.labels(batch)
        right = run(data.encode(batch))[build.OUTPUT].argmax(-1) == wanted
        real = wanted != data.PAD
        letters.append(right[real])
        whole.append((right | ~real).all(axis=1))
    return {
        "letters": float(np.concatenate(letters).mean()),
        "names": float(np.concatenate(whole).mean()),
    }


WORKLOAD = Workload(
    name="t5_tiny",
    module=build.module,
    build=build.build,
    example_inputs=build.example_inputs,
    dynamic_shapes=build.DYNAMIC_SHAPES,
    outputs=(build.OUTPUT,),
    export_onnx=build.export_onnx,
    calibration=data.calibration,
    test=data.test_feeds,
    metric=metric,
    floor={"letters": 0.85, "names": 0.4},
    sizes=(
        {"batch": 1, "source": 32, "target": 1},
        {"batch": 1, "source": 32, "target": 32},
        {"batch": 8, "source": 128, "target": 128},
    ),
)
