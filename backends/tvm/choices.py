"""Which settings are worth measuring for a graph, given what is in it."""

from __future__ import annotations

from tersor.backends.tvm.options import Choice
from tersor.ir import Graph


def axes(graph: Graph, choice: Choice) -> list[tuple[str, tuple[object, ...]]]:
    """(setting of a Choice, its values to try besides that of ``choice``), the most promising first."""
    return []
