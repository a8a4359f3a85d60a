"""All benchmarks, one after the other, then the tables of the pages. What was measured already under the
same conditions is kept: after an interruption it goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from rows import ROOT, here, in_words

# The quickest first, so that what does not run at all shows early; with the seconds that each takes on
# two cores that nobody else uses.
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
    """Seconds that a script takes when it measures all; where it took longer here, so long."""
    results = here() / f"{script}.json"
    held = json.loads(results.read_text()) if results.exists() else {}
    return max(float(held.get("seconds", 0)), SCRIPTS[script])


def main() -> int:
    """Runs them; the first that fails ends it."""
    left = {script: expected(script) for script in SCRIPTS}
    total = in_words(sum(left.values()))
    print(f"make bench: about {total} where nothing was measured yet; leave the machine alone")
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
            print(f"{script} failed; what it measured is kept: `make bench` goes on from there")
            return code
        print(
            f"[{i}/{len(SCRIPTS)}] {script} took {in_words(time.monotonic() - start)}", flush=True
        )
    return subprocess.run([sys.executable, Path(__file__).with_name("table.py")]).returncode


if __name__ == "__main__":
    sys.exit(main())
