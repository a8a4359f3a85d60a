"""The settings that are worth measuring for a graph: none, as tuning chooses for each kernel."""

from __future__ import annotations

from tersor.backends.tvm.options import Choice
from tersor.ir import Graph


def axes(graph: Graph, choice: Choice) -> list[tuple[str, tuple[object, ...]]]:
    """(setting of a Choice, values to try other than that of ``choice``), the most promising first."""
    return []
