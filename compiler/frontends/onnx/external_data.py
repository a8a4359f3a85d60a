"""Reading of external data: files that a model names as the storage of its tensors.

A model is untrusted, so a name must not give access to any other file: it may not leave the model's folder,
nor name a link, pipe or device. The checks are made on the descriptor that is then read, and folders are
opened relative to each other, so that nothing can be replaced between the check and the use.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import StringStringEntryProto

from tersor.errors import InvalidModel

KEYS = ("location", "offset", "length", "checksum")
MIN_MAPPED = 1 << 16  # Bytes; smaller files are read, because each mapping keeps a descriptor open.
_LARGEST = 2**63 - 1
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


@dataclass(frozen=True)
class Part:
    """A range of an external file; ``data`` is the whole file, ``length`` None if the model omits it."""

    data: np.ndarray
    offset: int
    length: int | None


@dataclass
class Files:
    """The external files of a model.

    Attributes:
        folder: the folder that contains them.
        model: (device, inode) of the model file, which may not be its own data.
        hf_cache: whether to follow the symbolic links of the Hugging Face cache.
    """

    folder: Path
    model: tuple[int, int]
    hf_cache: bool = False
    _data: dict[str, np.ndarray] = field(default_factory=dict)
    _checksums: dict[str, str] = field(default_factory=dict)

    def part(self, entries: Iterable[StringStringEntryProto], where: str) -> Part:
        """The file range that a tensor's ``external_data`` entries name. ``where`` begins messages.

        Raises:
            InvalidModel: an unknown key, an invalid number, or a file that may not be read.
        """
        checked = _checked_entries(entries, where)
        location = checked.get("location", "")
        if location not in self._data:
            self._data[location] = self._read(location, where)
        data = self._data[location]
        if "checksum" in checked:
            self._verify(location, data, checked["checksum"], where)
        length = _integer(checked["length"], where) if "length" in checked else None
        return Part(data, _integer(checked.get("offset", "0"), where), length)

    def path(self, location: str) -> Path:
        """The resolved path of an external file.

        Raises:
            InvalidModel: it may not be read.
        """
        self._read(location, f"external data {location[:100]!r}")
        return (self.folder / location).resolve()

    def _verify(self, location: str, data: np.ndarray, checksum: str, where: str) -> None:
        if location not in self._checksums:
            self._checksums[location] = hashlib.sha1(data.data, usedforsecurity=False).hexdigest()
        if self._checksums[location] != checksum.lower():
            raise InvalidModel(f"{where}: its SHA-1 does not match the checksum in the model")

    def _read(self, location: str, where: str) -> np.ndarray:
        """The bytes of a file, memory-mapped if it is large."""
        names = _path_components(location, where)
        try:
            descriptor = _open_inside(self.folder, names)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
                raise _unreadable(error, self.folder, where) from None
            descriptor = self._open_cached(names, where)
        try:
            status = os.fstat(descriptor)
            self._check_kind(status, where)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                if status.st_size < MIN_MAPPED:
                    return np.frombuffer(file.read(), np.uint8)
                return np.memmap(file, np.uint8, "r")
        except OSError as error:
            raise _unreadable(error, self.folder, where) from None
        finally:
            os.close(descriptor)

    def _open_cached(self, names: list[str], where: str) -> int:
        """A descriptor of the blob that a link of the Hugging Face cache points to."""
        path = self.folder.joinpath(*names)
        blob = cached_blob(path)
        if blob is None or path.parent.resolve() != self.folder.resolve().joinpath(*names[:-1]):
            raise InvalidModel(
                f"{where} is a symbolic link, or in a linked folder: replace it with the file"
            )
        if not self.hf_cache:
            raise InvalidModel(
                f"{where} is a link of the Hugging Face cache: allow them with --allow-hf-cache "
                "(allow_hf_cache=True)"
            )
        try:
            return os.open(blob, _FLAGS)
        except OSError as error:
            raise _unreadable(error, blob.parent, where) from None

    def _check_kind(self, status: os.stat_result, where: str) -> None:
        for test, kind in _KINDS.items():
            if test(status.st_mode):
                raise InvalidModel(f"{where} is {kind}, not a regular file")
        if (status.st_dev, status.st_ino) == self.model:
            raise InvalidModel(f"{where} is the model file itself")
        if status.st_nlink > 1:
            raise InvalidModel(f"{where} has another hard link: replace it with a copy of the file")


def cached_blob(link: Path) -> Path | None:
    """The target of a link of the Hugging Face cache,
    ``models--org--name/snapshots/revision/file`` -> ``models--org--name/blobs/hash``; None for others."""
    try:
        target = Path(os.readlink(link))
        folder = link.parent.resolve(strict=True)
        blobs = (folder / target.parent).resolve(strict=True)
    except (OSError, ValueError):
        return None
    repository = blobs.parent
    snapshots = repository / "snapshots"
    inside = folder != snapshots and folder.is_relative_to(snapshots)
    kinds = ("models--", "datasets--", "spaces--")
    if blobs.name != "blobs" or not repository.name.startswith(kinds) or not inside:
        return None
    return blobs / target.name


def _checked_entries(entries: Iterable[StringStringEntryProto], where: str) -> dict[str, str]:
    checked: dict[str, str] = {}
    for entry in entries:
        if entry.key not in KEYS:
            raise InvalidModel(
                f"{where} has the unknown key {entry.key!r} (known: {', '.join(KEYS)})"
            )
        if entry.key in checked:
            raise InvalidModel(f"{where} has the key {entry.key!r} twice")
        checked[entry.key] = entry.value
    return checked


def _integer(text: str, where: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(text) <= _LARGEST):
        raise InvalidModel(f"{where}: offset and length must be integers, not {text[:40]!r}")
    return int(text)


def _path_components(location: str, where: str) -> list[str]:
    """The components of a path relative to the model's folder.

    Raises:
        InvalidModel: it is empty, absolute on any operating system, or contains "..".
    """
    if "\0" in location:
        raise InvalidModel(f"{where} has a null byte in its name")
    drive = len(location) > 1 and location[1] == ":"
    names = [name for name in location.split("/") if name not in ("", ".")]
    if location.startswith("/") or "\\" in location or drive or ".." in names or not names:
        raise InvalidModel(f"{where} must be a relative path inside the model's folder")
    return names


def _open_inside(folder: Path, names: list[str]) -> int:
    """A descriptor of a file, following no links. Raises OSError."""
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names[:-1]:
            inner = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=parent)
            os.close(parent)
            parent = inner
        return os.open(names[-1], _FLAGS, dir_fd=parent)
    finally:
        os.close(parent)


def _unreadable(error: OSError, folder: Path, where: str) -> InvalidModel:
    if error.errno == errno.ENOENT:
        return InvalidModel(f"{where}: no such file; it must be in {folder}")
    if error.errno == errno.ENXIO:  # Raised for sockets.
        return InvalidModel(f"{where} is a socket, not a regular file")
    return InvalidModel(f"{where}: {error.strerror}")
