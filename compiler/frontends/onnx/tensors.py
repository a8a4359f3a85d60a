"""TensorProto to numpy. External data is mapped, not read, and stays inside the model's folder."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto

from tersor.errors import InvalidModel
from tersor.ir import DType
from tersor.ops.onnx_schema import FROM_ONNX


def element_type(tensor: TensorProto) -> DType:
    """Raises:
    InvalidModel: the tensor names a type that is none.
    """
    if tensor.data_type not in FROM_ONNX:
        raise InvalidModel(f"tensor {tensor.name!r}: no element type {tensor.data_type}")
    return FROM_ONNX[tensor.data_type]


def tensor_array(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """The numbers of a TensorProto; a memory map where they are in another file under ``folder``.

    Raises:
        InvalidModel: a dtype that is none, data of another length than the dims say, or external data
            that is not a readable part of a file inside the model's folder.
    """
    dtype = element_type(tensor)
    shape = tuple(int(d) for d in tensor.dims)
    if any(d < 0 for d in shape):
        raise InvalidModel(f"tensor {tensor.name!r}: negative dim in {list(shape)}")
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external(tensor, dtype, shape, folder)
    if tensor.HasField("raw_data"):
        if dtype is DType.STRING:
            raise InvalidModel(f"tensor {tensor.name!r}: strings cannot be held in raw_data")
        needed = _bytes(dtype, shape)
        if len(tensor.raw_data) != needed:
            raise InvalidModel(
                f"tensor {tensor.name!r}: {list(shape)} of {dtype.value} takes {needed} bytes, "
                f"its raw_data has {len(tensor.raw_data)}"
            )
        if dtype.bits >= 8:
            stored = np.frombuffer(tensor.raw_data, dtype.numpy.newbyteorder("<"))
            return stored.astype(dtype.numpy, copy=False).reshape(shape)
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidModel(f"tensor {tensor.name!r}: {reason}") from None
    return array.astype(object) if dtype is DType.STRING else array


def densify(sparse: SparseTensorProto, folder: Path | None) -> np.ndarray:
    """The dense form of COO indices, linear [n] or by axis [n, rank], with values [n].

    Raises:
        InvalidModel: indices that are not of that form, or outside of the dims.
    """
    name = sparse.values.name
    values, indices = tensor_array(sparse.values, folder), tensor_array(sparse.indices, folder)
    shape = tuple(int(d) for d in sparse.dims)
    try:
        dense = np.zeros(shape, values.dtype)
        if (indices < 0).any():
            raise IndexError("an index is negative")
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
    except (IndexError, ValueError, MemoryError) as error:
        raise InvalidModel(f"sparse tensor {name!r} of {list(shape)}: {error}") from None
    return dense


def _bytes(dtype: DType, shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) * dtype.bits // 8)


def _external(
    tensor: TensorProto, dtype: DType, shape: tuple[int, ...], folder: Path | None
) -> np.ndarray:
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    where = f"tensor {tensor.name!r}: external data {location!r}"
    if folder is None:
        raise InvalidModel(
            f"{where} is beside a file, but the model was not given as one: give its path"
        )
    if dtype is DType.STRING:
        raise InvalidModel(f"{where}: strings cannot be external")
    path = _inside(folder, location, where)
    needed, size = _bytes(dtype, shape), path.stat().st_size
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    except ValueError:
        raise InvalidModel(f"{where}: offset and length must be integers") from None
    if offset < 0 or length != needed or offset + needed > size:
        raise InvalidModel(
            f"{where}: bytes {offset} to {offset + length} do not hold {list(shape)} of {dtype.value} "
            f"({needed} bytes) in a file of {size}"
        )
    if needed == 0:
        return np.zeros(shape, dtype.numpy)
    if dtype.bits < 8:
        packed = np.memmap(path, np.uint8, "r", offset, (needed,))
        inline = TensorProto(data_type=tensor.data_type, dims=shape, raw_data=packed.tobytes())
        return tensor_array(inline, None)
    return np.memmap(path, dtype.numpy, "r", offset, shape)


def _inside(folder: Path, location: str, where: str) -> Path:
    """The file that ``location`` names, which must lie in the model's folder and be a plain file."""
    try:
        path = (folder / location).resolve()
        plain = path.is_file()
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{where}: {error}") from None
    if not location or Path(location).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise InvalidModel(f"{where} must lie in the model's folder, as a relative path")
    if not plain:
        raise InvalidModel(f"{where}: no such file beside the model; it belongs in {folder}")
    return path
