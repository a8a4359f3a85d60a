"""Fuzzes the loaders for a bounded time.

    python tests/fuzz/run.py [--target onnx] [--seconds 120] [--work build/fuzz]

Every target begins from the inputs kept in ``corpus/``; what is new goes to ``WORK/TARGET/corpus``, and
findings to ``WORK/TARGET/findings``. Exits with 1 where there is a finding.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The share of the time that each target gets.
SHARES = {"onnx": 0.7, "text": 0.12, "npz": 0.06, "manifest": 0.06, "recipe": 0.06}
SLOW = 30  # seconds for one input that are a hang


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=sorted(SHARES), help="one alone (default: all)")
    parser.add_argument("--seconds", type=int, default=120, help="for all together")
    parser.add_argument("--work", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    shares = {options.target: 1.0} if options.target else SHARES
    findings = 0
    for target, share in shares.items():
        findings += fuzz(target, max(5, round(options.seconds * share)), options.work)
    return 1 if findings else 0


def fuzz(target: str, seconds: int, work: Path) -> int:
    """Fuzzes one target; how many findings there are."""
    made, found = work / target / "corpus", work / target / "findings"
    for folder in (made, found):
        folder.mkdir(parents=True, exist_ok=True)
    start, runs, coverage = time.monotonic(), 0, 0
    left: float = seconds
    # One that died early is started again, if there is time for more than starting.
    while runs == 0 or left > 15:
        log = _child(target, round(left), made, found)
        counts = re.findall(r"^#(\d+)\s.*?cov: (\d+)", log, re.MULTILINE)
        if not counts or "Traceback (most recent call last)" in log:
            print(log[-3000:], file=sys.stderr)
            raise SystemExit(f"fuzzing {target}: the fuzzer itself failed")
        runs += int(counts[-1][0])
        coverage = max(coverage, int(counts[-1][1]))
        left = seconds - (time.monotonic() - start)
    names = sorted(p.name for p in found.iterdir())
    print(
        f"{target}: {runs} inputs in {time.monotonic() - start:.0f} s, coverage {coverage} edges, "
        f"corpus {sum(1 for _ in made.iterdir())}, findings {len(names)}",
        flush=True,
    )
    for name in names:
        print(f"  {found / name}")
    return len(names)


def _child(target: str, seconds: int, made: Path, found: Path) -> str:
    """Runs one fuzzing process to its end, or its death; what it said."""
    command = [
        sys.executable, str(HERE / "child.py"), target, str(found), str(made), str(HERE / "corpus" / target),
        f"-max_total_time={seconds}", f"-timeout={SLOW}", "-rss_limit_mb=3000",
        f"-artifact_prefix={found}/", "-print_final_stats=1",
    ]  # fmt: skip
    # onnx and torch start threads for nothing here, and each maps memory that the limit counts.
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    log = made.parent / "log"
    with log.open("wb") as file:
        subprocess.run(command, stderr=file, stdout=file, env=quiet, check=False)
    return log.read_text(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
