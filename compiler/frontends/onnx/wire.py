"""Checks the structure of a serialized model before protobuf parses it.

Protobuf merges duplicate fields, skips unknown ones and accepts any bytes that happen to parse: a model
followed by another file's bytes parses as a model. The check skips over weights by their length, so that its
time is proportional to the number of nodes, not to the size of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor  # type: ignore[import-untyped]

from tersor.errors import InvalidModel

MAX_DEPTH = 100  # Nested messages; protobuf's limit.
MAX_MESSAGES = 4_000_000  # A message of two bytes in a file can take a hundred in memory.
MAX_BYTES = 2**31 - 1  # Protobuf's limit.

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class _Field:
    """What a field may contain: its wire types, and for bytes, the message type or whether they are text."""

    name: str
    wires: frozenset[int]
    message: Descriptor | None
    text: bool
    repeated: bool


def check_size(size: int, where: str) -> None:
    """Raises:
    InvalidModel: a protobuf of ``size`` bytes is too large.
    """
    if size > MAX_BYTES:
        raise InvalidModel(
            f"{where}: {size} bytes, but a protobuf has at most {MAX_BYTES}: save the weights as external "
            "data"
        )


def check_structure(data: bytes, where: str) -> None:
    """Checks that ``data`` is one serialized ModelProto and nothing else.

    Raises:
        InvalidModel: it is truncated, followed by other bytes, nested too deeply, or something else.
    """
    check_size(len(data), where)
    try:
        _walk(data, where)
    except IndexError:
        raise _truncated(where) from None


def _walk(data: bytes, where: str) -> None:
    """Raises IndexError if the data ends within a number."""
    top = onnx.ModelProto.DESCRIPTOR
    stack: list[tuple[int, Descriptor]] = [(len(data), top)]
    end, fields = len(data), _fields(top)
    at = messages = 0
    graph_seen = False
    while True:
        while at == end:
            stack.pop()
            if not stack:
                return
            end, descriptor = stack[-1]
            fields = _fields(descriptor)
        if at > end:
            raise _truncated(where) if len(stack) == 1 else _other(where, at)
        start = at
        tag, at = _number(data, at)
        wire, field = tag & 7, fields.get(tag >> 3)
        at, stop = _payload(data, at, wire)
        if wire == _BYTES and stop > len(data):
            raise _truncated(where)
        valid = stop >= 0 and (field is None or wire in field.wires)
        # A newer ONNX may add fields, but unknown ones in ModelProto indicate a file of another kind.
        if not valid or (field is None and len(stack) == 1):
            after_model = graph_seen and len(stack) == 1
            raise _trailing(where, start) if after_model else _other(where, start)
        if field is None or field.message is None:
            if field is not None and field.text:
                _check_text(data, at, stop, field.name, where)
            at = stop
            continue
        if len(stack) == 1 and not field.repeated:
            if graph_seen:
                raise InvalidModel(
                    f"{where}: a second graph begins at byte {start}: two models in one file"
                )
            graph_seen = True
        messages += 1
        _check_limits(messages, len(stack), where)
        if stop > at:
            stack.append((stop, field.message))
            end, fields = stop, _fields(field.message)


def _payload(data: bytes, at: int, wire: int) -> tuple[int, int]:
    """Start and end of the payload of a field whose tag ends at ``at``; an end of -1: unknown wire type."""
    if wire == _BYTES:
        length, at = _number(data, at)
        return at, at + length
    if wire == _VARINT:
        return at, _number(data, at)[1]
    if wire in (_FIXED32, _FIXED64):
        return at, at + (4 if wire == _FIXED32 else 8)
    return at, -1


def _check_limits(messages: int, depth: int, where: str) -> None:
    if messages > MAX_MESSAGES:
        raise InvalidModel(
            f"{where}: more than {MAX_MESSAGES} nodes, attributes and other messages: simplify the model"
        )
    if depth == MAX_DEPTH:
        raise InvalidModel(
            f"{where}: messages nest deeper than {MAX_DEPTH}, protobuf's limit: flatten the model's "
            "subgraphs"
        )


def _check_text(data: bytes, start: int, stop: int, field: str, where: str) -> None:
    try:
        data[start:stop].decode()
    except UnicodeDecodeError:
        raise InvalidModel(
            f"{where}: {field} at byte {start} is not UTF-8 text; export the model again"
        ) from None


def _number(data: bytes, at: int) -> tuple[int, int]:
    """The varint at ``at``, and its end."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    number = shift = 0
    while byte >= 0x80:
        number |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 63:
            raise IndexError
        byte = data[at]
    return number | byte << shift, at + 1


@cache
def _fields(descriptor: Descriptor) -> Mapping[int, _Field]:
    return {f.number: _field(f) for f in descriptor.fields}


def _field(field: FieldDescriptor) -> _Field:
    plain = {
        FieldDescriptor.TYPE_FLOAT: _FIXED32,
        FieldDescriptor.TYPE_DOUBLE: _FIXED64,
        FieldDescriptor.TYPE_STRING: _BYTES,
        FieldDescriptor.TYPE_BYTES: _BYTES,
        FieldDescriptor.TYPE_MESSAGE: _BYTES,
    }.get(field.type, _VARINT)
    # A list of numbers may be packed or not, whatever its declaration says.
    wires = {plain, _BYTES} if field.is_repeated else {plain}
    text = field.type == FieldDescriptor.TYPE_STRING
    return _Field(field.name, frozenset(wires), field.message_type, text, field.is_repeated)


def _truncated(where: str) -> InvalidModel:
    return InvalidModel(f"{where}: not an ONNX model, or truncated; export or download it again")


def _other(where: str, at: int) -> InvalidModel:
    return InvalidModel(
        f"{where}: not an ONNX model, or damaged at byte {at}; export or download it again"
    )


def _trailing(where: str, at: int) -> InvalidModel:
    return InvalidModel(
        f"{where}: bytes from {at} on are not part of the model; export or download it again"
    )
