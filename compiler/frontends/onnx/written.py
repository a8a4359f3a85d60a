"""Types that a file writes for its values, beside those that are inferred."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field

from tersor.errors import InvalidModel
from tersor.ir import TensorType, UnknownType, ValueType


@dataclass
class Written:
    """The value_info and outputs of one graph.

    Attributes:
        types: by name.
        contradicted: a line for each value whose shape is written otherwise than it is; one list for
            the model and its subgraphs.
    """

    types: dict[str, ValueType] = field(default_factory=dict)
    contradicted: list[str] = field(default_factory=list)

    def agreed(self, label: str, name: str, type: ValueType) -> ValueType:
        """``type``, with what it leaves open taken from the file. A written shape that contradicts it is
        noted and does not count: runtimes only warn of that.

        Raises:
            InvalidModel: the file writes another kind or element type, which no runtime takes.
        """
        written = self.types.get(name)
        if written is None or UnknownType() in (type, written):
            return merged(type, written)
        if not _is_of_kind(type, written):
            raise InvalidModel(_message(label, name, type, written))
        if isinstance(type, TensorType) and isinstance(written, TensorType):
            if type.accepts(written):
                return merged(type, written)
            self.contradicted.append(_message(label, name, type, written))
        return type

    def remarks(self) -> list[str]:
        """What was noted, in one line."""
        if not self.contradicted:
            return []
        more = len(self.contradicted) - 1
        others = f", and {more} more such" if more else ""
        return [f"{self.contradicted[0]}{others}: the inferred shape is taken"]


def merged(type: ValueType, other: ValueType | None) -> ValueType:
    """``type``, with what it leaves open taken from ``other``."""
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


def check_initializer(name: str, held: ValueType, written: ValueType) -> None:
    """Raises:
    InvalidModel: an initializer that is an input as well is written with another type there.
    """
    if isinstance(held, TensorType) and isinstance(written, TensorType) and held.accepts(written):
        return
    raise InvalidModel(_message("initializer", name, held, written))


def _is_of_kind(type: ValueType, written: ValueType) -> bool:
    if isinstance(type, TensorType) and isinstance(written, TensorType):
        return type.dtype is written.dtype
    return builtins.type(type) is builtins.type(written)


def _message(label: str, name: str, type: ValueType, written: ValueType) -> str:
    return f"{label}: {name!r} is {type}, but the model writes {written}"
