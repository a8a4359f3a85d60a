"""MiniLM compiled by Tersor for ONNX Runtime and TVM, against other systems for CPUs: speed, fidelity, size.

Each system runs in its own process; in each round every system makes one untimed call and one timed call,
and pauses. A speedup is the median over the rounds of the ratio within a round, with its quartiles. Fidelity
is that of the outputs of the same processes. If a peer has several ways to run, the fastest at 8x128 is
determined first, in pairs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import op_times
import rows
from onnxruntime.quantization import quantize_dynamic
from peers import openvino_int8, torch_fp32
from rows import Json, in_words

import tersor
from tersor.built import Built
from tersor.driver import choosing
from tersor.errors import InvalidModel
from tersor.models.minilm import build, data, metrics
from tersor.pipeline import registry
from tersor.target import Target
from tersor.tuning import search
from tersor.tuning.measure import WORKER, Bench, Worker, compare

SHAPES = ((1, 32), (1, 128), (8, 128), (32, 128))
DECIDING = SHAPES.index((8, 128))
BASE = "ort-fp32"
PEERS = (BASE, "ort-quantize-dynamic", "torch-fp32", "openvino-nncf-int8")
OURS: dict[str, dict[str, Any]] = {
    "tersor-ort-fp32": {"recipe": "fp32", "runtime": "ort"},
    "tersor-ort-int8-calibrated": {"recipe": "int8", "runtime": "ort"},
    "tersor-tvm-fp32": {"recipe": "fp32", "runtime": "tvm", "measure": False},
    "tersor-tvm-int8": {"recipe": "int8", "runtime": "tvm", "measure": False},
    "tersor-tvm-int8-calibrated": {"recipe": "int8", "runtime": "tvm", "measure": False},
}
# Runs on any x86 of the last ten years; shows the cost of doing without newer instructions.
AVX2: dict[str, dict[str, Any]] = {
    f"{name}-avx2": {**OURS[name], "target": "cpu:avx2"}
    for name in ("tersor-tvm-fp32", "tersor-tvm-int8-calibrated")
}
PEER_PROGRAM = (str(Path(__file__).parent / "peers" / "worker.py"),)
SCRIPTS = [
    *(Path(module.__file__) for module in (op_times, openvino_int8, torch_fp32)),
    *map(Path, (__file__, *PEER_PROGRAM)),
]


@dataclass(frozen=True)
class System:
    """A measured system.

    Attributes:
        runtime: the name by which ``program`` knows it.
        model: the model to run.
        files: all files needed to run it.
        choices: ways to run it.
        decisions: those in Tersor's report.
    """

    runtime: str
    model: Built | Path
    files: list[Path]
    choices: tuple[dict[str, Any], ...]
    program: tuple[str, ...] = WORKER
    decisions: tuple[str, ...] = ()

    @property
    def mib(self) -> float:
        """The size of its files."""
        return sum(path.stat().st_size for path in self.files) / 2**20


# -- building --------------------------------------------------------------------------------------


def systems(folder: Path) -> dict[str, System]:
    """All systems; those already in ``folder`` are not built again."""
    default = registry.backend("ort").Choice().to_json()

    def exported(at: Path) -> None:
        build.export_onnx(at / "model.onnx")

    def dynamic(at: Path) -> None:
        quantize_dynamic(original, at / "model.onnx", per_channel=True)

    def openvino(at: Path) -> None:
        openvino_int8.build(original, data.calibration(), at)

    original = _once(folder / BASE, exported) / "model.onnx"
    quantized = _once(folder / PEERS[1], dynamic) / "model.onnx"
    optimized = _once(folder / PEERS[3], openvino)
    weights = build.directory()
    built = {
        BASE: System("ort", original, [original], (default,)),
        PEERS[1]: System("ort", quantized, [quantized], (default,)),
        PEERS[2]: System(
            "torch_fp32",
            weights,
            [weights / "model.safetensors", weights / "config.json"],
            torch_fp32.CHOICES,
            PEER_PROGRAM,
        ),
        PEERS[3]: System(
            "openvino_int8",
            optimized / "model.xml",
            sorted(optimized.iterdir()),
            openvino_int8.CHOICES,
            PEER_PROGRAM,
        ),
    }
    levels = AVX2 if "avx512f" in Target.host().features else {}
    for name, options in (OURS | levels).items():
        built[name] = _ours(folder / name, original, options)
    return built


def _ours(folder: Path, original: Path, options: dict[str, Any]) -> System:
    def compiled(at: Path) -> None:
        feeds = data.calibration() if "-calibrated" in folder.name else None
        tell = rows.progress(f"minilm: {folder.name}:")
        tersor.compile(original, calibration=feeds, progress=tell, **options).save(at / "artifact")

    saved = _once(folder, compiled) / "artifact"
    artifact = tersor.load(saved, trust=True)
    return System(
        artifact.runtime,
        artifact.model,
        sorted(saved.iterdir()),
        (artifact.choice,),
        decisions=tuple(map(str, artifact.report.decisions)),
    )


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """``folder``, filled atomically by ``make`` unless it exists."""
    if not folder.exists():
        print(f"minilm: building {folder.name}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as staged:
            filled = Path(staged) / folder.name
            filled.mkdir()
            make(filled)
            os.replace(filled, folder)
    return folder


# -- measuring -------------------------------------------------------------------------------------


def start(bench: Bench, name: str, system: System, choices: Json) -> Worker:
    """The worker of a system at its best choice, which is stored in ``choices``."""
    if name not in choices:
        choices[name] = _best(bench, name, system)
    choice = choices[name]["choice"]
    return bench.start(system.runtime, system.model, choice, system.program)


def _best(bench: Bench, name: str, system: System) -> Json:
    """The fastest choice at 8x128, and the measurements."""
    measured: list[Json] = []
    best: tuple[dict[str, Any], Worker] | None = None
    if len(system.choices) == 1:
        return {"choice": system.choices[0], "measured": measured}
    for choice in system.choices:
        try:
            worker = bench.start(system.runtime, system.model, choice, system.program)
        except InvalidModel as error:
            measured.append({"choice": choice, "refused": str(error)})
            continue
        if best is None:
            best = choice, worker
            continue
        result = compare(best[1], worker, DECIDING, search.SEARCH_PAIRS)
        measured.append({"before": best[0], "after": choice, **result.to_json()})
        if result.speedup > 1:
            best, worker = (choice, worker), best[1]
        worker.stop()
    if best is None:
        raise InvalidModel(f"{name} cannot be run: {measured}")
    best[1].stop()
    print(f"minilm: {name} runs best with {best[0] or 'its defaults'}", flush=True)
    return {"choice": best[0], "measured": measured}


def rounds(workers: Mapping[str, Worker], feed: int, count: int) -> dict[str, list[float]]:
    """Milliseconds of each system, a list over rounds; the order is reversed every round."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    order = list(workers)
    for _ in range(count):
        for name in order:
            times[name].append(workers[name].milliseconds(feed))
        order.reverse()
    return times


def speeds(times: Mapping[str, list[float]]) -> Json:
    """Per system: milliseconds, and speedups over each peer."""
    arrays = {name: np.array(own) for name, own in times.items()}
    return {
        name: {
            "ms": rows.quartiles(own),
            "over": {peer: rows.quartiles(arrays[peer] / own) for peer in PEERS},
        }
        for name, own in arrays.items()
    }


def measure_speeds(workers: Mapping[str, Worker], count: int, results: Json, out: Path) -> None:
    """Adds missing shapes to ``results``, and writes them one by one."""
    by_shape = results.setdefault("speed", {})
    missing = [i for i, shape in enumerate(SHAPES) if _named(shape) not in by_shape]
    took = {}
    for i in missing:  # One discarded round, to estimate the duration of the others.
        begin = time.monotonic()
        rounds(workers, i, 1)
        took[i] = (time.monotonic() - begin) * count
    for i in missing:
        left = in_words(sum(s for j, s in took.items() if j >= i))
        print(f"minilm: {_named(SHAPES[i])}, {count} rounds; all shapes take {left}", flush=True)
        by_shape[_named(SHAPES[i])] = speeds(rounds(workers, i, count))
        rows.save(out, results)


def _named(shape: tuple[int, int]) -> str:
    return "{}x{}".format(*shape)


def fidelities(workers: Mapping[str, Worker], sentences: range, words: range) -> Json:
    """Fidelity to ONNX Runtime's fp32. ``sentences`` and ``words``: the indices of their feeds."""
    _, positive = metrics.valence_words()
    embedded = {}
    for i, (name, worker) in enumerate(workers.items(), 1):
        print(f"minilm: embeddings by {name} ({i}/{len(workers)})", flush=True)
        embedded[name] = [
            np.concatenate([worker.outputs(feed)[build.OUTPUT] for feed in feeds])
            for feeds in (sentences, words)
        ]
    reference, reference_words = embedded[BASE]
    head = metrics.valence_head(reference_words, positive)
    return {
        name: {
            **metrics.fidelity(reference, embeddings),
            "valence_accuracy": metrics.valence_accuracy(head, on_words, positive),
        }
        for name, (embeddings, on_words) in embedded.items()
    }


def measure(measured: dict[str, System], count: int, results: Json, out: Path) -> None:
    """Adds missing measurements to ``results``."""
    words, _ = metrics.valence_words()
    parts: list[list[data.Feed]] = [
        [data.full(*shape) for shape in SHAPES],
        data.test_feeds(),
        data.batches(words, 64),
    ]
    _, sentences, rated = _ranges(map(len, parts))
    with Bench([feed for part in parts for feed in part]) as bench:
        choices = results.setdefault("choices", {})
        workers = {name: start(bench, name, system, choices) for name, system in measured.items()}
        rows.save(out, results)
        measure_speeds(workers, count, results, out)
        if "fidelity" not in results:
            results["fidelity"] = fidelities(workers, sentences, rated)
            rows.save(out, results)


def _ranges(lengths: Iterator[int]) -> list[range]:
    ranges, first = [], 0
    for length in lengths:
        ranges.append(range(first, first + length))
        first += length
    return ranges


def profile(measured: dict[str, System], wanted: Json, out: Path, fresh: bool) -> None:
    """Writes ONNX Runtime's time by op, unless it is stored already."""
    results = rows.load(out, wanted, fresh)
    if "systems" not in results:
        print("minilm: ONNX Runtime's own profiles", flush=True)
        in_ort = {n: (s.model, s.choices[0]) for n, s in measured.items() if s.runtime == "ort"}
        rows.save(out, {**results, **op_times.profiles(in_ort)})


def main() -> int:
    """Measures what is missing and writes JSON."""
    since = time.monotonic()
    parser = rows.parser(__doc__, "minilm.json")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--pairs", type=int, help="pairs of runs per choice; use fewer for a trial run"
    )
    arguments = parser.parse_args()
    if arguments.pairs is not None:
        choosing.FINAL_PAIRS = search.SEARCH_PAIRS = arguments.pairs
    pairs = {"final": choosing.FINAL_PAIRS, "search": search.SEARCH_PAIRS}
    options = {"rounds": arguments.rounds, "pairs": pairs}
    wanted = rows.conditions(SCRIPTS, options, openvino_int8.PACKAGES)
    out: Path = arguments.out
    results = rows.load(out, wanted, arguments.fresh)
    # Built systems do not depend on the number of rounds.
    measured = systems(rows.folder_of("minilm", {**wanted, "options": pairs}))
    results["sizes"] = {name: round(system.mib, 2) for name, system in measured.items()}
    results["decisions"] = {name: list(system.decisions) for name, system in measured.items()}
    results["rounds"] = arguments.rounds
    if "fidelity" not in results or len(results.get("speed", {})) < len(SHAPES):
        measure(measured, arguments.rounds, results, out)
    else:
        print("minilm: up to date")
    profile(measured, wanted, out.with_name("profile.json"), arguments.fresh)
    rows.finish(out, results, since)
    return 0


if __name__ == "__main__":
    sys.exit(main())
