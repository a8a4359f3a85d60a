"""ONNX's node cases through the TVM backend: what comes of each, and the record of it.

``python -m conformance.tvm_suite`` (``make conformance`` does it) writes ``record_tvm.json`` and the
counts in README.md anew.  Look at the difference: a case that goes is a case that is tested no more.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conformance import record
from conformance.cases import Case, load
from conformance.suite import Runnable, optimized, why
from onnx import ModelProto

from tersor.backends import tvm as backend
from tersor.errors import TersorError, Unsupported
from tersor.ops import TABLE
from tersor.target import Target

RECORD = Path(__file__).with_name("record_tvm.json")
KIND = "node"
BAR = 0.9  # Of the cases whose ops the op table has, so many pass at least.
PASSES, WRONG = "passes", "wrong"
# Halves: the expected ones were rounded after other steps than ours, which tells in the last place.
HALF_RTOL = 2**-9
_CHOICE = backend.Choice.of(Target.host()).replace(threads=1)


def compiled(model: ModelProto) -> Runnable:
    """Imported, canonicalized, fused, lowered to TVM and compiled."""
    return backend.open_session(backend.build(optimized(model), _CHOICE), _CHOICE).run


def is_in_table(case: Case) -> bool:
    """Whether every op of the case's graph has a row."""
    try:
        return all(node.op in TABLE for node in optimized(case.model()).walk())
    except TersorError:
        return False


def outcome(case: Case) -> tuple[str, str]:
    """What comes of a case: ``passes``, ``wrong`` with what is, or the kind of reason it is refused for
    with the reason."""
    error = why(
        replace(case, rtol=max(case.rtol, HALF_RTOL)) if _is_of_halves(case) else case, compiled
    )
    if error is None:
        return PASSES, ""
    text = str(error)
    if isinstance(error, Unsupported) and text and "\n" not in text:
        return kind_of(text), text
    return WRONG, f"{type(error).__name__}: {text[:500]}"


def kind_of(reason: str) -> str:
    """What a refusal says, without the names that this graph has: of several nodes, the first's."""
    found = re.search(r"\(([\w.]+)\): (.*?)(; .* \([\w.]+\): |; and \d+ more|$)", reason)
    if found is None:
        return re.sub(r"'[^']*'", "…", reason)
    return f"{found[1]}: {found[2]}"


def _is_of_halves(case: Case) -> bool:
    return any(o.type.tensor_type.elem_type == 10 for o in case.model().graph.output)


# -- the record ------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """What the outcome depends on."""
    return {name: version(name) for name in ("onnx", "apache-tvm")}


def read() -> dict[str, Any]:
    """The record: ``versions``; how many ``cases`` there are, and how many of those ``in_table``; names
    of those that ``pass``; names of the others by the kind of reason that they are ``refused`` for."""
    return dict(json.loads(RECORD.read_text()))


def table(made: dict[str, Any]) -> str:
    """The counts in Markdown."""
    used = " and ".join(f"{k} {v}" for k, v in made["versions"].items())
    passed, cases, known = len(made["pass"]), made["cases"], made["in_table"]
    share = f"{passed / known:.1%}"
    return (
        f"With {used}:\n\n"
        "| cases | in all | with ops of the op table | TVM passes | refused | wrong |\n"
        "|---|---:|---:|---:|---:|---:|\n"
        f"| {KIND} | {cases} | {known} | {passed} ({share}) | {cases - passed} | 0 |\n"
    )


def readme(made: dict[str, Any]) -> str:
    """README.md with the table in its place."""
    return record.between("tvm", table(made))


def record_of(outcomes: dict[str, tuple[str, str]], in_table: Iterable[str]) -> dict[str, Any]:
    """The record of what came of the cases."""
    refused: dict[str, list[str]] = {}
    for name, (kind, _) in outcomes.items():
        if kind != PASSES:
            refused.setdefault(kind, []).append(name)
    return {
        "versions": versions(),
        "cases": len(outcomes),
        "in_table": len(list(in_table)),
        "pass": [name for name, (kind, _) in outcomes.items() if kind == PASSES],
        "refused": dict(sorted(refused.items())),
    }


def main() -> int:
    """Runs everything (some minutes); writes nothing where a case is wrong."""
    cases = load(KIND)
    outcomes = {name: outcome(case) for name, case in cases.items()}
    wrong = [f"{name}: {text}" for name, (kind, text) in outcomes.items() if kind == WRONG]
    if wrong:
        print(*wrong, "nothing was written", sep="\n", file=sys.stderr)
        return 1
    made = record_of(outcomes, [name for name, case in cases.items() if is_in_table(case)])
    RECORD.write_text(json.dumps(made, indent=1) + "\n")
    record.README.write_text(readme(made))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
