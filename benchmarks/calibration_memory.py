"""Peak memory of a compilation against the number of calibration sentences: MiniLM, real text, every recipe.

    python benchmarks/calibration_memory.py [--recipes int8 prune …] [--counts 125 500 2000] [--passes LIST]

Each row is a process that compiles an ONNX file without measuring; its peak is the kernel's figure
(VmHWM of /proc/self/status, so Linux only). The sentences are of 30 to 300 characters, 8 in a batch. Other
work on the machine changes the seconds, which are printed, and not the peak, which is stored.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import rows

COUNTS = (125, 500, 2000)
RECIPES = ("int8", "lowrank", "prune", "prune-int8")
SCRIPTS = [Path(__file__)]

# The measured process: it imports no more than a user's would.
INNER = """
import json, sys, time
import tersor
model, texts, recipe, steps = sys.argv[1:]
start = time.perf_counter()
if steps:
    from tersor.cli.passlist import build_passes
    tersor.convert(model, build_passes(steps), calibration=texts)
else:
    tersor.compile(model, "cpu", recipe, calibration=texts, measure=False)
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps({"mib": peak, "seconds": time.perf_counter() - start}))
"""


def prepare(folder: Path, count: int) -> tuple[Path, Path]:
    """(MiniLM as an ONNX file with its tokenizer next to it, ``count`` sentences in a .txt file)."""
    from tersor.models.minilm import build, data

    model = folder / "minilm.onnx"
    if not model.exists():
        build.export_onnx(model)
        for name in ("tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
            shutil.copy(build.directory() / name, folder / name)
    sentences = data.sentences()
    texts = folder / f"{count}.txt"
    texts.write_text("\n".join(sentences[i % len(sentences)] for i in range(count)))
    return model, texts


def peak(model: Path, texts: Path, recipe: str, steps: str = "") -> dict[str, float]:
    """``mib``: largest resident memory of a compilation, MiB; ``seconds``: its duration."""
    command = [sys.executable, "-c", INNER, str(model), str(texts), recipe, steps]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is missing and writes JSON, row by row; what ``--passes`` name is printed only."""
    start = time.monotonic()
    parser = rows.parser(__doc__.splitlines()[0], "calibration_memory.json")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--passes", default="", help="these passes instead of recipes")
    chosen = parser.parse_args(arguments)
    results = rows.load(chosen.out, rows.conditions(SCRIPTS, {}), chosen.fresh)
    table = {} if chosen.passes else results.setdefault("mib", {})
    with tempfile.TemporaryDirectory() as name:
        for recipe in [chosen.passes] if chosen.passes else chosen.recipes:
            for count in chosen.counts:
                known = table.setdefault(recipe, {})
                if str(count) in known:
                    continue
                model, texts = prepare(Path(name), count)
                row = peak(model, texts, recipe, chosen.passes)
                known[str(count)] = round(row["mib"])
                figures = f"{row['mib']:.0f} MiB, {row['seconds']:.0f} s"
                print(f"calibration_memory: {recipe}, {count} sentences: {figures}", flush=True)
                if not chosen.passes:
                    rows.save(chosen.out, results)
    if not chosen.passes:
        rows.finish(chosen.out, results, start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
