"""What the rules of one lowering share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tersor.backends.ort.options import LowerOptions
from tersor.ir import Value


@dataclass
class Lowering:
    """One graph's lowering.

    Attributes:
        options: how things are written.
    """

    options: LowerOptions
    _parts: dict[tuple[Value, str], Value] = field(default_factory=dict)

    def part(self, constant: Value, what: str, array: np.ndarray) -> Value:
        """An array of a constant's encoding as a constant of its own, made once for all its readers.

        It is found by the constant, never by its name: a model may have a constant called
        ``weight_scale`` that means something else."""
        key = (constant, what)
        if key not in self._parts:
            self._parts[key] = constant.graph.constant(array, f"{constant.name}_{what}")
        return self._parts[key]
