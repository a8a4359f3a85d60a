"""Results of measurements on this machine, for later compilations: a JSON file that maps keys to plain data.

A key names everything a result depends on, so entries never become wrong, only unused. Each result is
written at once, so an interrupted run resumes where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tersor.errors import InvalidOption
from tersor.files.storage import Staging, locked

Entries = dict[str, Any]


def default_path() -> Path:
    """``$XDG_CACHE_HOME/tersor/tuning.json``, by default in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "tersor" / "tuning.json"


class Database:
    """Results by key.

    Attributes:
        path: of the file, which need not exist.
        problem: why the last result could not be written to the file; empty if it was.

    Raises:
        InvalidOption: the file exists, and is not a database.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = default_path() if path is None else Path(path)
        self.problem = ""
        self._entries = self._read()

    def get(self, key: str) -> Any:
        """The result of a key, or None."""
        return self._entries.get(key)

    def put(
        self, key: str, result: Any, keep: Callable[[Entries], Entries] = lambda all: all
    ) -> None:
        """Adds a result to the file; results that other processes added meanwhile stay.

        Args:
            keep: selects the entries to keep in the file.

        Raises:
            InvalidOption: the file was replaced meanwhile by one that is not a database.
        """
        self._entries[key] = result
        folder = self.path.absolute().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Locked from reading to replacing, so that no other process's result is lost.
            with Staging(folder, self.path.name) as staging, locked(folder):
                self._entries = keep({**self._entries, **self._read(), key: result})
                text = json.dumps(self._entries, indent=1, sort_keys=True)
                staging.write("database", [text.encode()])
                staging.move("database", self.path)
            self.problem = ""
        except OSError as error:
            self.problem = f"{self.path} cannot be written: {error.strerror}"

    def _read(self) -> Entries:
        try:
            entries = json.loads(self.path.read_bytes())
        except (IsADirectoryError, ValueError, RecursionError):
            entries = None
        except OSError:
            return {}
        if not isinstance(entries, dict):
            raise InvalidOption(f"{self.path} is not a tuning database: remove it, or name another")
        return entries
