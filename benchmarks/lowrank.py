"""MiniLM's linear layers in two of one rank, by plain and by activation-aware SVD: fidelity at each rank.

No layer is refused for its speed here; a layer whose factors would be larger than it stays whole.
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
# Plain: the weight alone, no data. Refitted: of the same factors the second is fitted to the outputs.
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
            given = calibration if fitted else ()
            pipeline = Pipeline([step], calibration=given, evaluate=evaluate if fitted else None)
            made = pipeline.run(fused)
            told = metrics.fidelity(
                reference, metrics.embed(lambda feed, g=made: evaluate(g, feed), feeds)
            )
            table[f"{name} {rank}"] = {"rank": rank, "method": name, **told}
            print(f"lowrank: {name} at rank {rank}: {told}", flush=True)
            rows.save(arguments.out, results)
    rows.finish(arguments.out, results, start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
