"""The rank from which a factorized linear layer is no longer faster: fp32 and int8, in ONNX Runtime.

A single layer of MiniLM's sizes, and its factors at ranks from a quarter of the limit by operation count,
k n / (k + n), to the limit, in pairs: two processes, interleaved, on the same rows. Work grows linearly with
the rank, so the break-even rank is where the line through the ratios of the times, factors over layer,
reaches 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import rows

from tersor.built import Built
from tersor.ir import DType, Graph, TensorType, Value, symbol
from tersor.numerics.lowrank import count_limit
from tersor.ops import TABLE
from tersor.pipeline import Pipeline, registry
from tersor.tuning.measure import Bench, compare

SHAPES = ((384, 384), (384, 1536), (1536, 384))
ROWS = (32, 128, 1024)
SHARES = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # Relative to the limit by count.
TILE = 16
PRECISIONS = ("fp32", "int8")
SCRIPTS = [Path(__file__)]


def model(sizes: Sequence[int], precision: str) -> Built:
    """Linear layers one after the other, of ``sizes`` from input to output."""
    rng = np.random.default_rng(0)
    graph = Graph("layers", TABLE)
    x: Value = graph.add_input("x", TensorType(DType.F32, (symbol("rows"), sizes[0])))
    for k, n in pairwise(sizes):
        weight = rng.standard_normal((k, n)) / k**0.5
        x = graph.emit("tersor.Linear", [x, graph.constant(weight.astype(np.float32), "w")])
    graph.set_outputs([x], ["y"])
    if precision == "int8":
        graph = Pipeline([registry.find_pass("quantize-dynamic")()]).run(graph)
    built: Built = registry.backend("ort").build(graph)
    return built


def ranks(k: int, n: int) -> list[int]:
    """Multiples of TILE at SHARES of the limit."""
    return sorted({max(int(share * count_limit(k, n)) // TILE, 1) * TILE for share in SHARES})


def measure(k: int, n: int, precision: str, pairs: int) -> list[dict[str, Any]]:
    """A result for each of ROWS."""
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((m, k)).astype(np.float32)} for m in ROWS]
    choice = registry.backend("ort").Choice().to_json()
    results: list[dict[str, Any]] = [
        {"shape": f"{k}x{n}", "precision": precision, "rows": m, "ranks": []} for m in ROWS
    ]
    with Bench(feeds) as bench:
        dense = bench.start("ort", model([k, n], precision), choice)
        for rank in ranks(k, n):
            factors = bench.start("ort", model([k, rank, n], precision), choice)
            for i, row in enumerate(results):
                paired = compare(dense, factors, i, pairs).to_json()
                row["ranks"].append({"rank": rank, **paired})
            factors.stop()
    for row in results:
        row["limit_by_count"] = round(count_limit(k, n), 1)
        row["dense_ms"] = round(float(np.median([r["before_ms"] for r in row["ranks"]])), 3)
        row["break_even"] = break_even(
            [r["rank"] for r in row["ranks"]], [r["speedup"] for r in row["ranks"]]
        )
    return results


def break_even(measured: Sequence[int], speedups: Sequence[float]) -> int | None:
    """The rank at which the line of 1 / speedup reaches 1; None if below the smallest one measured; the
    largest if it never does."""
    slope, start = np.polyfit(measured, 1 / np.asarray(speedups), 1)
    at = (1 - start) / slope if slope > 0 else measured[-1]
    return round(min(at, measured[-1])) if at >= measured[0] else None


def main() -> int:
    """Measures what is missing and writes JSON, layer by layer."""
    start = time.monotonic()
    parser = rows.parser(__doc__, "break_even.json")
    parser.add_argument("--pairs", type=int, default=20)
    arguments = parser.parse_args()
    wanted = rows.conditions(SCRIPTS, {"pairs": arguments.pairs})
    results = rows.load(arguments.out, wanted, arguments.fresh)
    table = results.setdefault("layers", {})
    for precision in PRECISIONS:
        for k, n in SHAPES:
            name = f"{precision} {k}x{n}"
            if name not in table:
                table[name] = measure(k, n, precision, arguments.pairs)
                rows.save(arguments.out, results)
            for row in table[name]:
                print(
                    f"{name}, {row['rows']} rows: {row['dense_ms']} ms, break-even rank "
                    f"{row['break_even']} of {row['limit_by_count']} by count",
                    flush=True,
                )
    rows.finish(arguments.out, results, start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
