"""all-MiniLM-L6-v2 as a workload."""

from __future__ import annotations

from tersor.models.minilm import build, data, metrics
from tersor.models.zoo import Run, Workload


def metric(run: Run) -> dict[str, float]:
    """Accuracy of a valence head that was trained on the uncompressed model's embeddings."""
    words, positive = metrics.valence_words()
    feeds = data.batches(words)
    module = build.build()
    reference = metrics.embed(lambda feed: build.run(module, feed), feeds)
    head = metrics.valence_head(reference, positive)
    return {"valence": metrics.valence_accuracy(head, metrics.embed(run, feeds), positive)}


WORKLOAD = Workload(
    name="minilm",
    module=build.build,
    build=build.build,
    example_inputs=build.example_inputs,
    dynamic_shapes=build.DYNAMIC_SHAPES,
    outputs=(build.OUTPUT,),
    export_onnx=build.export_onnx,
    calibration=data.calibration,
    test=data.test_feeds,
    metric=metric,
    floor={"valence": 0.9},
    sizes=(
        {"batch": 1, "sequence": 32},
        {"batch": 1, "sequence": 128},
        {"batch": 8, "sequence": 128},
    ),
)
