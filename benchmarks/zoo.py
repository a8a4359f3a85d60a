"""Every workload, from its ONNX file, compiled with fp32 and int8: what was kept, how much faster than
the input it is, its size, its fidelity and what it does at its task.

Rows that are there already are kept where nothing that they depend on has changed: Tersor's source, the
versions of what it builds on, the machine, this file and its options. `--fresh` measures all anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tersor
from tersor import driver, registry
from tersor.analysis.fidelity import fidelity
from tersor.artifact.manifest import versions
from tersor.models import training, zoo
from tersor.target import Target
from tersor.tuning import search

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "zoo.json"
RECIPES = ("fp32", "int8")
FOLDERS = ("compiler", "passes", "backends", "models")
Json = dict[str, Any]
Tell = Callable[[int, int, str], None]


def code() -> str:
    """Of all sources and recipes that a row depends on."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".toml"):
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def conditions() -> Json:
    """What rows have to share to stand in one table."""
    host = Target.host()
    pairs = {"final": driver.FINAL_PAIRS, "search": search.SEARCH_PAIRS}
    features = sorted(host.features)
    machine = {"cpu": host.cpu, "features": features, "cores": os.cpu_count()}
    return {"code": code(), "versions": versions(), "machine": machine, "pairs": pairs}


def load(path: Path, wanted: Json, fresh: bool) -> Json:
    """The results so far, if they were had under the ``wanted`` conditions; else none."""
    if path.exists() and not fresh:
        held: Json = json.loads(path.read_text())
        if held.get("conditions") == json.loads(json.dumps(wanted)):
            return held
        print("other sources, versions or machine than those of the rows so far: all anew")
    return {"conditions": wanted, "workloads": {}}


def save(path: Path, results: Json) -> None:
    """Writes ``path`` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".partial")
    staged.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    os.replace(staged, path)


def by_runtime(path: Path) -> zoo.Run:
    """The ONNX file in ONNX Runtime's default session."""
    backend = registry.backend("ort")
    session = backend.open_session(path)
    return lambda feed: backend.run(session, feed)


def workload_row(workload: zoo.Workload, original: Path) -> Json:
    """What all recipes of a workload are compared with."""
    return {
        "metric_torch": workload.metric(zoo.runner(workload, workload.build())),
        "metric_input": workload.metric(by_runtime(original)),
        "bytes_input": original.stat().st_size,
        "recipes": {},
    }


def recipe_row(workload: zoo.Workload, original: Path, recipe: str, tell: Tell) -> Json:
    """One compilation with measuring, and what its result does."""
    start = time.perf_counter()
    artifact = tersor.compile(
        original,
        recipe=recipe,
        calibration=workload.calibration(),
        sizes=workload.sizes,
        progress=tell,
    )
    seconds = time.perf_counter() - start
    tell(0, 1, "asking the metric")
    before, feeds = by_runtime(original), workload.test()
    told = fidelity([before(f) for f in feeds], [artifact.run(f) for f in feeds])
    report = artifact.report
    against_input = [r for r in report.measured if r["against"] == "the input"]
    label = kept(report.decisions)
    return {
        "kept": label,
        "decisions": report.decisions,
        "speed": [r for r in against_input if r["candidate"] == label],
        "not_kept": [r for r in against_input if r["candidate"] != label],
        "bytes": report.size_after,
        "fidelity": {k: v if math.isfinite(v) else None for k, v in told.items()},
        "metric": workload.metric(artifact.run),
        "seconds": round(seconds, 1),
    }


def kept(decisions: list[str]) -> str:
    """The candidate that the report says was kept."""
    (said,) = (d for d in decisions if d.startswith("kept "))
    return said.removeprefix("kept ").partition(":")[0]


def progress(prefix: str, every: float = 5.0) -> Tell:
    """Prints what is being done, not more often than each ``every`` seconds."""
    last = -math.inf

    def tell(done: int, total: int, what: str) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            print(f"{prefix} {what} ({done}/{total})", flush=True)

    return tell


def measure(results: Json, name: str, prefix: str, out: Path, folder: Path) -> None:
    """Adds to ``results`` the rows of a workload that are missing, and writes them one by one."""
    rows = results["workloads"]
    missing = [r for r in RECIPES if r not in rows.get(name, {}).get("recipes", {})]
    if not missing:
        print(f"{prefix}: kept as it was", flush=True)
        return
    workload, tell = zoo.find(name), progress(prefix)
    with training.telling(tell):
        original = workload.export_onnx(folder / f"{name}.onnx")
        if name not in rows:
            rows[name] = workload_row(workload, original)
    for recipe in missing:
        row = recipe_row(workload, original, recipe, progress(f"{prefix} {recipe}:"))
        rows[name]["recipes"][recipe] = row
        save(out, results)
        print(f"{prefix} {recipe}: {'; '.join(row['decisions'])}; {row['metric']}", flush=True)


def main() -> int:
    """Measures what is missing and writes JSON, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=zoo.names(), default=zoo.names())
    parser.add_argument("--fresh", action="store_true", help="measure anew what is there already")
    parser.add_argument("--pairs", type=int, help="pairs of runs a comparison; fewer are a trial")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.pairs is not None:
        driver.FINAL_PAIRS = search.SEARCH_PAIRS = arguments.pairs
    results = load(arguments.out, conditions(), arguments.fresh)
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(arguments.only, 1):
            prefix = f"[{i}/{len(arguments.only)}] {name}"
            measure(results, name, prefix, arguments.out, Path(folder))
    results["target"] = {k: str(v) for k, v in asdict(Target.host().measured()).items()}
    save(arguments.out, results)
    print(f"written: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
