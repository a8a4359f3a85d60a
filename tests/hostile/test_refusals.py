"""Every row of the tables is refused with its exact message, in bounded time and memory, writing nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hostile.external import EXTERNAL
from hostile.files import FILES
from hostile.functions import FUNCTIONS
from hostile.graphs import GRAPHS
from hostile.table import Refused, peak_megabytes
from hostile.tensors import TENSORS

from tersor.errors import LONGEST, TersorError
from tersor.frontends.onnx import import_model

GROUPS = {
    "files": FILES,
    "tensors": TENSORS,
    "external": EXTERNAL,
    "graphs": GRAPHS,
    "functions": FUNCTIONS,
}
ROWS = [(group, row) for group, rows in GROUPS.items() for row in rows]
# Megabytes. Python with numpy and onnx loaded takes about 60; a model in this table is at most 8.
MOST_MEMORY = 500
# What one row may take: the slowest, four million empty nodes, takes about 5 seconds on a slow machine.
MOST_SECONDS = 60


def contents(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.lstat().st_mtime_ns) for p in folder.rglob("*"))


@pytest.mark.parametrize(("group", "row"), ROWS, ids=[f"{g}: {r.name}" for g, r in ROWS])
def test_it_is_refused_in_one_line(group: str, row: Refused, tmp_path: Path) -> None:
    source = row.build(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(TersorError) as caught:
        import_model(source, allow_hf_cache=row.allow_hf_cache)
    message = row.message.format(path=source, folder=tmp_path)
    assert type(caught.value) is row.error
    assert str(caught.value) == message
    assert message.isprintable() and len(message) <= LONGEST
    assert contents(tmp_path) == before


def test_rows_are_many_and_distinct() -> None:
    assert len(ROWS) >= 200
    assert len({(g, r.name) for g, r in ROWS}) == len(ROWS)


@pytest.mark.parametrize("group", GROUPS)
def test_refusing_takes_little_memory_and_time(group: str) -> None:
    """Runs all rows of a group in a separate process, to measure its peak."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, group]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout)
    assert measured["rows"] == len(GROUPS[group])
    assert measured["megabytes"] < MOST_MEMORY
    assert measured["seconds"] < MOST_SECONDS


def main(group: str) -> None:
    slowest = 0.0
    for row in GROUPS[group]:
        with tempfile.TemporaryDirectory() as folder:
            source = row.build(Path(folder))
            start = time.perf_counter()
            try:
                import_model(source, allow_hf_cache=row.allow_hf_cache)
            except TersorError:
                slowest = max(slowest, time.perf_counter() - start)
            else:
                raise SystemExit(f"{row.name} was accepted")
    peak = peak_megabytes()
    print(json.dumps({"rows": len(GROUPS[group]), "megabytes": peak, "seconds": slowest}))


if __name__ == "__main__":
    main(sys.argv[1])
