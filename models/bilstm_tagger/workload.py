"""The bidirectional LSTM tagger as a workload."""

from __future__ import annotations

from tersor.models.bilstm_tagger import build, data
from tersor.models.zoo import Run, Workload


def metric(run: Run) -> dict[str, float]:
    """The share of characters that are tagged right; blanks between tokens and padding do not count."""
    right = total = 0
    found = data.tested()
    for i in range(0, len(found), 32):
        chosen = found[i : i + 32]
        tags = data.labels(chosen)
        (feed,) = data.batches(chosen)
        counted = tags > 0
        right += int((run(feed)[build.OUTPUT].argmax(-1) == tags)[counted].sum())
        total += int(counted.sum())
    return {"accuracy": right / total}


WORKLOAD = Workload(
    name="bilstm_tagger",
    module=build.module,
    build=build.build,
    example_inputs=build.example_inputs,
    dynamic_shapes=build.DYNAMIC_SHAPES,
    outputs=(build.OUTPUT,),
    export_onnx=build.export_onnx,
    calibration=data.calibration,
    test=data.test_feeds,
    metric=metric,
    floor={"accuracy": 0.95},
    sizes=(
        {"batch": 1, "sequence": 32},
        {"batch": 1, "sequence": 96},
        {"batch": 16, "sequence": 64},
    ),
)
