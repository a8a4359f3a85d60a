"""Dims as values, computed from the shapes of graph inputs."""

from __future__ import annotations

import numpy as np

from tersor.analysis.match import dims
from tersor.ir import Dim, Graph, Sym, Value
from tersor.ir.dims import symbol


def size_from_inputs(graph: Graph, dim: Dim) -> Value | None:
    """``dim`` as an i64[1] value, if it is a sum of input dims and numbers; else None. Repeated calls emit
    nodes that common subexpression elimination merges."""
    if not isinstance(dim, Sym):
        return None
    outermost = graph
    while outermost.outer is not None:
        outermost = outermost.outer
    places = {
        size: (value, axis)
        for value in reversed(outermost.inputs)
        for axis, size in enumerate(dims(value) or ())
        if size is not None
    }
    # Emit nothing before every term is resolved.
    parts: list[tuple[Value, int] | int] = []
    for monomial, factor in dim.terms:
        name = monomial[0] if len(monomial) == 1 else None
        place = places.get(symbol(name)) if isinstance(name, str) and factor == 1 else None
        if monomial and place is None:
            return None
        parts.append(factor if place is None else place)
    total: Value | None = None
    for part in parts:
        size = (
            graph.constant(np.array([part]), "size")
            if isinstance(part, int)
            else graph.emit("Shape", [part[0]], {"start": part[1], "end": part[1] + 1})
        )
        total = size if total is None else graph.emit("Add", [total, size])
    return total
