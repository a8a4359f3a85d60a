"""Real text and code that comes with every Python: its documentation and library sources."""

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
    """Python's language reference as one text, topics sorted by name, white space collapsed."""
    return " ".join(" ".join(topics[name].split()) for name in sorted(topics))


@cache
def sources(module: str) -> tuple[str, ...]:
    """Sources of a module or package of the standard library, sorted by path; empty if this Python does
    not have it."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted((root / module).rglob("*.py")) or [root / f"{module}.py"]
    return tuple(f.read_text("utf-8") for f in files if f.is_file() and "test" not in f.parts)


def paragraphs(module: str, shortest: int = 40, longest: int = 400) -> list[str]:
    """The distinct paragraphs of a module's docstrings, white space collapsed."""
    texts: dict[str, None] = {}
    for source in sources(module):
        for docstring in _DOCSTRING.findall(source):
            for paragraph in re.split(r"\n\s*\n", docstring):
                text = " ".join(paragraph.split())
                if shortest <= len(text) <= longest:
                    texts[text] = None
    return list(texts)


def identifiers(modules: Sequence[str]) -> list[str]:
    """The distinct names in the sources of ``modules`` but keywords, sorted."""
    names: set[str] = set()
    for module in modules:
        for source in sources(module):
            names.update(_NAME.findall(source))
    return sorted(name for name in names if not keyword.iskeyword(name))
