"""Third-party models through every recipe on both runtimes, compared with other tools.

Each row runs in its own process, so that a crash or a timeout affects only that row.  Outputs are
compared with ONNX Runtime on the input model without optimization, on inputs not used for calibration.

``python real_models.py`` adds missing rows to results/real_models.json, and writes REAL_MODELS.md from it;
``python real_models.py --row MODEL RECIPE RUNTIME`` prints one row.  On a shared machine, ``--keep`` keeps
rows of earlier sources (each row records its own), and ``--within`` is the command that starts a row:
``nice -n -19``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rows
from rows import Json

sys.path.insert(0, str(rows.ROOT / "tests"))
from real.models import BY_NAME, CALIBRATION, MODELS, Feed, Model, installed, reference

from tersor.pipeline.report import FEW_ROWS, INPUT
from tersor.target import usable_cores

TABLE = rows.ROOT / "benchmarks" / "REAL_MODELS.md"
RECIPES = ("fp32", "int8", "prune", "lowrank")
RUNTIMES = ("ort", "tvm")
# The command without options, measured; the others are built without measuring.
DEFAULT = "default"
LIMIT = 600.0
REASONS = 4  # The most frequent ones of each pass.
PEERS = ("onnx", "onnxslim", "onnxsim")


def row(model: Model, recipe: str, runtime: str) -> Json:
    """The outcome of one compilation."""
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
    outcome: Json = {
        "outcome": "built",
        "seconds": round(time.perf_counter() - start, 1),
        "cores": len(usable_cores()),
        "runtime": artifact.runtime,
        "bytes": report.size_after,
        "decisions": [str(d) for d in report.decisions if d.outcome != "unmeasured"],
        "stayed": {p.name.partition("{")[0]: stayed(p.skips) for p in lossy(recipe, report.passes)},
        "few": [str(n) for p in report.passes for n in p.notes if n.method == FEW_ROWS],
        "errors": errors(model, artifact.run, feeds[CALIBRATION:]),
        "speed": kept_speed(report),
    }
    if artifact.runtime == "ort":
        with tempfile.TemporaryDirectory() as folder:
            outcome["nodes"] = nodes(Path(artifact.save(Path(folder) / "m.onnx")))
    return outcome


def kept_speed(report: Any) -> list[float]:
    """Speedups over the input of the kept candidate at each size; empty if the input itself was kept."""
    last = [d for d in report.decisions if d.outcome == "kept"][-1:]
    if not last or last[0].candidate == INPUT:
        return []
    rows_of = report.against_input
    return [t.speedup for row, t in rows_of if row.candidate == rows_of[-1][0].candidate]


def lossy(recipe: str, reports: Sequence[Any]) -> list[Any]:
    """The reports of the passes that compress, which are a recipe's last."""
    from tersor import Recipe

    steps = Recipe.of("int8" if recipe == DEFAULT else recipe).build()
    return [r for s, r in zip(steps[::-1], reports[::-1], strict=False) if s.keeps.values is None]


def stayed(skips: Iterable[Any]) -> dict[str, int]:
    """Reasons why layers were left unchanged, with counts, the most frequent first; without names and
    figures."""
    reasons = Counter(_general(skip.reason or skip.method) for skip in skips)
    return dict(reasons.most_common(REASONS))


def _general(why: str) -> str:
    return re.sub(r"\d+\.\d+", "…", re.sub(r"[@%][^\s,:;]+", "it", why))


def errors(model: Model, run: Any, feeds: list[Feed]) -> Json:
    """The relative error of each output or, for integers and booleans, the share that changed."""
    want = reference(model.path)
    worst: Json = {}
    for feed in feeds:
        expected, got = want(feed), run(feed)
        for name, a in expected.items():
            worst[name] = max(worst.get(name, 0.0), difference(a, got[name]))
    return worst


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
    """The number of nodes except constants, including subgraphs."""
    import onnx

    def count(graph: Any) -> int:
        return sum(
            (node.op_type != "Constant")
            + sum(count(sub) for a in node.attribute for sub in (*a.graphs, a.g))
            for node in graph.node
        )

    return count(onnx.load(path, load_external_data=False).graph)


def peers(model: Model) -> Json:
    """Size and nodes of the input and of other tools' results: graph simplifiers, ONNX Runtime's int8."""
    outcomes: Json = {"bytes": model.path.stat().st_size, "nodes": {"input": nodes(model.path)}}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "m.onnx"
        for tool in ("onnxslim", "onnxsim"):
            command = [sys.executable, "-m", tool, str(model.path), str(out)]
            done = subprocess.run(command, capture_output=True, timeout=LIMIT)
            if done.returncode == 0 and out.exists():
                outcomes["nodes"][tool] = nodes(out)
        script = (
            "import sys; from onnxruntime.quantization import quantize_dynamic;"
            "quantize_dynamic(*sys.argv[1:3], per_channel=True)"
        )
        out = Path(folder) / "q.onnx"
        command = [sys.executable, "-c", script, str(model.path), str(out)]
        done = subprocess.run(command, capture_output=True, timeout=LIMIT, text=True)
        if done.returncode == 0 and out.exists():
            outcomes["quantize_dynamic"] = {"bytes": out.stat().st_size, **outcome_of(model, out)}
        else:
            outcomes["quantize_dynamic"] = {"why": _last_line(done)}
    return outcomes


def outcome_of(model: Model, path: Path) -> Json:
    """The errors of another tool's file of a model, or why it does not run."""
    try:
        run = reference(path, optimized=True)
        return {"errors": errors(model, run, model.feeds()[CALIBRATION:])}
    except Exception as error:  # ONNX Runtime may raise anything.
        return {"why": str(error).splitlines()[0][:300]}


def in_process(within: Sequence[str], *arguments: str) -> Json:
    """A row computed in its own process, started by ``within``."""
    command = [*within, sys.executable, __file__, "--row", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"outcome": "failed", "why": f"not finished after {LIMIT:.0f} s"}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        return {"outcome": "failed", "why": _last_line(done)}


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
    return last[0][:300]


# -- the table -------------------------------------------------------------------------------------


def table(results: Json) -> str:
    """The outcome for each model: against other tools, then by recipe and runtime, then the reasons."""
    machine, models = results["conditions"]["machine"], results["models"]
    all_rows = [row for model in models.values() for row in model["rows"].values()]
    older = sum(row["code"] != results["conditions"]["code"] for row in all_rows)
    return (
        "# Third-party models\n\n"
        "Each through every recipe, calibrated on eight batches of inputs like those of its package, and "
        "through the command without options (`default`).\n\n"
        f"{machine['cpu']}, {machine['cores']} threads. Generated by `make real-table`"
        + (f"; {older} of {len(all_rows)} rows are of earlier sources" if older else "")
        + ".\n\n## Compared with other tools\n\n"
        "Nodes: without constants. The default command's speed is that of the kept candidate over the input "
        "file: the lowest of the measured sizes. Errors: as below.\n\n"
        + _markdown(_COMPARED, [_compared(name, outcomes) for name, outcomes in models.items()])
        + "\n## Recipes\n\n"
        "A cell: megabytes, the largest relative error of an output on four other batches against ONNX "
        "Runtime without optimization (of integers: the share that changed), seconds of compiling, on a "
        "shared machine.\n\n"
        + _markdown(
            ["model", "MB", *(f"{r} {t}" for r, t in _COLUMNS)],
            [
                [name, _mb(outcomes["peers"]["bytes"])]
                + [_cell(outcomes["rows"].get(f"{r} {t}", {})) for r, t in _COLUMNS]
                for name, outcomes in models.items()
            ],
        )
        + _reasons(models)
    )


_COLUMNS = [(recipe, runtime) for recipe in RECIPES for runtime in RUNTIMES]
_COMPARED = ["model", "MB", "default", "quantize_dynamic", "nodes", "onnxslim", "onnxsim", "ours"]


def _compared(name: str, outcomes: Json) -> list[str]:
    peers_of, rows_of = outcomes["peers"], outcomes["rows"]
    count, theirs = peers_of["nodes"], peers_of["quantize_dynamic"]
    quantized = f"{_mb(theirs['bytes'])}, {_worst(theirs)}" if "bytes" in theirs else "fails"
    default = rows_of.get(f"{DEFAULT} ort", {})
    speed = f", {min(default['speed']):.2f}x" if default.get("speed") else ""
    return [
        name,
        _mb(peers_of["bytes"]),
        _cell(default) + speed,
        quantized,
        str(count["input"]),
        *(str(count.get(tool, "fails")) for tool in ("onnxslim", "onnxsim")),
        str(rows_of.get("fp32 ort", {}).get("nodes", "")),
    ]


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table without its empty columns."""
    kept = [i for i in range(len(head)) if any(line[i] for line in lines)]
    every = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(line[i] for i in kept) + " |\n" for line in every)


def _mb(size: float) -> str:
    return f"{size / 1e6:.2f}"


def _worst(outcome: Json) -> str:
    """The largest error of an output."""
    return (
        f"{max(outcome['errors'].values(), default=0.0):.1e}"
        if "errors" in outcome
        else "does not run"
    )


def _cell(outcome: Json) -> str:
    if outcome.get("outcome") != "built":
        return str(outcome.get("outcome", ""))
    kept = (
        ", the input" if any(d.startswith("kept the input") for d in outcome["decisions"]) else ""
    )
    return f"{_mb(outcome['bytes'])}, {_worst(outcome)}, {outcome['seconds']:.0f} s{kept}"


def _reasons(models: Json) -> str:
    """Why a row has no result, kept the input, or left layers unchanged."""
    parts = [
        ("Refused or failed", lambda r: [r["why"]] if r["outcome"] != "built" else []),
        ("Decisions", lambda r: r.get("decisions", [])),
        ("Warnings", lambda r: r.get("few", [])),
        ("Layers left unchanged, and why", _stayed),
    ]
    text = ""
    for title, lines_of in parts:
        lines: dict[str, list[str]] = {}
        for name, outcomes in models.items():
            for key, row in outcomes["rows"].items():
                if reasons := "; ".join(lines_of(row)):
                    lines.setdefault(f"{name}: {reasons}", []).append(key)
        if lines:
            text += f"\n## {title}\n\n" + "".join(
                f"- {line} ({', '.join(rows)})\n" for line, rows in lines.items()
            )
    return text


def _stayed(row: Json) -> list[str]:
    return [
        f"{name}: " + ", ".join(f"{count} because {why}" for why, count in reasons.items())
        for name, reasons in row.get("stayed", {}).items()
        if reasons
    ]


def conditions() -> Json:
    scripts = [Path(__file__), rows.ROOT / "tests" / "real" / "models.py"]
    return rows.conditions(scripts, {"limit": LIMIT}, PEERS[:1])


def main() -> int:
    """Computes missing rows, writes JSON after each, and finally the table."""
    start = time.monotonic()
    if sys.argv[1:2] == ["--row"]:
        name, recipe, runtime = sys.argv[2:5]
        print(json.dumps(row(BY_NAME[name], recipe, runtime)))
        return 0
    parser = rows.parser(__doc__, "real_models.json")
    names = [m.name for m in MODELS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="MODEL")
    parser.add_argument("--recipes", nargs="+", default=[DEFAULT, *RECIPES])
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--within", default="", help="the command that starts a row")
    parser.add_argument("--keep", action="store_true", help="keep rows of earlier sources")
    arguments = parser.parse_args()
    if not installed():
        print(
            "the packages of tests/real/packages.txt are not installed: make real", file=sys.stderr
        )
        return 1
    results = before(arguments)
    for name in arguments.only:
        outcomes = results.setdefault("models", {}).setdefault(name, {"rows": {}})
        if "peers" not in outcomes and RUNTIMES[0] in arguments.runtimes:
            outcomes["peers"] = peers(BY_NAME[name])
        for recipe in arguments.recipes:
            for runtime in RUNTIMES[:1] if recipe == DEFAULT else arguments.runtimes:
                key = f"{recipe} {runtime}"
                if key not in outcomes["rows"]:
                    new = in_process(arguments.within.split(), name, recipe, runtime)
                    outcomes["rows"][key] = {**new, "code": results["conditions"]["code"]}
                    rows.save(arguments.out, results)
                    print(f"{name}, {key}: {new.get('why') or _cell(new)}", flush=True)
    rows.finish(arguments.out, results, start)
    if all("peers" in outcomes for outcomes in results["models"].values()):
        TABLE.write_text(table(results))
    return 0


def before(arguments: argparse.Namespace) -> Json:
    """The rows so far; with ``--keep``, those of earlier sources too."""
    wanted = conditions()
    if arguments.keep and arguments.out.exists():
        stored: Json = json.loads(arguments.out.read_text())
        if {**stored["conditions"], "code": ""} == {**json.loads(json.dumps(wanted)), "code": ""}:
            return {**stored, "conditions": wanted}
    return rows.load(arguments.out, wanted, arguments.fresh)


if __name__ == "__main__":
    sys.exit(main())
