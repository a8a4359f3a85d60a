"""A built model: the bytes of its file and, where weights are too many for one file, those beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np

# Weights begin at whole pages, so that a runtime can map them; also where pages are 16 KiB.
ALIGNMENT = 1 << 14
CHUNK = 16 << 20  # Bytes that are copied at once at most, however large a weight is.


@dataclass(frozen=True, eq=False)
class Weights:
    """Arrays one after the other in one file, each at the next multiple of ``alignment``, in C order
    and little-endian. They may be memory maps and views: nothing is copied as a whole.

    Attributes:
        arrays: of any numeric dtype; elements narrower than a byte have to be packed before.
        file: a file that holds just this already; None where there is none.
        alignment: in bytes.
    """

    arrays: tuple[np.ndarray, ...]
    file: Path | None = None
    alignment: int = ALIGNMENT

    @staticmethod
    def of_file(file: Path) -> Weights:
        """What a weights file holds, mapped."""
        size = file.stat().st_size
        held = np.memmap(file, np.uint8, "r", shape=(size,)) if size else np.empty(0, np.uint8)
        return Weights((held,), file)

    @property
    def offsets(self) -> list[int]:
        """Where each array begins, in bytes."""
        found, end = [], 0
        for array in self.arrays:
            start = -(-end // self.alignment) * self.alignment
            found.append(start)
            end = start + array.nbytes
        return found

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
        """The name under which the model's own file looks for them: it tells what they are, so a new
        model never finds the weights of an old one, and equal weights are one file."""
        return f"weights-{self.sha256[:16]}.bin"

    def chunks(self) -> Iterator[memoryview]:
        """The bytes of the file, in pieces of at most ``CHUNK``."""
        end = 0
        for start, array in zip(self.offsets, self.arrays, strict=True):
            yield memoryview(bytes(start - end))
            yield from pieces(array)
            end = start + array.nbytes

    def place(self, folder: Path) -> None:
        """Puts the file into a folder of our own, where it may be already."""
        target = folder / self.name
        if target.exists():
            return
        with target.open("wb") as file:
            for chunk in self.chunks():
                file.write(chunk)

    def is_in_place(self) -> bool:
        """Whether there is still a file of the name and size that the model looks for."""
        file = self.file
        if file is None or file.name != self.name:
            return False
        return file.is_file() and file.stat().st_size == self.size


@dataclass(frozen=True, eq=False)
class Split:
    """A model in two files: ``data`` refers to ``weights`` by their name and lies beside them."""

    data: bytes
    weights: Weights

    def place(self, folder: Path, name: str) -> Path:
        """Writes both into a folder of our own; the path of the model's file."""
        self.weights.place(folder)
        path = folder / name
        path.write_bytes(self.data)
        return path


Built: TypeAlias = bytes | Split


def built_size(model: Built) -> int:
    """Bytes of a model, its weights included."""
    return len(model) if isinstance(model, bytes) else len(model.data) + model.weights.size


def main_file(model: Built) -> bytes:
    """The file that the runtime opens."""
    return model if isinstance(model, bytes) else model.data


def pieces(array: np.ndarray) -> Iterator[memoryview]:
    """The array's bytes in C order. Of one that does not lie so (a transposed view), only a piece at a
    time is put in order."""
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
