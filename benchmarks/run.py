"""Runs all benchmarks, then updates the tables. Results measured under the same conditions are kept, so an
interrupted run resumes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from rows import ROOT, here, in_words

# The fastest first, so that failures show early; with the seconds that each takes on two idle cores.
SCRIPTS = {
    "kernels": 500,
    "tvm_profile": 200,
    "lowerings": 400,
    "exporters": 600,
    "break_even": 600,
    "lowrank": 600,
    "calibration_memory": 1500,
    "minilm": 2700,
    "pruning": 3000,
    "zoo": 3600,
}
ARGUMENTS = {"pruning": ["--curve"]}


def expected(script: str) -> float:
    """Seconds that a script takes to measure everything, by default or as recorded on this machine if
    longer."""
    results = here() / f"{script}.json"
    stored = json.loads(results.read_text()) if results.exists() else {}
    return max(float(stored.get("seconds", 0)), SCRIPTS[script])


def main() -> int:
    """Runs them; stops at the first failure."""
    left = {script: expected(script) for script in SCRIPTS}
    total = in_words(sum(left.values()))
    print(f"make bench: about {total} if nothing is measured yet, on an idle machine")
    for i, script in enumerate(SCRIPTS, 1):
        rest = in_words(sum(left.values()))
        print(
            f"[{i}/{len(SCRIPTS)}] {script}, about {in_words(left.pop(script))} of {rest}",
            flush=True,
        )
        start = time.monotonic()
        path = Path(__file__).with_name(f"{script}.py")
        if code := subprocess.run(
            [sys.executable, path, *ARGUMENTS.get(script, [])], cwd=ROOT
        ).returncode:
            print(f"{script} failed; its results so far are kept: `make bench` resumes")
            return code
        print(
            f"[{i}/{len(SCRIPTS)}] {script} took {in_words(time.monotonic() - start)}", flush=True
        )
    return subprocess.run([sys.executable, Path(__file__).with_name("table.py")]).returncode


if __name__ == "__main__":
    sys.exit(main())
