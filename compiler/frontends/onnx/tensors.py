"""TensorProto to numpy. External data is memory-mapped, and must be inside the model's folder."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto

from tersor.errors import InvalidModel, Unsupported, first_line
from tersor.frontends.onnx.external_data import Files
from tersor.ir import DType
from tersor.ops.onnx_schema import FROM_ONNX

MAX_DENSIFIED = 1 << 28  # Bytes of all sparse tensors of a model, as dense arrays.
_MAX_RANK = 64  # numpy's limit
_LARGEST = 2**63 - 1
_SHOWN = 100  # Characters of a file's name that a message shows.

# By element type, the field that stores the numbers if raw_data does not, and numbers per element.
_TYPED: dict[DType, tuple[str, float]] = {
    DType.F32: ("float_data", 1), DType.C64: ("float_data", 2), DType.F64: ("double_data", 1),
    DType.C128: ("double_data", 2), DType.I64: ("int64_data", 1), DType.U32: ("uint64_data", 1),
    DType.U64: ("uint64_data", 1), DType.STRING: ("string_data", 1),
}  # fmt: skip
_FIELDS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")


def element_type(tensor: TensorProto) -> DType:
    """The element type of a tensor.

    Raises:
        InvalidModel: it is unknown.
    """
    if tensor.data_type not in FROM_ONNX:
        raise InvalidModel(f"tensor {tensor.name!r}: unknown element type {tensor.data_type}")
    return FROM_ONNX[tensor.data_type]


@dataclass
class Tensors:
    """Reads the tensors of one model.

    Attributes:
        files: the model's external files; None if the model was not given as a file.
        densified: bytes of the dense arrays of sparse tensors so far.
    """

    files: Files | None = None
    densified: int = 0

    def array(self, tensor: TensorProto) -> np.ndarray:
        """The values of a tensor; memory-mapped if they are external.

        Raises:
            InvalidModel: an unknown element type, impossible dims, data whose length does not match the dims,
                or external data that is not a readable range of a file in the model's folder.
        """
        dtype, shape = element_type(tensor), _shape(tensor)
        if tensor.HasField("segment"):
            raise InvalidModel(
                f"tensor {tensor.name!r}: segments of tensors, which ONNX removed, are not supported"
            )
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._external(tensor, dtype, shape)
        if len(tensor.raw_data):
            return _raw(tensor, dtype, shape)
        return _typed(tensor, dtype, shape)

    def dense(self, sparse: SparseTensorProto) -> np.ndarray:
        """The dense form of a sparse tensor: values [n], with indices [n] into the flat array or [n, rank].

        Raises:
            InvalidModel: indices of another shape, or out of bounds.
            Unsupported: the model's sparse tensors are too large as dense arrays.
        """
        where = f"sparse tensor {sparse.values.name!r} of {_listed(sparse.dims)}"
        values, indices = self.array(sparse.values), self.array(sparse.indices)
        shape = tuple(int(d) for d in sparse.dims)
        if any(d < 0 for d in shape) or len(shape) > _MAX_RANK:
            raise InvalidModel(f"{where}: no array can have this shape")
        self.densified += math.prod(shape) * values.dtype.itemsize
        if self.densified > MAX_DENSIFIED:
            raise Unsupported(
                f"{where}: the model's sparse tensors take more than {MAX_DENSIFIED} bytes as dense "
                "arrays, to which they are converted"
            )
        count = values.size
        if values.ndim != 1 or indices.shape not in ((count,), (count, len(shape))):
            raise InvalidModel(
                f"{where}: values of shape {list(values.shape)} with indices of {list(indices.shape)}"
            )
        if indices.dtype != np.int64:
            raise InvalidModel(f"{where}: indices are {indices.dtype}, not int64")
        dense = np.zeros(shape, values.dtype)
        try:
            if (indices < 0).any():
                raise IndexError("an index is negative")
            if indices.ndim == 1:
                dense.reshape(-1)[indices] = values
            else:
                dense[tuple(indices.T)] = values
        except (IndexError, ValueError) as error:
            raise InvalidModel(f"{where}: {error}") from None
        return dense

    def _external(self, tensor: TensorProto, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        shown = location if len(location) <= _SHOWN else f"{location[:_SHOWN]}…"
        where = f"tensor {tensor.name!r}: external data {shown!r}"
        if self.files is None:
            raise InvalidModel(
                f"{where} needs the model's folder, but the model was given in memory: give its path"
            )
        if dtype is DType.STRING:
            raise InvalidModel(f"{where}: strings cannot be external")
        if _filled(tensor):
            raise InvalidModel(f"{where}: the tensor also has data in {_filled(tensor)[0]}")
        part = self.files.part(tensor.external_data, where)
        needed, size = _bytes(dtype, shape), part.data.size
        length = needed if part.length is None else part.length
        if part.offset < 0 or length != needed or part.offset + needed > size:
            raise InvalidModel(
                f"{where}: bytes {part.offset} to {part.offset + length} of a file of {size} do not contain "
                f"{dtype.value}{list(shape)} ({needed} bytes)"
            )
        if dtype.bits < 8:
            packed = part.data[part.offset : part.offset + needed]
            inline = TensorProto(data_type=tensor.data_type, dims=shape, raw_data=packed.tobytes())
            return self.array(inline) if needed else np.zeros(shape, dtype.numpy)
        stored = dtype.numpy.newbyteorder("<")
        array: np.ndarray = np.ndarray(shape, stored, part.data.data if size else b"", part.offset)
        return array.astype(dtype.numpy, copy=False)


def _shape(tensor: TensorProto) -> tuple[int, ...]:
    shape = tuple(int(d) for d in tensor.dims)
    if any(d < 0 for d in shape):
        raise InvalidModel(f"tensor {tensor.name!r}: negative dim in {_listed(shape)}")
    if len(shape) > _MAX_RANK or math.prod(d for d in shape if d) * 16 > _LARGEST:
        raise InvalidModel(f"tensor {tensor.name!r}: no array can have shape {_listed(shape)}")
    return shape


def _raw(tensor: TensorProto, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    if dtype is DType.STRING:
        raise InvalidModel(f"tensor {tensor.name!r}: strings cannot be in raw_data")
    if filled := [f for f in _filled(tensor) if f != "raw_data"]:
        raise InvalidModel(f"tensor {tensor.name!r}: data in both raw_data and {filled[0]}")
    needed = _bytes(dtype, shape)
    if len(tensor.raw_data) != needed:
        raise _wrong_length(
            tensor, dtype, f"{needed} bytes", f"raw_data has {len(tensor.raw_data)}"
        )
    if dtype.bits < 8:
        return _converted(tensor)
    if dtype is DType.BOOL:  # Makes bytes other than 0 and 1 true, which numpy leaves undefined.
        return np.frombuffer(tensor.raw_data, np.uint8).astype(bool).reshape(shape)
    stored = np.frombuffer(tensor.raw_data, dtype.numpy.newbyteorder("<"))
    return stored.astype(dtype.numpy, copy=False).reshape(shape)


def _typed(tensor: TensorProto, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    field, each = _TYPED.get(dtype, ("int32_data", 1.0))
    if dtype.bits < 8:
        each = dtype.bits / 8  # packed
    if other := [f for f in _filled(tensor) if f != field]:
        raise InvalidModel(
            f"tensor {tensor.name!r}: data of {dtype.value} must be in {field}, not in {other[0]}"
        )
    needed, count = math.ceil(math.prod(shape) * each), len(getattr(tensor, field))
    if count != needed:
        raise _wrong_length(tensor, dtype, f"{needed} numbers", f"{field} has {count}")
    if not needed:
        return np.zeros(shape, dtype.numpy)
    array = _converted(tensor)
    return array.astype(object) if dtype is DType.STRING else array


def _converted(tensor: TensorProto) -> np.ndarray:
    try:
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise InvalidModel(f"tensor {tensor.name!r}: {first_line(error)}") from None


def _filled(tensor: TensorProto) -> list[str]:
    """The fields that contain data."""
    return [f for f in ("raw_data", *_FIELDS) if len(getattr(tensor, f))]


def _wrong_length(tensor: TensorProto, dtype: DType, needed: str, has: str) -> InvalidModel:
    return InvalidModel(
        f"tensor {tensor.name!r}: {dtype.value}{_listed(tensor.dims)} needs {needed}, but {has}"
    )


def _listed(dims: Iterable[int]) -> str:
    shown = list(dims)
    return str(shown) if len(shown) <= _MAX_RANK else f"[{len(shown)} dims]"


def _bytes(dtype: DType, shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) * dtype.bits // 8)
