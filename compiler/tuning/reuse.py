"""What duels between two ways to build a model showed on this machine, for models like it.

    key    the digest of both graphs but for the numbers of their float weights, both choices, the shapes
           of the inputs, the processor, its cores, the versions of the runtimes, our own code
    held   {"duel": [{"before_ms": 5.1, ...}, ...], "measured": "2026-11-30"}

An old result is not used, as a system changes; of many the oldest go. Only settings are chosen by what is
held: that a result is not slower than the input is measured every time.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import tersor
from tersor.artifact.manifest import versions
from tersor.backend import Backend, Choice
from tersor.ir import Graph, print_graph
from tersor.target import Target
from tersor.tuning.database import Database
from tersor.tuning.measure import Paired

DAYS = 30
MOST = 500  # Duels in a database.
COUNTS = 8  # Integers in an input that may say how often, or how long, something runs.
_FLOATS = re.compile(r"^(\s*@\S+: (?:f\d+|bf16)\[.*)$", re.MULTILINE)
_DIGEST = re.compile(r"#[0-9a-f]{16}")
Feed = Mapping[str, np.ndarray]
Side = tuple[Graph, Choice]  # A graph and the choice that it is built and run by.


@dataclass
class Known:
    """Earlier duels of one runtime, on the same inputs.

    Attributes:
        dates: of those that were used.
        today: tells the date.
    """

    database: Database
    backend: Backend
    feeds: Sequence[Feed]
    today: Callable[[], datetime.date] = datetime.date.today
    dates: list[str] = field(default_factory=list)

    def get(self, best: Side, challenger: Side) -> list[Paired] | None:
        """How they compared on each feed; None where that is not known, or no longer."""
        held = self.database.get(self._key(best, challenger)) if self._where else None
        results = _results(held)
        if held is None or not results or not 0 <= _age(held, self.today()) < DAYS:
            return None
        self.dates.append(held["measured"])
        return results

    def put(self, best: Side, challenger: Side, results: Sequence[Paired]) -> None:
        """Keeps what is plain by now."""
        if not self._where:
            return
        held = {"duel": [told.to_json() for told in results], "measured": str(self.today())}
        self.database.put(self._key(best, challenger), held, keep=_newest)

    @property
    def remarks(self) -> list[str]:
        """What a reader of the report has to know: what was not measured now, and when it was."""
        if not self.dates:
            return []
        first, last = min(self.dates), max(self.dates)
        when = first if first == last else f"{first} to {last}"
        ways = "way to build it was" if len(self.dates) == 1 else "ways to build it were"
        return [
            f"{len(self.dates)} {ways} compared on {when}, on this machine, for a model that differs by "
            f"weights at most: {self.database.path}"
        ]

    def _key(self, best: Side, challenger: Side) -> str:
        sides = [
            [_structure(graph), json.dumps(choice.to_json(), sort_keys=True)]
            for graph, choice in (best, challenger)
        ]
        told = [sides, [_told(feed) for feed in self.feeds], self._where]
        return "duel " + hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    @functools.cached_property
    def _where(self) -> list[Any]:
        """The machine and what runs on it; empty where it cannot be told from others."""
        host = Target.host()
        if not host.cpu:
            return []
        machine = [host.cpu, host.cores, sorted(host.features), host.caches]
        return [machine, versions(), _digest_of_code(), _digest(Path(self.backend.__path__[0]))]


def _structure(graph: Graph) -> str:
    """The text of a graph without the numbers of float weights, on which no time depends."""
    return _FLOATS.sub(lambda line: _DIGEST.sub("", line[0]), print_graph(graph))


def _told(feed: Feed) -> list[Any]:
    return [
        [name, array.shape, array.dtype.str, array.tolist() if _counts(array) else None]
        for name, array in sorted((name, np.asarray(array)) for name, array in feed.items())
    ]


def _counts(array: np.ndarray) -> bool:
    return array.dtype.kind in "iu" and array.size <= COUNTS


@functools.cache
def _digest_of_code() -> str:
    assert tersor.__file__ is not None
    return _digest(Path(tersor.__file__).parent)


@functools.cache
def _digest(folder: Path) -> str:
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def _results(held: Any) -> list[Paired]:
    """The results in an entry, which anyone may have edited; empty where there are none."""
    try:
        found = [Paired.from_json(row) for row in held["duel"]]
    except (TypeError, KeyError, ValueError, OverflowError):
        return []
    sound = all(math.isfinite(n) and n > 0 for told in found for n in astuple(told))
    return found if sound else []


def _age(held: Any, today: datetime.date) -> int:
    """Days; -1 where an entry does not tell."""
    try:
        return (today - datetime.date.fromisoformat(held["measured"])).days
    except (TypeError, KeyError, ValueError):
        return -1


def _newest(held: dict[str, Any]) -> dict[str, Any]:
    """A database without the oldest duels, where there are more than MOST."""
    duels = {k: v for k, v in held.items() if isinstance(v, dict) and "duel" in v}
    order = sorted(duels, key=lambda key: str(duels[key].get("measured")))
    gone = set(order[: max(len(order) - MOST, 0)])
    return {k: v for k, v in held.items() if k not in gone}
