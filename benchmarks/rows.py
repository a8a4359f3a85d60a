"""Stored results: valid until Tersor's sources, the versions of its dependencies, the machine, the script or
its options change."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tersor.artifact.manifest import versions
from tersor.target import Target, usable_cores

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"  # A folder for each level of processors.
# Names of the folders, the best level first.
LEVELS = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "neon_dotprod")
BUILD = ROOT / "build" / "bench"  # Built systems, kept until their sources change.
FOLDERS = ("compiler", "passes", "backends", "models")
Json = dict[str, Any]
Tell = Callable[[int, int, str], None]


def code(scripts: Iterable[Path], folders: Iterable[str] = FOLDERS) -> str:
    """A digest of all sources and recipes that a row depends on."""
    digest = hashlib.sha256()
    for path in sorted(scripts):
        digest.update(path.read_bytes())
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".toml"):
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def conditions(
    scripts: Iterable[Path],
    options: Json,
    packages: Iterable[str] = (),
    folders: Iterable[str] = FOLDERS,
) -> Json:
    """The conditions that rows of one table must share. ``packages``: further ones than Tersor's
    dependencies; ``folders``: Tersor's sources that the rows depend on."""
    host = Target.host()
    machine = {"cpu": host.cpu, "features": sorted(host.features), "cores": len(usable_cores())}
    more = {name: importlib.metadata.version(name) for name in packages}
    return {
        "code": code(scripts, folders),
        "versions": {**versions(), **more},
        "machine": machine,
        "options": options,
    }


def load(path: Path, wanted: Json, fresh: bool) -> Json:
    """The stored results if they were measured under the ``wanted`` conditions; otherwise none."""
    if path.exists() and not fresh:
        stored: Json = json.loads(path.read_text())
        if stored.get("conditions") == json.loads(json.dumps(wanted)):
            return stored
        print(
            "sources, versions or machine differ from those of the stored rows: measuring all again"
        )
    return {"conditions": wanted}


def save(path: Path, results: Json) -> None:
    """Writes ``path`` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".partial")
    staged.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    os.replace(staged, path)


def finish(path: Path, results: Json, since: float) -> None:
    """Writes complete results, with the machine's measured rates and the seconds since ``since``, added to
    those of earlier runs whose results were kept."""
    results["target"] = {k: str(v) for k, v in asdict(Target.host().measured()).items()}
    results["seconds"] = round(results.get("seconds", 0.0) + time.monotonic() - since)
    save(path, results)
    print(f"written: {path}", flush=True)


def folder_of(name: str, wanted: Json) -> Path:
    """The folder for systems built under the ``wanted`` conditions; folders for other conditions are
    deleted."""
    text = json.dumps(wanted, sort_keys=True).encode()
    folder = BUILD / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}"
    for other in BUILD.glob(f"{name}-*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def quartiles(values: Iterable[float], digits: int = 3) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(np.fromiter(values, float), (25, 50, 75))
    rounded = [round(float(v), digits) for v in (middle, low, high)]
    return dict(zip(("median", "q1", "q3"), rounded, strict=True))


def in_words(seconds: float) -> str:
    """``50 s``, ``12 min``."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def progress(prefix: str, every: float = 5.0) -> Tell:
    """Prints progress at most once in ``every`` seconds."""
    last = -math.inf

    def tell(done: int, total: int, what: str) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            print(f"{prefix} {what} ({done}/{total})", flush=True)

    return tell


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """A parser with the options that all scripts have: ``--fresh`` and ``--out``."""
    common = argparse.ArgumentParser(description=description)
    common.add_argument("--fresh", action="store_true", help="measure again what is stored already")
    common.add_argument("--out", type=Path, default=here() / out)
    return common


def best_level(features: Collection[str]) -> str:
    """The level, and folder of results, of a processor with these features."""
    return next((level for level in LEVELS if level in features), "none")


def here() -> Path:
    """The folder of this machine's results."""
    return RESULTS / best_level(Target.host().features)
