"""The rows, one module per family of ops; all modules in this package are loaded."""

from __future__ import annotations

import importlib
import pkgutil

from tersor.ops.opdef import OpDef


def rows() -> list[OpDef]:
    """The ``ROWS`` of every module of this package."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return [row for n in names for row in importlib.import_module(f"{__name__}.{n}").ROWS]
