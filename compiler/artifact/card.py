"""The model card of an artifact: a README for whoever finds the folder, written from its manifest alone.

Nothing reads it back. It is no part of the manifest, which is written first and names all that counts, so
that text of somebody else's in its place is kept, and a card that a killed save left out is no damage.
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
    """The card as Markdown; names of the model's own are escaped."""
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
    """Whether a file was written by :func:`model_card`, and not by its user."""
    return text.startswith(_BEGINS.encode())


def escaped(text: object) -> str:
    """Text of somebody else's on one line, which Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", one_line(text, LONGEST))


def _code(text: object) -> str:
    """As inline code: the fence is longer than any run of backticks in it."""
    line = one_line(text, LONGEST)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{space}{line}{space}{fence}"


def _cell(text: object) -> str:
    """Inline code in a table, where even in code a bar ends the cell."""
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


def _calibration(told: Mapping[str, Any] | None) -> str:
    if not told:
        return "none"
    return ", ".join(f"{escaped(key)} {_cell(value)}" for key, value in sorted(told.items()))


def _usage(manifest: Manifest) -> str:
    ours = (
        "With Tersor, which takes the settings that it ran fastest with:\n\n```python\nimport tersor\n\n"
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


def _interface(told: Mapping[str, Any]) -> str:
    rows = [
        [kind.removesuffix("s"), _cell(name), _cell(type)]
        for kind in ("inputs", "outputs")
        for name, type in told.get(kind, [])
    ]
    return _table(["", "name", "type"], rows) if rows else "Unknown."


def _fidelity(told: Fidelity | None) -> str:
    if told is None or told.worst is None:
        return "Unknown: there were no inputs to compare outputs on."
    on = f" on {escaped(told.on)}" if told.on else ""
    count = f" ({told.samples} samples)" if told.samples is not None else ""
    rows = [[_cell(one.label), *_figures(one)] for one in told.outputs]
    head = ["output", "agree", "mean cosine", "worst cosine", "relative error", "largest error"]
    return f"Outputs against those of the input model{on}{count}, the worst first.\n\n{_table(head, rows)}"


def _figures(one: OutputFidelity) -> list[str]:
    shares = (one.agreement, one.mean_cosine, one.min_cosine)
    errors = (one.relative_error, one.max_error)
    # Never 1 for what is less.
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
    return f"Medians, measured in pairs where it was compiled.\n\n{_table(head, rows)}"


def _steps(report: Report) -> str:
    changed = [step for step in report.passes if step.rewrites or step.notes]
    lines = [f"- {_code(step.name)}: {step.rewrites} rewrites" for step in changed if step.rewrites]
    lines += [f"- {_code(step.name)}: {escaped(note)}" for step in changed for note in step.notes]
    lines += [f"- {escaped(line)}" for line in (*report.decisions, *report.decoded)]
    return "\n".join(lines) or "No pass had anything to change."
