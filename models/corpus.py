"""Real text and real code that every Python has: its documentation and the sources of its library."""

from __future__ import annotations

import keyword
import re
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

_DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@cache
def documentation() -> str:
    """Python's language reference as one text, topics in the order of their names, white space single."""
    return " ".join(" ".join(topics[name].split()) for name in sorted(topics))


@cache
def sources(module: str) -> tuple[str, ...]:
    """Sources of a module or package of the standard library, in the order of their paths; none where
    this Python does not have it."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted((root / module).rglob("*.py")) or [root / f"{module}.py"]
    return tuple(f.read_text("utf-8") for f in files if f.is_file() and "test" not in f.parts)


def paragraphs(module: str, shortest: int = 40, longest: int = 400) -> list[str]:
    """Paragraphs of the docstrings of a module, white space single, each once."""
    found: dict[str, None] = {}
    for source in sources(module):
        for docstring in _DOCSTRING.findall(source):
            for paragraph in re.split(r"\n\s*\n", docstring):
                text = " ".join(paragraph.split())
                if shortest <= len(text) <= longest:
                    found[text] = None
    return list(found)


def identifiers(modules: Sequence[str]) -> list[str]:
    """Names in the sources of ``modules``, keywords left out, each once, sorted."""
    found: set[str] = set()
    for module in modules:
        for source in sources(module):
            found.update(_NAME.findall(source))
    return sorted(name for name in found if not keyword.iskeyword(name))
