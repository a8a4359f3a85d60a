"""Types that a file declares for its values, reconciled with the inferred ones."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field

from tersor.errors import InvalidModel
from tersor.ir import TensorType, UnknownType, ValueType


@dataclass
class DeclaredTypes:
    """Types by ``value_info`` and outputs of one graph.

    Attributes:
        types: by name.
        conflicts: a message for each value with a declared shape that contradicts the inferred one; one list
            for the model and its subgraphs.
    """

    types: dict[str, ValueType] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)

    def reconcile(self, name: str, type: ValueType, node: str = "") -> ValueType:
        """The inferred ``type``, with its unknown parts from the declared one. A declared shape that
        contradicts it is recorded and ignored, because runtimes only warn about that.

        Args:
            name: of the value.
            node: the label of its producer, for messages.

        Raises:
            InvalidModel: another kind or element type is declared, which no runtime accepts.
        """
        declared = self.types.get(name)
        if declared is None or UnknownType() in (type, declared):
            return merged(type, declared)
        what = f"{node}: {name!r}" if node else f"value {name!r}"
        if not _is_of_kind(type, declared):
            raise InvalidModel(_conflict(what, type, declared))
        if isinstance(type, TensorType) and isinstance(declared, TensorType):
            if type.accepts(declared):
                return merged(type, declared)
            self.conflicts.append(_conflict(what, type, declared))
        return type

    def remarks(self) -> list[str]:
        """The recorded conflicts, in one line."""
        if not self.conflicts:
            return []
        more = len(self.conflicts) - 1
        others = f" (and {more} more)" if more else ""
        return [f"{self.conflicts[0]}{others}: using the inferred shape"]


def merged(type: ValueType, other: ValueType | None) -> ValueType:
    """``type``, with its unknown parts from ``other``."""
    if other is None or isinstance(type, UnknownType):
        return other or type
    if not isinstance(type, TensorType) or not isinstance(other, TensorType):
        return type
    if other.dims is None or type.dtype is not other.dtype:
        return type
    if type.dims is None:
        return other
    if len(type.dims) != len(other.dims):
        return type
    pairs = zip(type.dims, other.dims, strict=True)
    return type.with_dims(tuple(b if a is None else a for a, b in pairs))


def check_initializer(name: str, type: ValueType, declared: ValueType) -> None:
    """Checks an initializer of ``type`` that is also declared as an input.

    Raises:
        InvalidModel: the declared type is another.
    """
    if isinstance(type, TensorType) and isinstance(declared, TensorType) and type.accepts(declared):
        return
    raise InvalidModel(_conflict(f"initializer {name!r}", type, declared))


def _is_of_kind(type: ValueType, declared: ValueType) -> bool:
    if isinstance(type, TensorType) and isinstance(declared, TensorType):
        return type.dtype is declared.dtype
    return builtins.type(type) is builtins.type(declared)


def _conflict(what: str, type: ValueType, declared: ValueType) -> str:
    return f"{what} is {type}, but the model declares {declared}"
