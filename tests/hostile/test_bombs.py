"""Small models with large values are converted without computing the values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile.bombs import BOMBS
from hostile.table import peak_megabytes

import tersor
from tersor.artifact import Artifact
from tersor.frontends.onnx import import_model

# What the lossless passes may add, however often they run: FoldConstants' budget, and a copy of each
# constant (of 4 MB at most, here); and the model itself.
MOST_WRITTEN = 28 << 20
MOST_MEMORY = 1000  # megabytes


def convert(name: str) -> Artifact:
    return tersor.convert(BOMBS[name]().SerializeToString())


@pytest.mark.parametrize("name", BOMBS)
def test_it_stays_small(name: str, tmp_path: Path) -> None:
    path = convert(name).save(tmp_path / "out.onnx")
    assert path.stat().st_size < MOST_WRITTEN
    assert len(import_model(path).outputs) >= 1


def test_all_of_them_take_little_memory() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["megabytes"] < MOST_MEMORY


if __name__ == "__main__":
    for bomb in BOMBS:
        convert(bomb)
    print(json.dumps({"megabytes": peak_megabytes()}))
