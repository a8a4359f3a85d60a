"""A node in the form that a file has it in, for the adapters that bring it to today's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tersor.ir import Attribute, DType, Graph, TensorType, Value


@dataclass
class Old:
    """A node as it was written, not yet in the graph; adapters change it in place and may emit nodes
    that go before it.

    Attributes:
        graph: where it will be.
        op, inputs, attrs: ONNX's name, operands, attributes as written (defaults not filled in).
        outputs: how many results it makes.
        scope: its module path.
        casts: results that were of another element type than today's op makes.
    """

    graph: Graph
    op: str
    inputs: list[Value | None]
    attrs: dict[str, Attribute]
    outputs: int
    scope: str = ""
    casts: dict[int, DType] = field(default_factory=dict)

    def emit(self, op: str, *inputs: Value | None, **attrs: Attribute) -> Value:
        return self.graph.emit(op, inputs, attrs, scope=self.scope)

    def constant(self, number: object, name: str, dtype: type | np.dtype = np.int64) -> Value:
        return self.graph.constant(np.array(number, dtype), name)

    def operand(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def set_operand(self, index: int, value: Value | None) -> None:
        self.inputs.extend([None] * (index + 1 - len(self.inputs)))
        self.inputs[index] = value

    def rank(self, index: int) -> int | None:
        """Rank of an operand; None where it is unknown or the operand left out."""
        value = self.operand(index)
        known = value is not None and isinstance(value.type, TensorType)
        return value.type.rank if known else None  # type: ignore[union-attr]

    def dtype(self, index: int) -> DType | None:
        """Element type of an operand; None as for :meth:`rank`."""
        value = self.operand(index)
        known = value is not None and isinstance(value.type, TensorType)
        return value.type.dtype if known else None  # type: ignore[union-attr]


Adapter = Callable[[Old], None]


def to_operand(name: str, index: int) -> Adapter:
    """The list of integers ``name`` was an attribute and is operand ``index`` today."""

    def adapt(old: Old) -> None:
        if name in old.attrs:
            old.set_operand(index, old.constant(old.attrs.pop(name), name))

    return adapt
