"""A node in an older form of its op, and the interface of the adapters that update it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tersor.ir import Attribute, DType, Graph, TensorType, Value


@dataclass
class LegacyNode:
    """A node of a file before it is added to the graph. Adapters change it in place, and may emit nodes
    before it.

    Attributes:
        graph: the graph that it will be added to.
        op, inputs, attrs: ONNX's op name, operands, and attributes without defaults.
        outputs: the number of results.
        scope: its module path.
        casts: by result, the element type it had, where the current op returns another.
    """

    graph: Graph
    op: str
    inputs: list[Value | None]
    attrs: dict[str, Attribute]
    outputs: int
    scope: str = ""
    casts: dict[int, DType] = field(default_factory=dict)

    def emit(self, op: str, *inputs: Value | None, **attrs: Attribute) -> Value:
        operands = list(inputs)
        while operands and operands[-1] is None:
            operands.pop()
        return self.graph.emit(op, operands, attrs, scope=self.scope)

    def constant(self, number: object, name: str, dtype: type | np.dtype = np.int64) -> Value:
        return self.graph.constant(np.array(number, dtype), name)

    def operand(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def set_operand(self, index: int, value: Value | None) -> None:
        self.inputs.extend([None] * (index + 1 - len(self.inputs)))
        self.inputs[index] = value

    def rank(self, index: int) -> int | None:
        """The rank of an operand; None if it is unknown or the operand is left out."""
        type = self.tensor_type(index)
        return type.rank if type is not None else None

    def dtype(self, index: int) -> DType | None:
        """The element type of an operand; None as for :meth:`rank`."""
        type = self.tensor_type(index)
        return type.dtype if type is not None else None

    def tensor_type(self, index: int) -> TensorType | None:
        """The type of an operand; None if it is left out or not known to be a tensor."""
        value = self.operand(index)
        return value.type if value is not None and isinstance(value.type, TensorType) else None


Adapter = Callable[[LegacyNode], None]


def to_operand(name: str, index: int) -> Adapter:
    """The attribute ``name``, a list of integers, became operand ``index``."""

    def adapt(node: LegacyNode) -> None:
        if name in node.attrs:
            node.set_operand(index, node.constant(node.attrs.pop(name), name))

    return adapt
