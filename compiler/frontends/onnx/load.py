"""Reading ONNX files: bytes to protobuf, with one clear line for what is not a model."""

from __future__ import annotations

import stat
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from tersor.errors import InvalidModel

# What people give in place of a model, by its first bytes.
_OTHER_FILES = {
    b"version https://git-lfs": "a Git LFS pointer, not the model: run 'git lfs pull'",
    b"PK\x03\x04": "a zip archive, perhaps a torch checkpoint: load it and give the module itself",
    b"\x80\x02": "a Python pickle, perhaps a torch checkpoint: load it and give the module itself",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
}


def read_model(source: str | Path | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None]:
    """The model and the folder that its external data is relative to (None for bytes and protos).

    Raises:
        InvalidModel: no such file, not a file, not an ONNX model.
    """
    if isinstance(source, onnx.ModelProto):
        return _checked(source, "the given model"), None
    if isinstance(source, bytes):
        return _parse(source, "the given bytes"), None
    path = Path(source)
    return _parse(_read(path), str(path)), path.resolve().parent


def model_bytes(model: bytes | onnx.ModelProto) -> bytes:
    """The serialized form of a model in memory."""
    return model if isinstance(model, bytes) else bytes(model.SerializeToString())


def _read(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InvalidModel(f"{path}: a folder; give the .onnx file in it")
        # A pipe or device would keep its reader waiting.
        if not stat.S_ISREG(mode):
            raise InvalidModel(f"{path}: not a regular file; copy it to one first")
        return path.read_bytes()
    except OSError as error:
        raise InvalidModel(f"{path}: {error.strerror}; check the path") from None
    except ValueError as error:  # a null byte in the path
        raise InvalidModel(f"{str(path)!r}: {error}") from None


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    if not data:
        raise InvalidModel(f"{where}: empty; export or download the model again")
    for start, meaning in _OTHER_FILES.items():
        if data.startswith(start):
            raise InvalidModel(f"{where}: {meaning}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise InvalidModel(
            f"{where}: not an ONNX model, or truncated; export or download it again"
        ) from None
    return _checked(model, where)


def _checked(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    if not model.HasField("graph"):
        raise InvalidModel(f"{where}: no graph in it; not an ONNX model, or truncated")
    if not model.opset_import:
        raise InvalidModel(f"{where}: names no opset; not a complete ONNX model, or truncated")
    return model
