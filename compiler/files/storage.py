"""Files that survive: written aside, synced, then put in place by renaming.

Whatever happens while a result is written (an error, Ctrl-C, ``kill -9``, a full disk), what was there
before stays as it was. What a killed process leaves are folders ``.NAME.tersor-XXXXXXXX.tmp``, which
the next save into the same folder removes: their owner holds a lock on them while it lives.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

_LEFTOVER = re.compile(r"\..*\.tersor-[0-9a-f]{8}\.tmp\Z", re.DOTALL)
_LABEL = 40  # Characters of the result's name in that of its folder: names have a limit.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Stored:
    """What was written, or has to be there: hex SHA-256 and bytes of a file."""

    sha256: str
    size: int

    def to_json(self) -> dict[str, str | int]:
        """Plain data for manifests."""
        return {"sha256": self.sha256, "bytes": self.size}


class Staging:
    """A context with a folder next to the result in which its files are written; removed at its end.

    Raises:
        OSError: as the system says; the result is untouched then.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.path = folder / f".{name[:_LABEL]}.tersor-{secrets.token_hex(4)}.tmp"
        self._handle = -1

    def __enter__(self) -> Staging:
        try:
            with locked(self.folder):
                remove_leftovers(self.folder)
                self.path.mkdir()
                self._handle = os.open(self.path, os.O_RDONLY)
                _lock(self._handle, wait=True)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._handle >= 0:
            os.close(self._handle)

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> Stored:
        """Writes a file, under the permissions that the umask gives, and syncs it."""
        sha, size = hashlib.sha256(), 0
        with (self.path / name).open("xb") as file:
            for piece in pieces:
                file.write(piece)
                sha.update(piece)
                size += len(piece)
            file.flush()
            os.fsync(file.fileno())
        return Stored(sha.hexdigest(), size)

    def move(self, name: str, target: Path) -> None:
        """Puts a written file in its place; what is there is replaced, at once or not at all."""
        os.replace(self.path / name, target)
        sync(target.parent)

    def become(self, target: Path) -> bool:
        """Makes the whole folder the result; False where something is there already."""
        sync(self.path)
        try:
            os.rename(self.path, target)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            raise
        sync(target.parent)
        return True


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Keeps other processes of tersor from changing files in ``folder``; from nothing, where the file
    system knows no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, wait=True, shared=shared)
        yield
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left in ``folder``."""
    for path in folder.iterdir():
        if not _LEFTOVER.match(path.name) or path.is_symlink() or not path.is_dir():
            continue
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                if _lock(handle, wait=False):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def sync(folder: Path) -> None:
    """Makes renames in ``folder`` outlive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def open_plain(path: Path) -> BinaryIO:
    """Opens a regular file for reading. A link is not followed, and a pipe or device not waited for.

    Raises:
        OSError: it cannot be opened, or is something else; says what.
    """
    mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
        raise OSError(errno.EINVAL, kind, str(path))
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb")


def stored(path: Path) -> Stored:
    """Hash and size of a regular file, read piece by piece.

    Raises:
        OSError: as :func:`open_plain`.
    """
    sha, size = hashlib.sha256(), 0
    with open_plain(path) as file:
        while piece := file.read(_BLOCK):
            sha.update(piece)
            size += len(piece)
    return Stored(sha.hexdigest(), size)


def _lock(handle: int, *, wait: bool, shared: bool = False) -> bool:
    """Whether the lock was got; without ``wait``, False where another holds it or there are none."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
