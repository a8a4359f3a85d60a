"""The state that the rules of one lowering share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tersor.backends.ort.options import LowerOptions
from tersor.ir import DType, Value
from tersor.numerics.affine import is_short
from tersor.ops.onnx_schema import TO_ONNX
from tersor.pipeline.report import Decoded

SHORT = 256  # From this many numbers on, float16 saves more than the Cast node takes.


@dataclass
class Lowering:
    """One graph's lowering.

    Attributes:
        options: which ops to emit.
        decoded: constants that had to be decoded.
    """

    options: LowerOptions
    decoded: list[Decoded] = field(default_factory=list)
    _parts: dict[tuple[Value, str], Value] = field(default_factory=dict)

    def part(self, constant: Value, what: str, array: np.ndarray) -> Value:
        """An array of a constant's encoding as a separate constant, added once for all readers.

        The key is the constant, not its name: a model may have an unrelated constant called
        ``weight_scale``."""
        key = (constant, what)
        if key not in self._parts:
            self._parts[key] = constant.graph.constant(array, f"{constant.name}_{what}")
        return self._parts[key]

    def numbers(self, constant: Value, what: str, array: np.ndarray) -> Value:
        """As :meth:`part`, for floats. Large arrays that float16 represents exactly are stored as such, and
        ONNX Runtime casts them to float32 when it loads the model."""
        key, owner = (constant, what), constant.graph
        if key not in self._parts and array.size >= SHORT and is_short(array):
            short = self.part(constant, f"{what}_short", array.astype(np.float16))
            with owner.at(next(owner.nodes, None)):
                attrs = {"to": TO_ONNX[DType.F32]}
                self._parts[key] = owner.emit("Cast", [short], attrs)
        return self.part(constant, what, array)
