"""The model card of an artifact: a README for its folder, written from the manifest alone.

Tersor never reads it back, and the manifest does not list it: a user's own README in its place is kept, and a
card missing after an interrupted save is not an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tersor.artifact.manifest import Manifest, identity_size
from tersor.errors import LONGEST, one_line, size
from tersor.numerics.fidelity import Fidelity, OutputFidelity
from tersor.pipeline.report import Report

NAME = "README.md"
_BEGINS = "<!-- Written by tersor: the next save replaces this file. -->\n"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$-])")


def model_card(manifest: Manifest) -> str:
    """The card as Markdown; names from the model are escaped."""
    parts = [
        _BEGINS + "# Compiled model",
        _summary(manifest),
        "## How to run it",
        _usage(manifest),
        "## Inputs and outputs",
        _interface(manifest.about.get("interface", {})),
        "## Fidelity",
        _fidelity(manifest.report.fidelity),
        "## Speed",
        _speed(manifest.report),
        "## What was done",
        _steps(manifest.report),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def is_card(text: bytes) -> bool:
    """Whether a file was written by :func:`model_card` rather than by a user."""
    return text.startswith(_BEGINS.encode())


def escaped(text: object) -> str:
    """Untrusted text on one line, escaped so that Markdown shows it literally."""
    return _SPECIAL.sub(r"\\\1", one_line(text, LONGEST))


def _code(text: object) -> str:
    """Inline code: the fence is longer than any run of backticks in the text."""
    line = one_line(text, LONGEST)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{space}{line}{space}{fence}"


def _cell(text: object) -> str:
    """Inline code in a table cell, where a bar must be escaped even in code."""
    return _code(text).replace("|", "\\|")


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _summary(manifest: Manifest) -> str:
    about, report = manifest.about, manifest.report
    recipe, target = about.get("recipe", {}), about.get("target", {})
    given = about.get("input", {})
    before = report.size_before
    if before is None and given:
        before = identity_size(given)
    rows = [
        [
            "recipe",
            f"{_cell(recipe.get('name', 'unknown'))} {escaped(recipe.get('description', ''))}",
        ],
        ["runtime", _cell(manifest.runtime)],
        [
            "built for",
            f"{_cell(target.get('name', 'unknown'))} on {escaped(target.get('cpu', 'unknown'))}",
        ],
        ["size", f"{size(report.size_after)}, the input {size(before)}"],
        ["input's SHA-256", _cell(given.get("sha256", "unknown"))],
        ["calibration", _calibration(about.get("calibration"))],
    ]
    rows += [[escaped(k), _cell(v)] for k, v in sorted(about.get("versions", {}).items())]
    return _table(["", ""], rows)


def _calibration(identity: Mapping[str, Any] | None) -> str:
    if not identity:
        return "none"
    return ", ".join(f"{escaped(key)} {_cell(value)}" for key, value in sorted(identity.items()))


def _usage(manifest: Manifest) -> str:
    ours = (
        "With Tersor, under the fastest settings:\n\n```python\nimport tersor\n\n"
        f'model = tersor.load("path/to/this/folder"{_trust(manifest)})\n'
        "outputs = model.run(inputs)  # arrays by name\n```"
    )
    if not manifest.model.endswith(".onnx"):
        return f"{ours}\n\nThe library is machine code: load it only if you trust who made it."
    return (
        f"{ours}\n\nOr with ONNX Runtime alone:\n\n```python\nimport onnxruntime\n\n"
        f"session = onnxruntime.InferenceSession({manifest.model!r})\n"
        "outputs = session.run(None, inputs)\n```"
    )


def _trust(manifest: Manifest) -> str:
    return "" if manifest.model.endswith(".onnx") else ", trust=True"


def _interface(interface: Mapping[str, Any]) -> str:
    rows = [
        [kind.removesuffix("s"), _cell(name), _cell(type)]
        for kind in ("inputs", "outputs")
        for name, type in interface.get(kind, [])
    ]
    return _table(["", "name", "type"], rows) if rows else "Unknown."


def _fidelity(fidelity: Fidelity | None) -> str:
    if fidelity is None or fidelity.worst is None:
        return "Unknown: there were no inputs to compare outputs on."
    on = f" on {escaped(fidelity.on)}" if fidelity.on else ""
    count = f" ({fidelity.samples} samples)" if fidelity.samples is not None else ""
    rows = [[_cell(one.label), *_figures(one)] for one in fidelity.outputs]
    head = ["output", "agree", "mean cosine", "worst cosine", "relative error", "largest error"]
    return f"Outputs against those of the input model{on}{count}, the worst first.\n\n{_table(head, rows)}"


def _figures(one: OutputFidelity) -> list[str]:
    shares = (one.agreement, one.mean_cosine, one.min_cosine)
    errors = (one.relative_error, one.max_error)
    # Prints 1 only for exactly 1.
    return [
        *("" if v is None else "1" if v == 1 else f"{min(v, 0.999999):.6g}" for v in shares),
        *("" if v is None else f"{v:.3g}" for v in errors),
    ]


def _speed(report: Report) -> str:
    rows = [
        [
            _cell(row.candidate),
            escaped(row.sizes),
            f"{timing.before_ms:.3f}",
            f"{timing.after_ms:.3f}",
            f"{timing.speedup:.2f}x",
        ]
        for row, timing in report.against_input
    ]
    if not rows:
        return "Unknown: it was not measured against the input model."
    head = ["built", "at", "input ms", "result ms", "speedup"]
    return f"Medians of paired runs, on the machine that compiled it.\n\n{_table(head, rows)}"


def _steps(report: Report) -> str:
    changed = [step for step in report.passes if step.rewrites or step.notes]
    lines = [f"- {_code(step.name)}: {step.rewrites} rewrites" for step in changed if step.rewrites]
    lines += [f"- {_code(step.name)}: {escaped(note)}" for step in changed for note in step.notes]
    lines += [f"- {escaped(line)}" for line in (*report.decisions, *report.decoded)]
    return "\n".join(lines) or "No pass changed anything."
