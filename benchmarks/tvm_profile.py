"""Time by kernel of MiniLM at 8x128 in a TVM library, and the whole model's share of the machine's int8 peak:
built for this machine and, if it has AMX, for VNNI too.

Kernels are timed by TVM's own instrument around each call; the whole model is timed without it.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import peaks
import rows
import tvm
from tvm import relax

import tersor
from tersor.artifact import Artifact
from tersor.backends.tvm.library import code, describe
from tersor.backends.tvm.link import load
from tersor.backends.tvm.module import MAIN
from tersor.backends.tvm.session import aligned, parameters
from tersor.built import Split
from tersor.models.minilm import build, data
from tersor.target import request_amx, usable_cores

BATCH, LENGTH = 8, 128
LAYERS, HIDDEN, WIDE = 6, 384, 1536
# Multiplications and additions: weights once per token, scores and their product with values.
OPERATIONS = (
    2 * BATCH * LENGTH * LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * WIDE + 2 * LENGTH * HIDDEN)
)
SCRIPTS = [Path(__file__), Path(peaks.__file__)]
_PRODUCT = re.compile(r"linear\d+_int8_(\d+)_(\d+)")


class Profiled:
    """A library in a VM whose calls can be instrumented, with the arguments of one feed."""

    def __init__(self, artifact: Artifact, feed: data.Feed, folder: Path) -> None:
        assert isinstance(artifact.model, Split)
        path = folder / "model.so"
        path.write_bytes(code(artifact.model.data))
        description = describe(artifact.model.data)
        self._machine = relax.VirtualMachine(load(path, len(usable_cores())), tvm.cpu())
        self._arguments = [tvm.runtime.tensor(feed[name]) for name, _ in description.inputs]
        stored = np.frombuffer(b"".join(artifact.model.weights.chunks()), np.uint8)
        self._weights = aligned(stored.shape, stored.dtype)  # Tensors are views of it.
        self._weights[...] = stored
        every = parameters(self._weights, description.parameters)
        self._arguments += [every[place] for place in description.functions[0].parameters]
        self.spent: defaultdict[str, list[float]] = defaultdict(list)  # Milliseconds per call.
        self._began = 0.0

    def run(self) -> float:
        """Milliseconds of one run."""
        begin = time.perf_counter()
        self._machine[MAIN](*self._arguments)
        return (time.perf_counter() - begin) * 1e3

    def watch(self) -> None:
        """Starts to time calls one by one."""
        self._machine.set_instrument(self._seen)

    def _seen(self, function: Any, name: str, before: bool, result: Any, *operands: Any) -> int:
        if before:
            self._began = time.perf_counter()
        else:
            self.spent[name].append((time.perf_counter() - self._began) * 1e3)
        return 0


def measure(original: Path, count: int) -> dict[str, Any]:
    """``count`` runs of each library, interleaved with the others and the peaks; then as many with timers."""
    cores = len(usable_cores())
    request_amx()
    tell = rows.progress("tvm_profile:")
    feed, available = data.full(BATCH, LENGTH), list(peaks.levels())
    levels = available[: 2 if "amx_int8" in available else 1]
    machine = peaks.Peaks(cores)
    with tempfile.TemporaryDirectory() as folder:
        profiled = {}
        for level in levels:
            tell(0, 1, f"building for {level}")
            artifact = tersor.compile(
                original, f"cpu:{level}", "int8", runtime="tvm", measure=False
            )
            at = Path(folder) / level
            at.mkdir()
            profiled[level] = Profiled(artifact, feed, at)
        whole = {level: [0.0] * 0 for level in levels}
        for i in range(count):
            tell(i, count, "timing the whole")
            machine.measure()
            for level, library in profiled.items():
                library.run()
                whole[level].append(library.run())
        for i, library in enumerate(profiled.values()):
            tell(i, len(profiled), "timing the kernels")
            library.watch()
            for _ in range(count):
                library.run()
    return {
        "shape": [BATCH, LENGTH],
        "runs": count,
        "threads": cores,
        "gop": round(OPERATIONS / 1e9, 1),
        "peaks": machine.to_json(),
        "levels": {
            level: _summary(whole[level], profiled[level].spent, machine.of(f"int8 {level}"), count)
            for level in levels
        },
    }


def _summary(whole: list[float], spent: dict[str, list[float]], peak: float, runs: int) -> Any:
    ms = rows.quartiles(whole)
    rate = OPERATIONS / ms["median"] / 1e6
    kernels = [_kernel(name, times, peak, runs) for name, times in spent.items()]
    return {
        "ms": ms,
        "rate": round(rate, 1),
        "share": round(rate / peak, 3),
        "kernels": sorted(kernels, key=lambda row: -row["ms"]),
    }


def _kernel(name: str, times: list[float], peak: float, runs: int) -> dict[str, Any]:
    """A kernel's calls in one run: their number, total time and, for products, rate."""
    calls = len(times) // runs
    each_run = np.array(times).reshape(runs, calls).sum(1)
    row = {"kernel": name, "calls": calls, "ms": round(float(np.median(each_run)), 3)}
    if match := _PRODUCT.match(name):
        k, n = map(int, match.groups())
        rate = 2 * BATCH * LENGTH * k * n * calls / row["ms"] / 1e6
        row |= {"rate": round(rate, 1), "share": round(rate / peak, 3)}
    return row


def main() -> int:
    """Measures, unless the stored results are up to date."""
    start = time.monotonic()
    parser = rows.parser(__doc__, "tvm_profile.json")
    parser.add_argument("--runs", type=int, default=40)
    arguments = parser.parse_args()
    wanted = rows.conditions(SCRIPTS, {"runs": arguments.runs})
    results = rows.load(arguments.out, wanted, arguments.fresh)
    if "levels" in results:
        print("tvm_profile: up to date")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        original = build.export_onnx(Path(folder) / "minilm.onnx")
        results.update(measure(original, arguments.runs))
    rows.finish(arguments.out, results, start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
