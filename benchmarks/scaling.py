"""CPU seconds of each stage for graphs of 10,000 and 20,000 nodes, and their ratio.

python benchmarks/scaling.py [kind ...]     writes benchmarks/results/scaling.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for the graphs, which tests share

from large import KINDS, nodes

from tersor.analysis.summary import summarize
from tersor.backends.ort.lower import lower
from tersor.frontends.onnx import export_model, import_model
from tersor.ir import parse, print_graph, verify, weights_of
from tersor.ops import TABLE
from tersor.passes import canonicalization, optimization
from tersor.pipeline import Pipeline

SIZES = (10_000, 20_000)
MOST = (
    "mixed_chain",
    "transformer",
    "transposes",
    "shapes",
    "fan_out",
    "equal_weights",
    "branches",
)
OUT = Path(__file__).parent / "results" / "scaling.json"


def measure(kind: str, size: int) -> dict[str, float]:
    """Seconds of CPU by stage."""
    model = KINDS[kind](size)
    data, spent = model.SerializeToString(), {"nodes": float(nodes(model))}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = work()
        spent[stage] = round(time.process_time() - start, 3)
        return result

    graph = timed("import", lambda: import_model(data))
    timed("canonicalize", lambda: Pipeline([canonicalization()]).run(graph))
    optimized = timed("optimize", lambda: Pipeline(optimization()).run(graph))
    lowered = timed("lower", lambda: lower(optimized))
    timed("export", lambda: export_model(lowered))
    text = timed("print", lambda: print_graph(graph))
    timed("parse", lambda: parse(text, TABLE, weights_of(graph)))
    timed("copy", graph.copy)
    timed("verify", lambda: verify(graph))
    timed("summarize", lambda: summarize(graph))
    return spent


def main() -> int:
    """Measures the kinds given as arguments, or the most informative ones."""
    measure("transformer", 200)  # Warms up what is loaded and cached once.
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    for kind in sys.argv[1:] or MOST:
        small, large = (measure(kind, size) for size in SIZES)
        grown = {s: round(large[s] / small[s], 2) for s in small if small[s] > 0}
        results[kind] = {str(SIZES[0]): small, str(SIZES[1]): large, "ratio": grown}
        OUT.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{kind}: canonicalize {large['canonicalize']} s, {grown['canonicalize']} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
