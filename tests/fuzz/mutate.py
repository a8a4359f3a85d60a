"""Mutations of ONNX models that keep them protobufs, so that fuzzing gets past the parser.

A message is walked by its descriptor, whatever it is: no field is left out, today's or a later one's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor as Kind
from google.protobuf.message import DecodeError, EncodeError, Message

NUMBERS = [
    0, 1, 2, 3, 4, 7, 8, 16, 64, 255, 1024, 65536, -1, -2, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40,
    2**62, 2**63 - 1, -(2**63),
]  # fmt: skip
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, float("inf"), float("-inf"), float("nan")]
WORDS = [
    "", " ", ".", "..", "../x", "/etc/passwd", "a/b", "x" * 300, "%x", "@w", "a b", 'a"b', "a\\b",
    "a\nb", "\x1b[31m", "[/red]", "é", "\x00", "batch", "batch*2", "-1", "1", "batch//0", "max(a,b)",
    "2**2**9", "((((", "weights.bin", "link", "model", "location", "offset", "length", "checksum",
    "ai.onnx", "ai.onnx.ml", "com.microsoft", "tersor", "then_branch", "else_branch", "body", "axis",
    "perm", "value", "to", "shape", "keepdims",
]  # fmt: skip
_RANGES = {
    Kind.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    Kind.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    Kind.CPPTYPE_UINT32: (0, 2**32 - 1),
    Kind.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def models(inputs: Iterable[bytes]) -> list[onnx.ModelProto]:
    """Those of ``inputs`` that are models, for parts to be taken from."""
    found = []
    for data in inputs:
        model = onnx.ModelProto()
        try:
            model.ParseFromString(data)
        except DecodeError:
            continue
        found.append(model)
    return found


def mutated(
    data: bytes,
    size: int,
    seed: int,
    raw: Callable[[bytes, int], bytes],
    donors: list[onnx.ModelProto],
) -> bytes:
    """A neighbour of ``data``, of at most ``size`` bytes.

    Args:
        data: a model, or anything.
        size: the most bytes to give back.
        seed: of the choices.
        raw: mutates bytes as bytes: now and then, and where ``data`` is no model.
        donors: models whose parts may be put in.
    """
    rng = random.Random(seed)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return raw(data, size)
    if not data or rng.random() < 0.1:
        return raw(data, size)
    donor = rng.choice(donors) if donors and rng.random() < 0.3 else onnx.ModelProto()
    try:
        for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 5])):
            _change(model, donor, rng)
        made = model.SerializeToString()
    except (TypeError, ValueError, EncodeError):  # text that is no UTF-8, which is read as bytes
        return raw(data, size)
    return made if len(made) <= size else raw(data, size)


def _change(model: onnx.ModelProto, donor: onnx.ModelProto, rng: random.Random) -> None:
    special = rng.random()
    if special < 0.12:
        _rewire(model, rng)
    elif special < 0.16:
        _nest(model, rng)
    elif special < 0.22:
        _graft(model, donor, rng)
    else:
        messages = list(_messages(model))
        _change_field(rng.choice(messages), messages, list(_messages(donor)), rng)


def _messages(root: Message) -> Iterator[Message]:
    work = [root]
    while work:
        message = work.pop()
        yield message
        for field, value in message.ListFields():
            if field.cpp_type == Kind.CPPTYPE_MESSAGE:
                work.extend(value if field.is_repeated else [value])


def _change_field(
    message: Message, mine: list[Message], theirs: list[Message], rng: random.Random
) -> None:
    known = [f for f, _ in message.ListFields()]
    # What is set is what the model means; what is not may still be read.
    fields = known if known and rng.random() < 0.7 else list(message.DESCRIPTOR.fields)
    field = rng.choice(fields)
    if field.is_repeated:
        _change_list(message, field, mine, theirs, rng)
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    elif field.cpp_type == Kind.CPPTYPE_MESSAGE:
        same = _alike(field, mine + theirs)
        if same and rng.random() < 0.8:
            copy = type(same[0])()
            copy.CopyFrom(rng.choice(same))
            getattr(message, field.name).CopyFrom(copy)
        else:
            getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _scalar(field, getattr(message, field.name), mine, rng))


def _change_list(
    message: Message, field: Any, mine: list[Message], theirs: list[Message], rng: random.Random
) -> None:
    items = getattr(message, field.name)
    action = rng.random()
    if items and action < 0.25:
        del items[rng.randrange(len(items))]
    elif field.cpp_type == Kind.CPPTYPE_MESSAGE:
        same = _alike(field, mine + theirs)
        if items and action < 0.4 and len(items) > 1:
            i, j = rng.sample(range(len(items)), 2)
            first, second = type(items[i])(), type(items[j])()
            first.CopyFrom(items[i])
            second.CopyFrom(items[j])
            items[i].CopyFrom(second)
            items[j].CopyFrom(first)
        elif same:
            copy = type(same[0])()
            copy.CopyFrom(rng.choice(same))
            items.append(copy)
        else:
            items.add()
    elif items and action < 0.75:
        i = rng.randrange(len(items))
        items[i] = _scalar(field, items[i], mine, rng)
    else:
        items.append(_scalar(field, items[-1] if items else None, mine, rng))


def _alike(field: Any, messages: list[Message]) -> list[Message]:
    return [m for m in messages if m.DESCRIPTOR.full_name == field.message_type.full_name]


def _scalar(field: Any, old: Any, messages: list[Message], rng: random.Random) -> Any:
    if field.type == Kind.TYPE_BYTES:  # of the same type as text in C++
        return _raw(old or b"", rng)
    match field.cpp_type:
        case Kind.CPPTYPE_STRING:
            return _word(old or "", messages, rng)
        case Kind.CPPTYPE_FLOAT | Kind.CPPTYPE_DOUBLE:
            return rng.choice(FLOATS)
        case Kind.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case Kind.CPPTYPE_ENUM:
            return rng.choice(field.enum_type.values).number
    low, high = _RANGES[field.cpp_type]
    number = rng.choice(
        [rng.choice(NUMBERS), (old or 0) + rng.choice([-1, 1]), rng.randrange(0, 30)]
    )
    return min(max(number, low), high)


def _raw(old: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(5)
    if kind == 0:
        return old[: rng.randrange(len(old) + 1)]
    if kind == 1:
        return old + rng.randbytes(rng.choice([1, 2, 4, 8]))
    if kind == 2:
        return rng.choice(WORDS).encode()
    if kind == 3 and old:
        i = rng.randrange(len(old))
        return old[:i] + rng.randbytes(1) + old[i + 1 :]
    return old[: len(old) // 8 * 8] if len(old) % 8 else b"\xff" * len(old)


def _word(old: str, messages: list[Message], rng: random.Random) -> str:
    """Mostly a name that the model has, for these make edges, shadows and duplicates."""
    kind = rng.random()
    if kind < 0.55:
        names = [
            value
            for message in messages
            for field, held in message.ListFields()
            if field.type == Kind.TYPE_STRING
            for value in (held if field.is_repeated else [held])
        ]
        return rng.choice(names or WORDS)
    if kind < 0.85:
        return rng.choice(WORDS)
    if kind < 0.95:
        return old + rng.choice(["_1", "'", " ", "\x1b", "é"])
    return str(rng.choice(NUMBERS))


def _rewire(model: onnx.ModelProto, rng: random.Random) -> None:
    """A node reads another value, or returns under another's name."""
    graphs = [m for m in _messages(model) if isinstance(m, onnx.GraphProto)]
    graph = rng.choice(graphs) if graphs else model.graph
    names = [i.name for i in graph.input] + [t.name for t in graph.initializer]
    names += [o for n in graph.node for o in n.output]
    if not graph.node or not names:
        return
    node = rng.choice(graph.node)
    ends = node.input if rng.random() < 0.8 and node.input else node.output
    if ends and rng.random() < 0.8:
        ends[rng.randrange(len(ends))] = rng.choice(names)
    else:
        ends.append(rng.choice(names))


def _nest(model: onnx.ModelProto, rng: random.Random) -> None:
    """The whole graph moves into both branches of an If, or the body of a Loop or Scan."""
    inner = onnx.GraphProto()
    inner.CopyFrom(model.graph)
    kept = [i for i in inner.input if rng.random() < 0.5]
    del inner.input[:]
    inner.input.extend(kept)
    model.graph.ClearField("node")
    op = rng.choice(["If", "Loop", "Scan"])
    node = model.graph.node.add(op_type=op, name="nested")
    node.output.extend(o.name for o in inner.output)
    initial = [i.name for i in model.graph.input]
    node.input.extend(initial[:1] if op == "If" else initial)
    for name in ("then_branch", "else_branch") if op == "If" else ("body",):
        attribute = node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
        attribute.g.CopyFrom(inner)
    if op == "Scan":
        node.attribute.add(name="num_scan_inputs", type=onnx.AttributeProto.INT, i=1)


def _graft(model: onnx.ModelProto, donor: onnx.ModelProto, rng: random.Random) -> None:
    """Nodes of another model come in, with its constants, reading what is here."""
    names = [i.name for i in model.graph.input] + [o for n in model.graph.node for o in n.output]
    for theirs in donor.graph.node:
        node = model.graph.node.add()
        node.CopyFrom(theirs)
        for i in range(len(node.input)):
            if names and rng.random() < 0.5:
                node.input[i] = rng.choice(names)
    model.graph.initializer.extend(donor.graph.initializer)
    for opset in donor.opset_import:
        if all(o.domain != opset.domain for o in model.opset_import):
            model.opset_import.add().CopyFrom(opset)
    model.functions.extend(donor.functions)
