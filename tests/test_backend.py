"""Backends are typed: nothing about them, their choices or their sessions is ``Any``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "compiler"
ABOUT = re.compile(r"backend|choice|session|evaluator|start$|reference")
DRIVING = [
    "driver/job.py", "driver/compilation.py", "driver/deviations.py", "tuning/search.py", "tuning/duel.py",
    "tuning/latency.py", "tuning/worker.py", "tuning/measure.py", "tuning/reuse.py", "cli/models.py",
    "pipeline/registry.py", *(f"artifact/{p.name}" for p in (ROOT / "artifact").glob("*.py")),
]  # fmt: skip


def annotations(source: str) -> list[tuple[str, str]]:
    """(name, annotation) of each parameter, field and variable; of a function, what it returns."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg) and node.annotation is not None:
            found.append((node.arg, ast.unparse(node.annotation)))
        elif isinstance(node, ast.AnnAssign):
            found.append((ast.unparse(node.target), ast.unparse(node.annotation)))
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            found.append((node.name, ast.unparse(node.returns)))
    return found


def untyped(source: str, about: re.Pattern[str]) -> list[tuple[str, str]]:
    return [
        (name, text)
        for name, text in annotations(source)
        if about.search(name) and re.search(r"\bAny\b", text)
    ]


def test_the_interface_of_a_backend_has_no_any() -> None:
    source = (ROOT / "backend.py").read_text(encoding="utf-8")
    assert len(annotations(source)) > 30
    assert not untyped(source, re.compile(""))


@pytest.mark.parametrize("file", DRIVING)
def test_who_drives_a_backend_knows_its_type(file: str) -> None:
    assert not untyped((ROOT / file).read_text(encoding="utf-8"), ABOUT)


def test_the_rule_itself() -> None:
    source = "def f(backend: Any, x: Any) -> Any: ...\nclass A:\n    choice: dict[str, Any]\n"
    assert [name for name, _ in untyped(source, ABOUT)] == ["choice", "backend"]
