"""The structure of a serialized model, walked before protobuf builds anything of it.

Protobuf merges what is written twice, skips what it does not know, and takes any bytes that happen to
parse: a model with another file's bytes behind it reads as a model. This walk steps over weights by
their length, so its time goes with the number of nodes, not with the size of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor  # type: ignore[import-untyped]

from tersor.errors import InvalidModel

MAX_DEPTH = 100  # Messages in messages; protobuf reads no deeper.
MAX_MESSAGES = 4_000_000  # Two bytes in the file make one of a hundred in memory.
MAX_BYTES = 2**31 - 1  # Protobuf writes no more, and reads no more in every language.

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class _Field:
    """What may stand under a field's number: wire types; for bytes, which message or whether text."""

    name: str
    wires: frozenset[int]
    message: Descriptor | None
    text: bool
    repeated: bool


def check_structure(data: bytes, where: str) -> None:
    """Checks that ``data`` is the wire form of one ModelProto and of nothing else.

    Raises:
        InvalidModel: it ends early, goes on after the model, nests too deep, or is something else.
    """
    if len(data) > MAX_BYTES:
        raise InvalidModel(
            f"{where}: {len(data)} bytes, and protobuf holds at most {MAX_BYTES}: save the weights as "
            "external data"
        )
    try:
        _walk(data, where)
    except IndexError:
        raise _truncated(where) from None


def _walk(data: bytes, where: str) -> None:
    """Raises IndexError where the data ends in the middle of a number."""
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
        if wire == _BYTES:
            length, at = _number(data, at)
            stop = at + length
            if stop > len(data):
                raise _truncated(where)
        elif wire == _VARINT:
            stop = _number(data, at)[1]
        elif wire in (_FIXED32, _FIXED64):
            stop = at + (4 if wire == _FIXED32 else 8)
        else:
            stop = -1
        known = stop >= 0 and (field is None or wire in field.wires)
        # A newer ONNX may have fields that are not known here, but what a file is shows at its top.
        if not known or (field is None and len(stack) == 1):
            behind = graph_seen and len(stack) == 1
            raise _trailing(where, start) if behind else _other(where, start)
        if field is None:
            at = stop
            continue
        if len(stack) == 1 and not field.repeated and field.message is not None:
            if graph_seen:
                raise InvalidModel(
                    f"{where}: a second graph begins at byte {start}: two models in one file"
                )
            graph_seen = True
        if field.message is not None:
            messages += 1
            if messages > MAX_MESSAGES:
                raise InvalidModel(
                    f"{where}: more than {MAX_MESSAGES} nodes, attributes and the like: simplify the "
                    "model"
                )
            if len(stack) == MAX_DEPTH:
                raise InvalidModel(
                    f"{where}: messages nest deeper than {MAX_DEPTH}, which protobuf does not read: "
                    "flatten the model's subgraphs"
                )
            if stop > at:
                stack.append((stop, field.message))
                end, fields = stop, _fields(field.message)
            continue
        if field.text and stop > at:
            try:
                data[at:stop].decode()
            except UnicodeDecodeError:
                raise InvalidModel(
                    f"{where}: {field.name} at byte {at} is not UTF-8 text; export the model again"
                ) from None
        at = stop


def _number(data: bytes, at: int) -> tuple[int, int]:
    """The varint at ``at``, and where it ends."""
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
    # Numbers of a list stand one by one or all together, whatever the format prefers.
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
        f"{where}: bytes from {at} on are no part of the model; export or download it again"
    )
