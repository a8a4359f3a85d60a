"""The rows, one module a family of ops. A new module here is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from tersor.ops.opdef import OpDef


def rows() -> list[OpDef]:
    """The ``ROWS`` of every module of this package."""
    found: list[OpDef] = []
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        if not module.startswith("_"):
            found.extend(importlib.import_module(f"{__name__}.{module}").ROWS)
    return found
