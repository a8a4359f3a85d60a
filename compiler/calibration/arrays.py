"""Reading named arrays from .npz files, and checking them against a graph's inputs."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from tersor.errors import InvalidOption, suggest
from tersor.ir import DType, Graph, TensorType

MAX_UNPACKED = 1 << 29  # Bytes; larger files may unpack to at most MAX_RATIO times their size.
MAX_RATIO = 100
Arrays = dict[str, np.ndarray]
_NPY = b"\x93NUMPY"


def read_arrays(path: Path) -> Arrays:
    """The arrays of an .npz file by name.

    Raises:
        InvalidOption: not an .npz file, or it contains pickled objects, which could run code.
    """
    with _opened(path), np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if not arrays:
        raise InvalidOption(f"{path}: the file has no arrays")
    return arrays


def unpack(path: Path, folder: Path) -> dict[str, Path]:
    """Writes each array of an .npz file to its own file in ``folder``, for partial reads.

    Raises:
        InvalidOption: as :func:`read_arrays`, or the disk is full.
    """
    arrays: dict[str, Path] = {}
    with _opened(path), zipfile.ZipFile(path) as archive:
        for i, name in enumerate(archive.namelist()):
            arrays[name.removesuffix(".npy")] = folder / f"{i}.npy"
            with archive.open(name) as source, (folder / f"{i}.npy").open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        for file in arrays.values():
            open_memmap(file, mode="r")
    return arrays


def unpacked_size(path: Path) -> int:
    """Unpacked size in bytes; 0 if there is no such file or it is not an archive (:func:`read_arrays` reports
    that)."""
    if not path.is_file():  # Opening a pipe would block.
        return 0
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile):
        return 0


@contextmanager
def _opened(path: Path) -> Iterator[None]:
    """A context in which any problem with an .npz file becomes a one-line error."""
    if not path.is_file():
        state = "not a regular file" if path.exists() else "no such file; check the path"
        raise InvalidOption(f"{path}: {state}")
    try:
        with path.open("rb") as file:
            if file.read(len(_NPY)) == _NPY:
                raise InvalidOption(
                    f"{path}: a single array; save it as np.savez(path, input_name=array)"
                )
        if not zipfile.is_zipfile(path):  # numpy would take it for a pickle.
            raise zipfile.BadZipFile
        _check_unpacked(path)
        yield
    except Exception as error:  # zipfile, zlib, struct, tokenize and numpy raise their own.
        if isinstance(error, InvalidOption):
            raise
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise InvalidOption(
                f"{path}: contains pickled objects, which are not loaded because they can run code; "
                "save plain arrays by np.savez"
            ) from None
        if isinstance(error, MemoryError):
            raise InvalidOption(f"{path}: its arrays do not fit into memory") from None
        if isinstance(error, OSError) and error.strerror and not isinstance(error, EOFError):
            raise InvalidOption(f"{path}: cannot be read or unpacked: {error.strerror}") from None
        raise InvalidOption(f"{path}: not an .npz file, or damaged; save it by np.savez") from None


def _check_unpacked(path: Path) -> None:
    """Raises InvalidOption for a decompression bomb."""
    size = unpacked_size(path)
    if size > MAX_UNPACKED and size > MAX_RATIO * path.stat().st_size:
        raise InvalidOption(
            f"{path}: {path.stat().st_size} bytes that unpack to {size}; save it by np.savez, which does "
            "not compress"
        )


def check_arrays(
    arrays: Mapping[str, np.ndarray],
    graph: Graph,
    where: Path,
    stacked: Mapping[str, int | None] | None = None,
) -> None:
    """Checks ``arrays`` against the graph's inputs; ``stacked``: axes along which all batches are stacked.

    Raises:
        InvalidOption: a name, dtype or rank does not match; says which, and what is expected.
    """
    names = [v.name for v in graph.inputs]
    for name in arrays:
        if name not in names:
            raise InvalidOption(
                f"{where}: the model has no input {name!r}{suggest(name, names)}; "
                f"it takes {', '.join(names)}"
            )
    for value in graph.inputs:
        if value.name not in arrays:
            raise InvalidOption(f"{where}: no array for input {value.name!r}")
        array, type = arrays[value.name], value.type
        if not isinstance(type, TensorType):
            raise InvalidOption(f"{where}: input {value.name!r} is {type}, not a tensor")
        try:
            dtype = DType.of(array)
        except TypeError:
            raise InvalidOption(f"{where}: array {value.name!r} is {array.dtype}") from None
        wanted, axis = type, (stacked or {}).get(value.name)
        if axis is not None and type.dims is not None:
            own = list(type.dims)
            own[axis] = array.shape[axis]
            wanted = type.with_dims(tuple(own))
        if not wanted.accepts(TensorType(dtype, array.shape)):
            raise InvalidOption(
                f"{where}: array {value.name!r} is {TensorType(dtype, array.shape)}, "
                f"the model takes {type}"
            )
