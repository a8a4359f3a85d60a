"""Whether a factorized layer is faster than the dense one: by measuring, else by counting multiplications.

Both are measured in isolation, in graphs of one input, at all the sizes that the model is measured at.
Factorizing pays if at every size the parts take less than a given share of the dense layer's time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tersor.errors import InvalidModel, Unsupported
from tersor.ir import Graph, TensorType, Value
from tersor.ir.dims import evaluate, symbols
from tersor.pipeline import Latency

Layer = Callable[[Graph, Value], Value]
"""Emits a layer that reads a value of a graph; returns its output."""


@dataclass(frozen=True)
class Verdict:
    """Whether the parts ``pay``; ``numbers``: why, as ``1.310 ms against 1.120 ms measured …``."""

    pays: bool
    numbers: str


def weigh(
    latency: Latency | None,
    reads: Value,
    whole: Layer,
    parts: Layer,
    counts: tuple[float, float],
    share: float = 1.0,
) -> Verdict:
    """Compares the ``parts`` with the ``whole`` of a layer that reads ``reads``, a float tensor.

    Args:
        latency: None if nothing can be measured.
        counts: multiplications per row of the whole and of the parts: parts that multiply more are not
            measured.
        share: the share of the whole's time that the parts must stay below.
    """
    before, after = counts
    types = concrete_types(reads, latency)
    if after >= share * before or latency is None or not types:
        numbers = (
            f"{after:,.0f} multiplications per row against {before:,.0f} (counted, not measured)"
        )
        return Verdict(after < share * before, numbers)
    worst = (-np.inf, "")
    for type in types:
        try:
            old, new = (latency(*_alone(reads, type, layer)) for layer in (whole, parts))
        except (InvalidModel, Unsupported) as error:
            return Verdict(False, f"they cannot be measured: {error}")
        numbers = f"{new:.3f} ms against {old:.3f} ms measured for the dense layer on {type}"
        if new >= share * old:
            return Verdict(False, numbers)
        if new / old > worst[0]:
            worst = (new / old, numbers)
    return Verdict(True, worst[1])


def concrete_types(value: Value, latency: Latency | None) -> list[TensorType]:
    """Distinct types of ``value`` at the measured sizes, largest first; empty if they are unknown or
    nothing can be measured."""
    if latency is None or not isinstance(value.type, TensorType) or value.type.dims is None:
        return []
    types = []
    for sizes in latency.sizes:
        known = [d for d in value.type.dims if d is not None and symbols(d) <= sizes.keys()]
        if len(known) < len(value.type.dims):
            return []
        types.append(value.type.with_dims(tuple(evaluate(d, sizes) for d in known)))
    nonempty = [type for type in dict.fromkeys(types) if 0 not in type.shape]
    return sorted(nonempty, key=lambda type: -int(np.prod(type.shape)))


def _alone(reads: Value, type: TensorType, layer: Layer) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph of only ``layer``, and random input of ``type``."""
    graph = Graph("layer", reads.graph.table)
    x = graph.add_input("x", type)
    graph.set_outputs([layer(graph, x)])
    drawn = np.random.default_rng(0).standard_normal(type.shape)
    return graph, {"x": drawn.astype(type.dtype.numpy)}
