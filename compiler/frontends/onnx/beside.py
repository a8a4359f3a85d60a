"""External data: files beside a model, named by it. A model is anyone's text, so a name may not reach
what its giver could not read: no way out of the folder, no link, no pipe, no device.

Everything is checked on the descriptor that is then read from, so that nothing can be exchanged
between the check and the use; folders on the way are opened one in another for the same reason.
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
_LARGEST = 2**63 - 1
_MAPPED = 1 << 16  # Bytes; smaller files are read, for each map keeps a descriptor open.
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
    """A part of an external file, whose bytes are all in ``data`` (a map of them)."""

    data: np.ndarray
    offset: int
    length: int | None


@dataclass
class Files:
    """The files beside one model.

    Attributes:
        folder: where they lie.
        model: (device, inode) of the model file, which is no data of its own.
        hf_cache: whether links as the Hugging Face cache has them are followed.
    """

    folder: Path
    model: tuple[int, int]
    hf_cache: bool = False
    _data: dict[str, np.ndarray] = field(default_factory=dict)
    _summed: dict[str, str] = field(default_factory=dict)

    def part(self, entries: Iterable[StringStringEntryProto], where: str) -> Part:
        """The part of a file that a tensor's ``entries`` name.

        Raises:
            InvalidModel: a key that is none, numbers that are none, or a file that may not be read.
        """
        held = _checked_entries(entries, where)
        location = held.get("location", "")
        if location not in self._data:
            self._data[location] = self._opened(location, where)
        data = self._data[location]
        if "checksum" in held:
            self._check_sum(location, data, held["checksum"], where)
        length = _integer(held["length"], where) if "length" in held else None
        return Part(data, _integer(held.get("offset", "0"), where), length)

    def path(self, location: str) -> Path:
        """Where a file beside the model lies, links followed.

        Raises:
            InvalidModel: it may not be read.
        """
        self._opened(location, f"external data {location[:100]!r}")
        return (self.folder / location).resolve()

    def _check_sum(self, location: str, data: np.ndarray, wanted: str, where: str) -> None:
        if location not in self._summed:
            self._summed[location] = hashlib.sha1(data.data, usedforsecurity=False).hexdigest()
        if self._summed[location] != wanted.lower():
            raise InvalidModel(f"{where}: its SHA-1 is not the checksum that the model names")

    def _opened(self, location: str, where: str) -> np.ndarray:
        parts = _parts(location, where)
        try:
            descriptor = _open_below(self.folder, parts)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
                raise _unreadable(error, self.folder, where) from None
            descriptor = self._through_link(parts, where)
        try:
            found = os.fstat(descriptor)
            self._check_kind(found, where)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                if found.st_size < _MAPPED:
                    return np.frombuffer(file.read(), np.uint8)
                return np.memmap(file, np.uint8, "r")
        except OSError as error:
            raise _unreadable(error, self.folder, where) from None
        finally:
            os.close(descriptor)

    def _through_link(self, parts: list[str], where: str) -> int:
        """The blob behind a link of the Hugging Face cache."""
        path = self.folder.joinpath(*parts)
        blob = cached_blob(path)
        if blob is None or path.parent.resolve() != self.folder.resolve().joinpath(*parts[:-1]):
            raise InvalidModel(f"{where} is a link, or behind one: put the file itself there")
        if not self.hf_cache:
            raise InvalidModel(
                f"{where} is a link of the Hugging Face cache: allow those by --allow-hf-cache "
                "(allow_hf_cache=True)"
            )
        try:
            return os.open(blob, _FLAGS)
        except OSError as error:
            raise _unreadable(error, blob.parent, where) from None

    def _check_kind(self, found: os.stat_result, where: str) -> None:
        for test, kind in _KINDS.items():
            if test(found.st_mode):
                raise InvalidModel(f"{where} is {kind}, not a regular file")
        if (found.st_dev, found.st_ino) == self.model:
            raise InvalidModel(f"{where} is the model file itself")
        if found.st_nlink > 1:
            raise InvalidModel(
                f"{where} is a hard link, with another name elsewhere: put a copy of the file there"
            )


def cached_blob(link: Path) -> Path | None:
    """What ``link`` points to where it is one of a Hugging Face cache:
    ``models--org--name/snapshots/revision/file`` -> ``models--org--name/blobs/hash``. Else None."""
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
    held: dict[str, str] = {}
    for entry in entries:
        if entry.key not in KEYS:
            raise InvalidModel(f"{where} has the key {entry.key!r}; there are {', '.join(KEYS)}")
        if entry.key in held:
            raise InvalidModel(f"{where} has the key {entry.key!r} twice")
        held[entry.key] = entry.value
    return held


def _integer(text: str, where: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(text) <= _LARGEST):
        raise InvalidModel(f"{where}: offset and length must be integers, not {text[:40]!r}")
    return int(text)


def _parts(location: str, where: str) -> list[str]:
    """The names on the way from the model's folder.

    Raises:
        InvalidModel: the way is absolute on some system, leads up, or is none.
    """
    if "\0" in location:
        raise InvalidModel(f"{where} has a null byte in its name")
    drive = len(location) > 1 and location[1] == ":"
    parts = [p for p in location.split("/") if p not in ("", ".")]
    if location.startswith("/") or "\\" in location or drive or ".." in parts or not parts:
        raise InvalidModel(f"{where} must lie in the model's folder, as a relative path")
    return parts


def _open_below(folder: Path, parts: list[str]) -> int:
    """A descriptor of the file, no link on the way. Raises OSError."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(parts[-1], _FLAGS, dir_fd=at)
    finally:
        os.close(at)


def _unreadable(error: OSError, folder: Path, where: str) -> InvalidModel:
    if error.errno == errno.ENOENT:
        return InvalidModel(f"{where}: no such file beside the model; it belongs in {folder}")
    if error.errno == errno.ENXIO:  # as a socket answers
        return InvalidModel(f"{where} is a socket, not a regular file")
    return InvalidModel(f"{where}: {error.strerror}")
