"""A built model: the bytes of its file and, if the weights do not fit in it, a weights file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np

# Weights start at page boundaries (of 16 KiB pages too), so that a runtime can map them.
ALIGNMENT = 1 << 14
CHUNK = 16 << 20  # Bytes copied at a time, however large a weight is.


@dataclass(frozen=True, eq=False)
class Weights:
    """Arrays in one file, each at the next multiple of ``alignment``, in C order and little-endian.
    They may be memory maps and views: no array is copied as a whole.

    Attributes:
        arrays: of any numeric dtype; sub-byte elements must be packed already.
        file: an existing file with exactly this content, or None.
        alignment: in bytes.
    """

    arrays: tuple[np.ndarray, ...]
    file: Path | None = None
    alignment: int = ALIGNMENT

    @staticmethod
    def of_file(file: Path) -> Weights:
        """A weights file, memory-mapped."""
        size = file.stat().st_size
        data = np.memmap(file, np.uint8, "r", shape=(size,)) if size else np.empty(0, np.uint8)
        return Weights((data,), file)

    @property
    def offsets(self) -> list[int]:
        """Byte offset of each array."""
        starts, end = [], 0
        for array in self.arrays:
            start = -(-end // self.alignment) * self.alignment
            starts.append(start)
            end = start + array.nbytes
        return starts

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.offsets[-1] + self.arrays[-1].nbytes if self.arrays else 0

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the file."""
        sha = hashlib.sha256()
        for chunk in self.chunks():
            sha.update(chunk)
        return sha.hexdigest()

    @property
    def name(self) -> str:
        """The file name that the model refers to. It contains a hash of the content: a new model never
        reads an old model's weights, and equal weights share one file."""
        return f"weights-{self.sha256[:16]}.bin"

    def chunks(self) -> Iterator[memoryview]:
        """The bytes of the file, in pieces of at most ``CHUNK``."""
        end = 0
        for start, array in zip(self.offsets, self.arrays, strict=True):
            yield memoryview(bytes(start - end))
            yield from pieces(array)
            end = start + array.nbytes

    def place(self, folder: Path) -> None:
        """Writes the file into a folder, unless it is there already."""
        target = folder / self.name
        if target.exists():
            return
        with target.open("wb") as file:
            for chunk in self.chunks():
                file.write(chunk)

    def is_in_place(self) -> bool:
        """Whether ``file`` still exists under the name and with the size that the model expects."""
        file = self.file
        if file is None or file.name != self.name:
            return False
        return file.is_file() and file.stat().st_size == self.size


@dataclass(frozen=True, eq=False)
class Split:
    """A model in two files of one folder: ``data`` refers to ``weights`` by name."""

    data: bytes
    weights: Weights

    def place(self, folder: Path, name: str) -> Path:
        """Writes both files into a folder; returns the path of the model's file."""
        self.weights.place(folder)
        path = folder / name
        path.write_bytes(self.data)
        return path


Built: TypeAlias = bytes | Split


def built_size(model: Built) -> int:
    """Size of a model in bytes, including its weights."""
    return len(model) if isinstance(model, bytes) else len(model.data) + model.weights.size


def main_file(model: Built) -> bytes:
    """The file that the runtime opens."""
    return model if isinstance(model, bytes) else model.data


def pieces(array: np.ndarray) -> Iterator[memoryview]:
    """The array's bytes in C order. A non-contiguous array (a transposed view) is copied piece by piece."""
    if array.flags.c_contiguous:
        flat = array.reshape(-1).view(np.uint8)
        for i in range(0, flat.size, CHUNK):
            yield flat[i : i + CHUNK].data
        return
    row = array.nbytes // len(array)
    if row > CHUNK:
        for part in array:
            yield from pieces(part)
        return
    step = max(1, CHUNK // max(row, 1))
    for i in range(0, len(array), step):
        part = np.ascontiguousarray(array[i : i + step])
        yield part.reshape(-1).view(np.uint8).data
