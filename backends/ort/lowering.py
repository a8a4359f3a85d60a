"""What the rules of one lowering share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tersor.backends.ort.options import LowerOptions
from tersor.ir import DType, Value
from tersor.numerics.affine import is_short
from tersor.ops.onnx_schema import TO_ONNX
from tersor.pipeline.report import Decoded

SHORT = 256  # From so many numbers on, half their room is more than a node takes.


@dataclass
class Lowering:
    """One graph's lowering.

    Attributes:
        options: how things are written.
        decoded: constants that no kernel reads as they are stored.
    """

    options: LowerOptions
    decoded: list[Decoded] = field(default_factory=list)
    _parts: dict[tuple[Value, str], Value] = field(default_factory=dict)

    def part(self, constant: Value, what: str, array: np.ndarray) -> Value:
        """An array of a constant's encoding as a constant of its own, made once for all its readers.

        It is found by the constant, never by its name: a model may have a constant called
        ``weight_scale`` that means something else."""
        key = (constant, what)
        if key not in self._parts:
            self._parts[key] = constant.graph.constant(array, f"{constant.name}_{what}")
        return self._parts[key]

    def numbers(self, constant: Value, what: str, array: np.ndarray) -> Value:
        """As :meth:`part`, of floats. Where float16 holds all of many, the file does, and ONNX Runtime
        makes float32 of them when the model is loaded."""
        key, owner = (constant, what), constant.graph
        if key not in self._parts and array.size >= SHORT and is_short(array):
            short = self.part(constant, f"{what}_short", array.astype(np.float16))
            with owner.at(next(owner.nodes, None)):
                attrs = {"to": TO_ONNX[DType.F32]}
                self._parts[key] = owner.emit("Cast", [short], attrs)
        return self.part(constant, what, array)
