"""Reuse of earlier duels on this machine, for models that differ only in their weights.

    key      digest of both graphs without the values of their float weights, both choices, the shapes of the
             inputs, the processor, its cores, the versions of the runtimes, Tersor's own code
    entry    {"duel": [{"before_ms": 5.1, ...}, ...], "measured": "2026-11-30"}

Old results expire, and the oldest are dropped when there are too many. Only settings are chosen from stored
results: that the final model is not slower than the input is measured every time.
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
COUNTS = 8  # An integer input with at most this many elements may be a loop count or a length.
_FLOATS = re.compile(r"^(\s*@\S+: (?:f\d+|bf16)\[.*)$", re.MULTILINE)
_DIGEST = re.compile(r"#[0-9a-f]{16}")
Feed = Mapping[str, np.ndarray]
Side = tuple[Graph, Choice]  # A graph and the choice that it is built and run under.


@dataclass
class Known:
    """Earlier duels in one runtime, on the same inputs.

    Attributes:
        dates: of the duels that were reused.
        today: returns the date.
    """

    database: Database
    backend: Backend
    feeds: Sequence[Feed]
    today: Callable[[], datetime.date] = datetime.date.today
    dates: list[str] = field(default_factory=list)

    def get(self, best: Side, challenger: Side) -> list[Paired] | None:
        """The stored result for each feed; None if there is none, or it has expired."""
        entry = self.database.get(self._key(best, challenger)) if self._where else None
        results = _results(entry)
        if entry is None or not results or not 0 <= _age(entry, self.today()) < DAYS:
            return None
        self.dates.append(entry["measured"])
        return results

    def put(self, best: Side, challenger: Side, results: Sequence[Paired]) -> None:
        """Stores the result of a duel."""
        if not self._where:
            return
        entry = {"duel": [result.to_json() for result in results], "measured": str(self.today())}
        self.database.put(self._key(best, challenger), entry, keep=_newest)

    @property
    def remarks(self) -> list[str]:
        """For the report: which duels were reused instead of measured, and from when."""
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
        parts = [sides, [_signature(feed) for feed in self.feeds], self._where]
        return "duel " + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @functools.cached_property
    def _where(self) -> list[Any]:
        """The machine and its software; empty if the processor is unknown."""
        host = Target.host()
        if not host.cpu:
            return []
        machine = [host.cpu, host.cores, sorted(host.features), host.caches]
        return [machine, versions(), _digest_of_code(), _digest(Path(self.backend.__path__[0]))]


def _structure(graph: Graph) -> str:
    """The text of a graph without the digests of float weights, on which no time depends."""
    return _FLOATS.sub(lambda line: _DIGEST.sub("", line[0]), print_graph(graph))


def _signature(feed: Feed) -> list[Any]:
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


def _results(entry: Any) -> list[Paired]:
    """The results in an entry, which may have been edited by hand; empty if they are invalid."""
    try:
        results = [Paired.from_json(row) for row in entry["duel"]]
    except (TypeError, KeyError, ValueError, OverflowError):
        return []
    valid = all(math.isfinite(n) and n > 0 for result in results for n in astuple(result))
    return results if valid else []


def _age(entry: Any, today: datetime.date) -> int:
    """Age of an entry in days; -1 if its date is invalid."""
    try:
        return (today - datetime.date.fromisoformat(entry["measured"])).days
    except (TypeError, KeyError, ValueError):
        return -1


def _newest(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of a database without the oldest duels beyond MOST."""
    duels = {k: v for k, v in entries.items() if isinstance(v, dict) and "duel" in v}
    order = sorted(duels, key=lambda key: str(duels[key].get("measured")))
    dropped = set(order[: max(len(order) - MOST, 0)])
    return {k: v for k, v in entries.items() if k not in dropped}
