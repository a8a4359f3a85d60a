"""Models that others made, through every recipe on both runtimes, beside what other tools make of them.

Each row is a process of its own, so that one that dies, or never ends, costs itself alone.  Outputs are
held against ONNX Runtime on the input model without optimization, on inputs that calibration did not see.

``python real_models.py`` adds the rows that are missing to results/real_models.json, and writes
REAL_MODELS.md from it; ``python real_models.py --row MODEL RECIPE RUNTIME`` tells one row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rows
from rows import Json

sys.path.insert(0, str(rows.ROOT / "tests"))
from real.models import BY_NAME, CALIBRATION, MODELS, Feed, Model, installed, reference

TABLE = rows.ROOT / "benchmarks" / "REAL_MODELS.md"
RECIPES = ("fp32", "int8", "prune", "lowrank")
RUNTIMES = ("ort", "tvm")
DEFAULT = "default"  # The command without any option, measured; the others are not measured.
LIMIT = 600.0
PEERS = ("onnx", "onnxslim", "onnxsim")


def row(model: Model, recipe: str, runtime: str) -> Json:
    """One compilation: what came of it."""
    import tersor
    from tersor.errors import TersorError

    feeds = model.feeds()
    start = time.perf_counter()
    options: Json = {"recipe": recipe, "calibration": feeds[:CALIBRATION], "measure": False}
    try:
        artifact = tersor.compile(
            model.path, runtime=runtime, **({} if recipe == DEFAULT else options)
        )
    except TersorError as error:
        return {"outcome": "refused", "why": str(error)}
    report = artifact.report
    made: Json = {
        "outcome": "built",
        "seconds": round(time.perf_counter() - start, 1),
        "runtime": artifact.runtime,
        "bytes": report.size_after,
        "decisions": [str(decision) for decision in report.decisions],
        "errors": errors(model, artifact.run, feeds[CALIBRATION:]),
        "speed": [timing.speedup for _, timing in report.against_input],
    }
    if artifact.runtime == "ort":
        with tempfile.TemporaryDirectory() as folder:
            made["nodes"] = nodes(Path(artifact.save(Path(folder) / "m.onnx")))
    return made


def errors(model: Model, run: Any, feeds: list[Feed]) -> Json:
    """Of each output: the relative error, or of integers and booleans the share that changed."""
    want = reference(model.path)
    found: Json = {}
    for feed in feeds:
        expected, got = want(feed), run(feed)
        for name, a in expected.items():
            found[name] = max(found.get(name, 0.0), difference(a, got[name]))
    return found


def difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype.kind != "f":
        return float((a != b).mean()) if a.size else 0.0
    wide, other = a.astype(np.float64), b.astype(np.float64)
    if not np.array_equal(np.isfinite(wide), np.isfinite(other)):
        return float("inf")
    wide, other = (x[np.isfinite(x)] for x in (wide, other))
    return float(np.linalg.norm(wide - other) / max(float(np.linalg.norm(wide)), 1e-30))


def nodes(path: Path) -> int:
    """All nodes but constants, those of subgraphs too."""
    import onnx

    def count(graph: Any) -> int:
        return sum(
            (node.op_type != "Constant")
            + sum(count(sub) for a in node.attribute for sub in (*a.graphs, a.g))
            for node in graph.node
        )

    return count(onnx.load(path, load_external_data=False).graph)


def peers(model: Model) -> Json:
    """Sizes and nodes of the input, by tools that simplify, and of ONNX Runtime's own int8."""
    made: Json = {"bytes": model.path.stat().st_size, "nodes": {"input": nodes(model.path)}}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "m.onnx"
        for tool in ("onnxslim", "onnxsim"):
            command = [sys.executable, "-m", tool, str(model.path), str(out)]
            done = subprocess.run(command, capture_output=True, timeout=LIMIT)
            if done.returncode == 0 and out.exists():
                made["nodes"][tool] = nodes(out)
        script = (
            "import sys; from onnxruntime.quantization import quantize_dynamic;"
            "quantize_dynamic(*sys.argv[1:3], per_channel=True)"
        )
        out = Path(folder) / "q.onnx"
        command = [sys.executable, "-c", script, str(model.path), str(out)]
        done = subprocess.run(command, capture_output=True, timeout=LIMIT)
        if done.returncode == 0 and out.exists():
            made["quantize_dynamic"] = out.stat().st_size
    return made


def in_process(*arguments: str) -> Json:
    """A row by a process of its own."""
    command = [sys.executable, __file__, "--row", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"outcome": "failed", "why": f"not done after {LIMIT:.0f} s"}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        return {"outcome": "failed", "why": last[0][:300]}


# -- the table -------------------------------------------------------------------------------------


def table(results: Json) -> str:
    """A line for each model: what came of each recipe and runtime."""
    machine = results["conditions"]["machine"]
    columns = [(DEFAULT, "ort"), *((r, t) for r in RECIPES for t in RUNTIMES)]
    head = ["model", "MB", "nodes", "onnxslim", "onnxsim", "ours", "quantize_dynamic MB"]
    head += [f"{r} {t}" for r, t in columns]
    lines = [head, ["---"] * len(head)]
    for name, held in results["models"].items():
        given, made = held["peers"], held["rows"]
        count = given["nodes"]
        lossless = made.get("fp32 ort", {})
        line = [name, _mb(given["bytes"]), str(count["input"])]
        line += [str(count.get(t, "")) for t in ("onnxslim", "onnxsim")]
        line += [str(lossless.get("nodes", "")), _mb(given.get("quantize_dynamic"))]
        line += [_cell(made.get(f"{r} {t}", {})) for r, t in columns]
        lines.append(line)
    # What was not measured yet has no column.
    kept = [i for i in range(len(head)) if any(line[i] for line in lines[2:])]
    lines = [[line[i] for i in kept] for line in lines]
    rendered = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        "# Models that others made\n\n"
        "Each through every recipe, calibrated on eight batches of inputs like those that its package "
        "makes, and through the command without options (`default`). A cell: megabytes, the largest "
        "relative error of an output on four other batches against ONNX Runtime without optimization (of "
        "integers: the share that changed), and the smallest speed over the input where it was measured. "
        "Nodes: constants not counted.\n\n"
        f"{machine['cpu']}, {machine['cores']} threads. Made by `make real-table`.\n\n{rendered}\n"
        + _reasons(results)
    )


def _mb(size: float | None) -> str:
    return "" if size is None else f"{size / 1e6:.2f}"


def _cell(made: Json) -> str:
    if made.get("outcome") != "built":
        return str(made.get("outcome", ""))
    worst = max(made["errors"].values(), default=0.0)
    speed = f", {min(made['speed']):.2f}x" if made["speed"] else ""
    kept = ", the input" if any(d.startswith("kept the input") for d in made["decisions"]) else ""
    return f"{_mb(made['bytes'])}, {worst:.1e}{speed}{kept}"


def _reasons(results: Json) -> str:
    lines = [
        f"- {name}, {what}: {made['outcome']}: {made['why']}"
        for name, held in results["models"].items()
        for what, made in held["rows"].items()
        if made["outcome"] != "built"
    ]
    return "\n" + "\n".join(["What was refused, or failed:", "", *lines]) + "\n" if lines else ""


def conditions() -> Json:
    scripts = [Path(__file__), rows.ROOT / "tests" / "real" / "models.py"]
    return rows.conditions(scripts, {"limit": LIMIT}, PEERS[:1])


def main() -> int:
    """Measures what is missing and writes JSON, row by row, and the table at last."""
    start = time.monotonic()
    if sys.argv[1:2] == ["--row"]:
        name, recipe, runtime = sys.argv[2:5]
        print(json.dumps(row(BY_NAME[name], recipe, runtime)))
        return 0
    parser = rows.parser(__doc__, "real_models.json")
    names = [m.name for m in MODELS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--recipes", nargs="+", default=[DEFAULT, *RECIPES])
    arguments = parser.parse_args()
    if not installed():
        print(
            "the packages of tests/real/packages.txt are not installed: make real", file=sys.stderr
        )
        return 1
    results = rows.load(arguments.out, conditions(), arguments.fresh)
    for i, name in enumerate(arguments.only, 1):
        held = results.setdefault("models", {}).setdefault(name, {"rows": {}})
        if "peers" not in held:
            held["peers"] = peers(BY_NAME[name])
        for recipe in arguments.recipes:
            for runtime in RUNTIMES[:1] if recipe == DEFAULT else RUNTIMES:
                key = f"{recipe} {runtime}"
                if key not in held["rows"]:
                    held["rows"][key] = in_process(name, recipe, runtime)
                    rows.save(arguments.out, results)
                    told = held["rows"][key]
                    print(
                        f"[{i}/{len(arguments.only)}] {name}, {key}: {told.get('why') or _cell(told)}",
                        flush=True,
                    )
    rows.finish(arguments.out, results, start)
    TABLE.write_text(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
