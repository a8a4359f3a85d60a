"""What ONNX Runtime computes right, it computes right after Tersor rewrote it: ONNX's own suite."""

from __future__ import annotations

from itertools import islice

import pytest
from conformance import record
from conformance.cases import KINDS, Case, load
from conformance.suite import WAYS, crash, failure, plain

RECORD = record.read()
# Enough of them that two workers end together, with few enough lines in the log.
SHARDS = [
    (kind, i, n)
    for kind in KINDS
    for n in ({"node": 16, "light": 3}.get(kind, 1),)
    for i in range(n)
]
by_shard = pytest.mark.parametrize("shard", SHARDS, ids=lambda s: f"{s[0]}-{s[1]}")


def _cases(shard: tuple[str, int, int], passing: bool) -> list[Case]:
    """Cases of a shard that the record names, or that it does not."""
    kind, i, n = shard
    named = set(RECORD["kinds"][kind]["plain"])
    return [c for c in islice(load(kind).values(), i, None, n) if (c.name in named) == passing]


def _failures(cases: list[Case], way: str) -> dict[str, str]:
    failures = {c.name: failure(c, WAYS[way] if way else plain) for c in cases}
    return {name: reason for name, reason in failures.items() if reason}


def test_the_record_is_of_the_installed_versions() -> None:
    assert RECORD["versions"] == record.versions(), record.AGAIN


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_case_has_gone(kind: str) -> None:
    entry = RECORD["kinds"][kind]
    assert len(load(kind)) == entry["cases"], record.AGAIN
    assert [name for name in entry["plain"] if name not in load(kind)] == [], record.AGAIN


def test_the_table_in_the_readme_is_that_of_the_record() -> None:
    assert record.README.read_text() == record.readme(RECORD), record.AGAIN


def test_every_case_that_is_recorded_is_run() -> None:
    for kind in KINDS:
        shards = [
            set(range(i, RECORD["kinds"][kind]["cases"], n)) for k, i, n in SHARDS if k == kind
        ]
        assert set().union(*shards) == set(range(RECORD["kinds"][kind]["cases"]))


@pytest.mark.slow
@pytest.mark.sample(4)
@by_shard
def test_onnxruntime_passes_what_is_recorded(shard: tuple[str, int, int]) -> None:
    assert _failures(_cases(shard, passing=True), "") == {}, record.AGAIN


@pytest.mark.slow
@by_shard
@pytest.mark.parametrize(
    "way", [pytest.param(w, marks=[] if w == "compiled" else pytest.mark.sample(4)) for w in WAYS]
)
def test_what_onnxruntime_passes_passes_after_the_round_trip(
    way: str, shard: tuple[str, int, int]
) -> None:
    assert _failures(_cases(shard, passing=True), way) == {}


@pytest.mark.slow
@by_shard
def test_what_onnxruntime_does_not_pass_converts_or_is_refused_in_one_line(
    shard: tuple[str, int, int],
) -> None:
    crashes = {c.name: crash(c) for c in _cases(shard, passing=False)}
    assert {name: reason for name, reason in crashes.items() if reason} == {}
