"""MiniLM's linear layers factorized at one rank, by plain and activation-aware SVD: fidelity at each rank.

Layers are factorized whatever their speed, unless the factors would be larger than the layer.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import rows

from tersor.frontends import load_model
from tersor.models.minilm import build, data, metrics
from tersor.pipeline import Pipeline, registry

RANKS = (64, 96, 128, 160, 192, 256, 304)
# Plain: the weight alone, no data. Refitted: the second of the same factors is fitted to the outputs.
METHODS = {
    "plain SVD": ("svd", False),
    "refitted": ("svd", True),
    "whitened": ("whitened-svd", True),
}
SCRIPTS = [Path(__file__)]


def main() -> int:
    """Measures what is missing and writes JSON, rank by rank."""
    start = time.monotonic()
    arguments = rows.parser(__doc__, "lowrank.json").parse_args()
    results = rows.load(arguments.out, rows.conditions(SCRIPTS, {}), arguments.fresh)
    table = results.setdefault("ranks", {})
    evaluate = registry.backend("ort").Evaluator()
    with tempfile.TemporaryDirectory() as folder:
        graph = load_model(build.export_onnx(Path(folder) / "minilm.onnx")).graph
    fused = Pipeline(registry.optimization()).run(graph)
    feeds, calibration = data.test_feeds(), data.much_calibration()
    reference = metrics.embed(lambda feed: evaluate(fused, feed), feeds)
    factorize = registry.find_pass("factorize-linear")
    for rank in RANKS:
        for name, (method, fitted) in METHODS.items():
            if f"{name} {rank}" in table:
                continue
            step = factorize(method=method, rank_by="rank", amount=rank, must_pay=False)  # type: ignore[call-arg]
            inputs = calibration if fitted else ()
            pipeline = Pipeline([step], calibration=inputs, evaluate=evaluate if fitted else None)
            factorized = pipeline.run(fused)
            fidelity = metrics.fidelity(
                reference, metrics.embed(lambda feed, g=factorized: evaluate(g, feed), feeds)
            )
            table[f"{name} {rank}"] = {"rank": rank, "method": name, **fidelity}
            print(f"lowrank: {name} at rank {rank}: {fidelity}", flush=True)
            rows.save(arguments.out, results)
    rows.finish(arguments.out, results, start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
