"""Reads ONNX files into protobufs, with an explanation for files that are something else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from tersor.errors import InvalidModel
from tersor.frontends.onnx.external_data import Files, cached_blob
from tersor.frontends.onnx.wire import check_size, check_structure

_PICKLE = (
    "pickles can run code and are not read unless trusted: give the torch module itself, or a model "
    "folder with safetensors"
)
_UNPACK = "unpack it first"
# Other files that users pass: offset of a signature, signature, explanation.
_OTHER_FILES = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model: run 'git lfs pull'"),
    (0, b"PK\x03\x04", f"a zip archive, perhaps a torch checkpoint: {_PICKLE}"),
    *((0, bytes([0x80, n]), f"a Python pickle: {_PICKLE}") for n in range(2, 6)),
    (0, b"\x1f\x8b", f"compressed with gzip: {_UNPACK}"),
    (0, b"BZh", f"compressed with bzip2: {_UNPACK}"),
    (0, b"\xfd7zXZ", f"compressed with xz: {_UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"compressed with zstd: {_UNPACK}"),
    (0, b"<", "a web page or XML, perhaps from a failed download: download the model again"),
    (8, b'{"', "safetensors: weights without a graph; give the model folder that contains them"),
    (0, b"{", "JSON or other text, not an ONNX model"),
    (0, b"\x89HDF", "HDF5, perhaps from Keras: export the model to ONNX"),
    (0, b"GGUF", "GGUF: export the model to ONNX"),
    (4, b"TFL3", "a TensorFlow Lite model: export the model to ONNX"),
    (4, b"ORTM", "in ONNX Runtime's ORT format: give the .onnx file that it was converted from"),
)


def read_model(
    source: str | Path | bytes | onnx.ModelProto, *, allow_hf_cache: bool = False
) -> tuple[onnx.ModelProto, Files | None]:
    """The model, and its external files (None for bytes and protos).

    Raises:
        InvalidModel: no such file, not a file, not an ONNX model.
    """
    if isinstance(source, onnx.ModelProto):
        return _checked(source, "the given model"), None
    if isinstance(source, bytes):
        return _parse(source, "the given bytes"), None
    path = Path(source)
    data, identity = _read(path)
    # In the Hugging Face cache, external data is next to the link; elsewhere, next to the link's target.
    folder = path.parent if cached_blob(path) is not None else path.resolve().parent
    return _parse(data, str(path)), Files(folder, identity, allow_hf_cache)


def model_bytes(model: bytes | onnx.ModelProto) -> bytes:
    """The serialized form of a model in memory."""
    return model if isinstance(model, bytes) else bytes(model.SerializeToString())


def _read(path: Path) -> tuple[bytes, tuple[int, int]]:
    """The bytes of a file, and its device and inode."""
    try:
        # Without O_NONBLOCK, opening a pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidModel(f"{path}: {error.strerror}; check the path") from None
    except ValueError as error:  # a null byte in the path
        raise InvalidModel(f"{str(path)!r}: {error}") from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise InvalidModel(f"{path}: a folder; give the .onnx file in it")
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModel(f"{path}: not a regular file; copy it to one first")
        check_size(status.st_size, str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(), (status.st_dev, status.st_ino)
    except OSError as error:
        raise InvalidModel(f"{path}: {error.strerror}; check the path") from None
    finally:
        os.close(descriptor)


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    if not data:
        raise InvalidModel(f"{where}: empty; export or download the model again")
    for offset, mark, meaning in _OTHER_FILES:
        if data.startswith(mark, offset):
            raise InvalidModel(f"{where}: {meaning}")
    check_structure(data, where)
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
        raise InvalidModel(f"{where}: no graph; not an ONNX model, or truncated")
    if not model.opset_import:
        raise InvalidModel(f"{where}: imports no opset; not an ONNX model, or truncated")
    return model
