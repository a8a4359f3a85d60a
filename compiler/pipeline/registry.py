"""Passes, recipes and backends by name.

The compiler does not import the packages of passes and backends, which depend on it; they are loaded here on
demand.
"""

from __future__ import annotations

import importlib
import pkgutil
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, cast

from tersor.backend import Backend, Reference
from tersor.errors import InvalidOption, Unsupported, suggest
from tersor.pipeline import Pass, Step

RUNTIMES = ("ort", "tvm")
REFERENCE = "ort"  # Runs unmodified input models, and evaluates graphs for passes.
CODE = frozenset({"tvm"})  # Runtimes whose artifacts are machine code.


@cache
def passes() -> dict[str, type[Pass]]:
    """All passes by name, sorted: every concrete :class:`Pass` in a module under ``tersor.passes``."""
    package = importlib.import_module("tersor.passes")
    by_name: dict[str, type[Pass]] = {}
    for info in pkgutil.walk_packages(package.__path__, "tersor.passes."):
        module = importlib.import_module(info.name)
        for member in vars(module).values():
            if (
                isinstance(member, type)
                and issubclass(member, Pass)
                and member.__module__ == info.name
            ):
                by_name[member.pass_name()] = member
    return dict(sorted(by_name.items()))


def find_pass(name: str) -> type[Pass]:
    """The pass called ``name``.

    Raises:
        InvalidOption: there is none; with a suggestion.
    """
    known = passes()
    if name not in known:
        raise InvalidOption(f"no pass {name!r}{suggest(name, known)}")
    return known[name]


def optimization() -> list[Step]:
    """The lossless passes that every compilation starts with, in order."""
    steps: list[Step] = importlib.import_module("tersor.passes").optimization()
    return steps


def backend(runtime: str) -> Backend:
    """The backend package of a runtime.

    Raises:
        InvalidOption: no such runtime.
        Unsupported: it is not installed.
    """
    if runtime not in RUNTIMES:
        known = ", ".join(RUNTIMES)
        raise InvalidOption(
            f"no runtime {runtime!r}{suggest(runtime, RUNTIMES)}; there are {known}"
        )
    try:
        return cast(Backend, importlib.import_module(f"tersor.backends.{runtime}"))
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"runtime {runtime} needs the package {error.name!r}: pip install 'tersor[{runtime}]'"
        ) from None


def reference() -> Reference:
    """The backend of the reference runtime; raises as :func:`backend`."""
    return cast(Reference, backend(REFERENCE))


def shipped_recipes() -> dict[str, dict[str, Any]]:
    """The recipes that come with the package, by name, as plain data."""
    folder = files("tersor") / "recipes"
    return {
        entry.name.removesuffix(".toml"): tomllib.loads(entry.read_text())
        for entry in sorted(folder.iterdir(), key=lambda e: e.name)
        if entry.name.endswith(".toml")
    }
