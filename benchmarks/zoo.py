"""Every workload, compiled from its ONNX file with fp32 and int8: the kept candidate, its speed over the
input, size, fidelity and task metric.

Stored rows are kept until Tersor's sources, the versions of its dependencies, the machine, this file or its
options change. `--fresh` measures all again.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import rows
from rows import Json, Tell, progress

import tersor
from tersor.driver import choosing
from tersor.models import training, zoo
from tersor.numerics.fidelity import fidelity
from tersor.pipeline import registry
from tersor.tuning import search

RECIPES = ("fp32", "int8")


def conditions() -> Json:
    """The conditions that rows of one table must share."""
    pairs = {"final": choosing.FINAL_PAIRS, "search": search.SEARCH_PAIRS}
    return rows.conditions([Path(__file__)], {"pairs": pairs})


def by_runtime(path: Path) -> zoo.Run:
    """The ONNX file in ONNX Runtime's default session."""
    return registry.reference().open_session(path).run


def workload_row(workload: zoo.Workload, original: Path) -> Json:
    """The reference for all recipes of a workload."""
    return {
        "metric_torch": workload.metric(zoo.runner(workload, workload.build())),
        "metric_input": workload.metric(by_runtime(original)),
        "bytes_input": original.stat().st_size,
        "recipes": {},
    }


def recipe_row(workload: zoo.Workload, original: Path, recipe: str, tell: Tell) -> Json:
    """One compilation with measuring, and the quality of its result."""
    start = time.perf_counter()
    artifact = tersor.compile(
        original,
        recipe=recipe,
        calibration=workload.calibration(),
        sizes=workload.sizes,
        progress=tell,
    )
    seconds = time.perf_counter() - start
    tell(0, 1, "computing the metric")
    before, feeds = by_runtime(original), workload.test()
    measured = fidelity([before(f) for f in feeds], [artifact.run(f) for f in feeds])
    report = artifact.report
    against_input = [
        {"candidate": row.candidate, "sizes": row.sizes, **asdict(timing)}
        for row, timing in report.against_input
    ]
    label = report.kept
    return {
        "kept": label,
        "decisions": [str(decision) for decision in report.decisions],
        "speed": [r for r in against_input if r["candidate"] == label],
        "not_kept": [r for r in against_input if r["candidate"] != label],
        "bytes": report.size_after,
        "fidelity": {
            name: value if value is not None and math.isfinite(value) else None
            for name in ("mean_cosine", "min_cosine", "max_error", "agreement")
            for value in [getattr(measured, name)]
        },
        "metric": workload.metric(artifact.run),
        "seconds": round(seconds, 1),
    }


def measure(results: Json, name: str, prefix: str, out: Path, folder: Path) -> None:
    """Adds missing rows of a workload to ``results``, and writes them one by one."""
    stored = results.setdefault("workloads", {})
    missing = [r for r in RECIPES if r not in stored.get(name, {}).get("recipes", {})]
    if not missing:
        print(f"{prefix}: up to date", flush=True)
        return
    workload, tell = zoo.find(name), progress(prefix)
    with training.telling(tell):
        original = workload.export_onnx(folder / f"{name}.onnx")
        if name not in stored:
            stored[name] = workload_row(workload, original)
    for recipe in missing:
        row = recipe_row(workload, original, recipe, progress(f"{prefix} {recipe}:"))
        stored[name]["recipes"][recipe] = row
        rows.save(out, results)
        print(f"{prefix} {recipe}: {'; '.join(row['decisions'])}; {row['metric']}", flush=True)


def main() -> int:
    """Measures what is missing and writes JSON, row by row."""
    start = time.monotonic()
    parser = rows.parser(__doc__, "zoo.json")
    parser.add_argument("--only", nargs="+", choices=zoo.names(), default=zoo.names())
    parser.add_argument(
        "--pairs", type=int, help="pairs of runs per comparison; use fewer for a trial run"
    )
    arguments = parser.parse_args()
    if arguments.pairs is not None:
        choosing.FINAL_PAIRS = search.SEARCH_PAIRS = arguments.pairs
    results = rows.load(arguments.out, conditions(), arguments.fresh)
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(arguments.only, 1):
            prefix = f"[{i}/{len(arguments.only)}] {name}"
            measure(results, name, prefix, arguments.out, Path(folder))
    rows.finish(arguments.out, results, start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
