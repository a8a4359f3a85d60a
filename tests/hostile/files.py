"""Files that are not ONNX models, or damaged ones."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
from hostile.table import Refused, file, in_memory, text
from onnx import ModelProto, numpy_helper

from tersor.errors import Unsupported

MODEL = text().SerializeToString()
# Fields of the wire format: a number and a kind, then the bytes.
VARINT, BYTES, GROUP = 0, 2, 3


def key(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def message(number: int, inner: bytes) -> bytes:
    return key(number, BYTES) + varint(len(inner)) + inner


def nested(levels: int) -> bytes:
    """Ifs in Ifs: graph (7) > node (1) > attribute (5) > graph (6) > node ..."""
    inner = b""
    for _ in range(levels):
        inner = message(1, message(5, message(6, inner)))
    return b"\x08\x08" + message(7, inner) + message(8, b"\x10\x11")


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(os.getcwd))
    return out.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 4


def huge(folder: Path) -> Path:
    """A sparse file of 3 GB."""
    path = folder / "model.onnx"
    with path.open("wb") as out:
        out.truncate(3 << 30)
    return path


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


def loop(folder: Path) -> Path:
    (folder / "model.onnx").symlink_to("model.onnx")
    return folder / "model.onnx"


def changed(**fields: int) -> ModelProto:
    model = text()
    for name, value in fields.items():
        setattr(model, name, value)
    return model


def without_opsets() -> ModelProto:
    model = text()
    del model.opset_import[:]
    return model


def opsets(*versions: tuple[str, int]) -> ModelProto:
    model = without_opsets()
    for domain, version in versions:
        model.opset_import.add(domain=domain, version=version)
    return model


TENSOR = numpy_helper.from_array(np.ones(2, np.float32), "w").SerializeToString()

FILES = [
    Refused("no such file", lambda folder: folder / "no.onnx", "{path}: No such file or directory; check the path"),
    Refused("a null byte in the path", lambda folder: Path("a\0b"), "'a\\x00b': embedded null byte"),
    Refused("a folder", lambda folder: folder, "{path}: a folder; give the .onnx file in it"),
    Refused("a pipe", pipe, "{path}: not a regular file; copy it to one first"),
    Refused("a device", lambda folder: Path("/dev/zero"), "{path}: not a regular file; copy it to one first"),
    Refused("a link to itself", loop, "{path}: Too many levels of symbolic links; check the path"),
    Refused("too large for a protobuf", huge, "{path}: 3221225472 bytes, but a protobuf has at most 2147483647: save the weights as external data"),
    Refused("empty", file(b""), "{path}: empty; export or download the model again"),
    Refused("a Git LFS pointer", file(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), "{path}: a Git LFS pointer, not the model: run 'git lfs pull'"),
    Refused("a web page", file(b"<!DOCTYPE html><html><script>alert(1)</script></html>"), "{path}: a web page or XML, perhaps from a failed download: download the model again"),
    Refused("gzip", file(gzip.compress(MODEL)), "{path}: compressed with gzip: unpack it first"),
    Refused("a torch archive", file(zipped(), "model.pt2"), "{path}: a zip archive, perhaps a torch checkpoint: pickles can run code and are not read unless trusted: give the torch module itself, or a model folder with safetensors"),
    Refused("a pickle", file(pickle.dumps(os.getcwd), "model.pt"), "{path}: a Python pickle: pickles can run code and are not read unless trusted: give the torch module itself, or a model folder with safetensors"),
    Refused("safetensors", file(safetensors(), "model.safetensors"), "{path}: safetensors: weights without a graph; give the model folder that contains them"),
    Refused("JSON", file(b'{"graph": {}}'), "{path}: JSON or other text, not an ONNX model"),
    Refused("text", file(b"not a model"), "{path}: not an ONNX model, or damaged at byte 0; export or download it again"),
    Refused("zeros", file(bytes(64)), "{path}: not an ONNX model, or damaged at byte 0; export or download it again"),
    Refused("another protobuf", file(TENSOR), "{path}: not an ONNX model, or damaged at byte 2; export or download it again"),
    Refused("truncated", file(MODEL[:-3]), "{path}: not an ONNX model, or truncated; export or download it again"),
    Refused("truncated in its graph", file(MODEL[: len(MODEL) // 2]), "{path}: not an ONNX model, or truncated; export or download it again"),
    Refused("followed by zeros", file(MODEL + bytes(16)), "{path}: bytes from 63 on are not part of the model; export or download it again"),
    Refused("followed by text", file(MODEL + b"trailing"), "{path}: bytes from 63 on are not part of the model; export or download it again"),
    Refused("followed by another model", file(MODEL + MODEL), "{path}: a second graph begins at byte 65: two models in one file"),
    Refused("a length past the end", file(MODEL + key(20, BYTES) + varint(1 << 40)), "{path}: not an ONNX model, or truncated; export or download it again"),
    Refused("a length past the end of its message", file(b"\x08\x08" + message(7, key(2, BYTES) + b"\x08g") + MODEL), "{path}: not an ONNX model, or damaged at byte 14; export or download it again"),
    Refused("an endless number", file(b"\x08" + b"\xff" * 20), "{path}: not an ONNX model, or truncated; export or download it again"),
    Refused("a group", file(b"\x08\x08" + key(7, GROUP)), "{path}: not an ONNX model, or damaged at byte 2; export or download it again"),
    Refused("a field of another kind", file(b"\x08\x08" + key(7, VARINT) + b"\x01"), "{path}: not an ONNX model, or damaged at byte 2; export or download it again"),
    Refused("names that are not text", file(MODEL.replace(b"Relu", b"\xff\xfe\xfd\xfc")), "{path}: op_type at byte 14 is not UTF-8 text; export the model again"),
    Refused("nested too deep for protobuf", file(nested(34)), "{path}: messages nest deeper than 100, protobuf's limit: flatten the model's subgraphs"),
    Refused("nested very deep", file(nested(20_000)), "{path}: messages nest deeper than 100, protobuf's limit: flatten the model's subgraphs"),
    Refused("millions of empty nodes", file(b"\x08\x08" + message(7, b"\x0a\x00" * 4_000_001) + MODEL[-4:]), "{path}: more than 4000000 nodes, attributes and other messages: simplify the model"),
    Refused("no graph", file(ModelProto(ir_version=8).SerializeToString()), "{path}: no graph; not an ONNX model, or truncated"),
    Refused("no opset", in_memory(without_opsets()), "the given model: imports no opset; not an ONNX model, or truncated"),
    Refused("no IR version", in_memory(changed(ir_version=0)), "the model's IR version is 0, not 1 or above"),
    Refused("a negative IR version", in_memory(changed(ir_version=-1)), "the model's IR version is -1, not 1 or above"),
    Refused("an unknown newer IR version", in_memory(changed(ir_version=1 << 40)), "IR version 1099511627776 is newer than 14: export the model at that or below", Unsupported),
    Refused("opset 0", in_memory(opsets(("", 0))), "opset of 'ai.onnx' is 0, not 1 or above"),
    Refused("a negative opset", in_memory(opsets(("", -5))), "opset of 'ai.onnx' is -5, not 1 or above"),
    Refused("two opsets", in_memory(opsets(("", 17), ("", 18))), "two opsets of 'ai.onnx': 17 and 18"),
    Refused("two opsets by two names", in_memory(opsets(("", 17), ("ai.onnx", 18))), "two opsets of 'ai.onnx': 17 and 18"),
    Refused("an unknown newer opset", in_memory(opsets(("", 10_000))), "opset 10000 is newer than 28: export the model at that or below", Unsupported),
    Refused("an unknown newer opset of another domain", in_memory(opsets(("", 17), ("ai.onnx.ml", 99))), "opset 99 of ai.onnx.ml is newer than 5: export the model at that or below", Unsupported),
    Refused("only another domain's opset", in_memory(opsets(("other", 1))), "Relu %y: the model imports no opset of 'ai.onnx'"),
]  # fmt: skip
