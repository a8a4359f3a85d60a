"""What was measured once on a machine, kept for the next time: a JSON file that maps keys to plain data.

A key names all that a result depends on, so nothing in the file ever gets wrong, only unused. Every
result is written as it comes: whoever is interrupted goes on where they were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tersor.errors import InvalidOption
from tersor.files.storage import Staging, locked

Held = dict[str, Any]


def default_path() -> Path:
    """``$XDG_CACHE_HOME/tersor/tuning.json``, by default in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "tersor" / "tuning.json"


class Database:
    """Results by key.

    Attributes:
        path: of the file, which need not be there.
        problem: why the last result is known to this object only; empty where the file has it.

    Raises:
        InvalidOption: the file is there, and is no database.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = default_path() if path is None else Path(path)
        self.problem = ""
        self._held = self._read()

    def get(self, key: str) -> Any:
        """The result of a key; None where there is none."""
        return self._held.get(key)

    def put(self, key: str, result: Any, keep: Callable[[Held], Held] = lambda held: held) -> None:
        """Adds a result to the file; what others added meanwhile stays.

        Args:
            keep: what of all results is to stay in the file.

        Raises:
            InvalidOption: another file took its place meanwhile, which is no database.
        """
        self._held[key] = result
        folder = self.path.absolute().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The lock is held from reading to replacing: nobody else's result falls in between.
            with Staging(folder, self.path.name) as staging, locked(folder):
                self._held = keep({**self._held, **self._read(), key: result})
                text = json.dumps(self._held, indent=1, sort_keys=True)
                staging.write("database", [text.encode()])
                staging.move("database", self.path)
            self.problem = ""
        except OSError as error:
            self.problem = f"{self.path} cannot be written: {error.strerror}"

    def _read(self) -> Held:
        try:
            held = json.loads(self.path.read_bytes())
        except IsADirectoryError:
            held = None
        except OSError:
            return {}
        except (ValueError, RecursionError):
            held = None
        if not isinstance(held, dict):
            raise InvalidOption(f"{self.path} is no tuning database: remove it, or name another")
        return held
