"""What was measured once on a machine, kept for the next time: a JSON file that maps keys to plain data.

A key names all that a result depends on, so nothing in the file ever gets wrong, only unused. Every
result is written as it comes: whoever is interrupted goes on where they were.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tersor.errors import InvalidOption


def default_path() -> Path:
    """``$XDG_CACHE_HOME/tersor/tuning.json``, by default in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "tersor" / "tuning.json"


class Database:
    """Results by key.

    Raises:
        InvalidOption: the file is there, and is no database.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self._held = self._read()

    def get(self, key: str) -> Any:
        """The result of a key; None where there is none."""
        return self._held.get(key)

    def put(self, key: str, result: Any) -> None:
        """Adds a result to the file; what others added meanwhile stays. Where the file cannot be
        written, the result is known to this object only."""
        self._held = {**self._read(), **self._held, key: result}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self.path.parent, prefix="tuning-", delete=False
            ) as file:
                json.dump(self._held, file, indent=1, sort_keys=True)
            os.replace(file.name, self.path)
        except OSError:
            return

    def _read(self) -> dict[str, Any]:
        try:
            held = json.loads(self.path.read_text())
        except OSError:
            return {}
        except ValueError:
            held = None
        if not isinstance(held, dict):
            raise InvalidOption(f"{self.path} is no tuning database: remove it, or name another")
        return held
