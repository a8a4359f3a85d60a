"""Reading ONNX files: bytes to protobuf, with one clear line for what is not a model."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from tersor.errors import InvalidModel
from tersor.ir import DType
from tersor.ops.onnx_schema import FROM_ONNX


def read_model(source: str | Path | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None]:
    """The model and the folder that its external data is relative to (None for bytes and protos).

    Raises:
        InvalidModel: no such file, not a file, not an ONNX model.
    """
    if isinstance(source, onnx.ModelProto):
        return source, None
    if isinstance(source, bytes):
        return _parse(source, "the given bytes"), None
    path = Path(source)
    return _parse(_read(path), str(path)), path.resolve().parent


def _read(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InvalidModel(f"{path}: not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise InvalidModel(f"{path}: {error.strerror}") from None


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    if not data:
        raise InvalidModel(f"{where}: empty, no ONNX model")
    if data.startswith(b"version https://git-lfs"):
        raise InvalidModel(f"{where}: a Git LFS pointer, not the model: run 'git lfs pull'")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise InvalidModel(f"{where}: not an ONNX model, or truncated") from None
    if not model.HasField("graph"):
        raise InvalidModel(f"{where}: no graph in it: not an ONNX model")
    if not model.opset_import:
        raise InvalidModel(f"{where}: names no opset: not a complete ONNX model")
    return model


def tensor_array(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """The numbers of a TensorProto. External data is mapped, not read.

    Raises:
        InvalidModel: a dtype that is none, data of another length than the dims say, or external data
            that is not a readable part of a file inside the model's folder.
    """
    if tensor.data_type not in FROM_ONNX:
        raise InvalidModel(f"tensor {tensor.name!r}: no element type {tensor.data_type}")
    dtype = FROM_ONNX[tensor.data_type]
    shape = tuple(tensor.dims)
    if any(d < 0 for d in shape):
        raise InvalidModel(f"tensor {tensor.name!r}: negative dim in {list(shape)}")
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external(tensor, dtype, shape, folder)
    if tensor.HasField("raw_data") and dtype.bits >= 8 and dtype is not DType.STRING:
        expected = int(np.prod(shape, dtype=object)) * dtype.numpy.itemsize
        if len(tensor.raw_data) != expected:
            raise InvalidModel(
                f"tensor {tensor.name!r}: {list(shape)} of {dtype.value} takes {expected} bytes, "
                f"its raw_data has {len(tensor.raw_data)}"
            )
        return np.frombuffer(tensor.raw_data, dtype.numpy).reshape(shape)
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise InvalidModel(f"tensor {tensor.name!r}: {str(error).splitlines()[0]}") from None
    return array.astype(object) if dtype is DType.STRING else array


def _external(
    tensor: TensorProto, dtype: DType, shape: tuple[int, ...], folder: Path | None
) -> np.ndarray:
    entries = {e.key: e.value for e in tensor.external_data}
    where = f"tensor {tensor.name!r}: external data {entries.get('location')!r}"
    if folder is None:
        raise InvalidModel(f"{where}: the model was not given as a file, so there is no folder for it")
    if dtype.bits < 8 or dtype is DType.STRING:
        raise InvalidModel(f"{where}: {dtype.value} cannot be external")
    location = Path(entries.get("location", ""))
    path = (folder / location).resolve()
    if not entries.get("location") or location.is_absolute() or not path.is_relative_to(folder):
        raise InvalidModel(f"{where}: must lie in the model's folder")
    if not path.is_file():
        raise InvalidModel(f"{where}: no such file")
    count = int(np.prod(shape, dtype=object))
    needed = count * dtype.numpy.itemsize
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    except ValueError:
        raise InvalidModel(f"{where}: offset and length must be integers") from None
    if offset < 0 or length != needed or offset + length > path.stat().st_size:
        raise InvalidModel(
            f"{where}: bytes {offset} to {offset + length} do not hold {list(shape)} of {dtype.value} "
            f"({needed} bytes) in a file of {path.stat().st_size}"
        )
    if count == 0:
        return np.zeros(shape, dtype.numpy)
    return np.memmap(path, dtype.numpy, "r", offset, shape)
