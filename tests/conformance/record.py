"""Writes down which cases of the suite ONNX Runtime passes on the models as they are, and the table of
counts in README.md.  Run it (``make conformance``) when the version of onnx or onnxruntime changes, and
look at the difference: a case that goes is a case that is tested no more.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conformance.cases import KINDS, load
from conformance.suite import WAYS, failure, plain

RECORD = Path(__file__).with_name("record.json")
README = Path(__file__).with_name("README.md")
AGAIN = "run `make conformance` and look at what changes"


def versions() -> dict[str, str]:
    """What the outcome depends on."""
    return {name: version(name) for name in ("onnx", "onnxruntime")}


def read() -> dict[str, Any]:
    """The record: ``versions``, and for each kind ``cases`` (how many there are), ``plain`` (names of
    those that ONNX Runtime passes) and ``ways`` (how many of all cases pass each way)."""
    return dict(json.loads(RECORD.read_text()))


def table(record: dict[str, Any]) -> str:
    """The counts in Markdown."""
    used = " and ".join(f"{k} {v}" for k, v in record["versions"].items())
    lines = [
        f"With {used}:\n",
        f"| cases | in all | ONNX Runtime passes | {' | '.join(WAYS)} |",
        "|---|---:" + "|---:" * (1 + len(WAYS)) + "|",
    ]
    for kind, entry in record["kinds"].items():
        passed = len(entry["plain"])
        ways = [f"{passed} of {passed}, {entry['ways'][w] - passed} more" for w in WAYS]
        lines.append(f"| {kind} | {entry['cases']} | {passed} | {' | '.join(ways)} |")
    return "\n".join(lines) + "\n"


def readme(record: dict[str, Any]) -> str:
    """README.md with the table in its place."""
    return between("table", table(record))


def between(mark: str, text: str) -> str:
    """README.md with ``text`` in the place that is marked so."""
    start, end = f"<!-- {mark} -->\n", "<!-- end -->\n"
    before, rest = README.read_text().split(start)
    return before + start + text + end + rest.split(end, 1)[1]


def main() -> int:
    """Runs everything (some minutes); writes nothing where a way loses a case."""
    record: dict[str, Any] = {"versions": versions(), "kinds": {}}
    lost = []
    for kind in KINDS:
        cases = load(kind)
        passing = [name for name, case in cases.items() if not failure(case, plain)]
        ways = {}
        for way, convert in WAYS.items():
            failures = {name: failure(case, convert) for name, case in cases.items()}
            ways[way] = sum(not reason for reason in failures.values())
            lost += [f"{kind} {n}, {way}: {failures[n]}" for n in passing if failures[n]]
        record["kinds"][kind] = {"cases": len(cases), "plain": passing, "ways": ways}
    if lost:
        print(*lost, "nothing was written", sep="\n", file=sys.stderr)
        return 1
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    README.write_text(readme(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
