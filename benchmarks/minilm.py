"""MiniLM against ONNX Runtime's own fp32 and quantize_dynamic: speed in rounds, fidelity, size.

Each system is a process of its own, commanded in turn: fp32, quantize_dynamic, ours, ours, fp32, …
A speedup is the median over the rounds of the ratio within a round, with its quartiles.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import op_times
from onnxruntime.quantization import quantize_dynamic

import tersor
from tersor import registry
from tersor.artifact.manifest import versions
from tersor.models.minilm import build, data, metrics
from tersor.target import Target
from tersor.tuning.measure import PAUSE, Bench, Worker

SHAPES = ((1, 32), (1, 128), (8, 128), (32, 128))
RESULTS = Path(__file__).parent / "results"
PEERS = ("ort-fp32", "ort-quantize-dynamic")


def systems(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Model file and session settings of each system."""
    original = build.export_onnx(folder / "ort-fp32.onnx")
    quantized = folder / "ort-quantize-dynamic.onnx"
    quantize_dynamic(original, quantized, per_channel=True)
    default = registry.backend("ort").Choice().to_json()
    found = {"ort-fp32": (original, default), "ort-quantize-dynamic": (quantized, default)}
    ours: dict[str, dict[str, Any]] = {
        "tersor-fp32": {"recipe": "fp32"},
        "tersor-int8": {"recipe": "int8"},
        "tersor-int8-calibrated": {"recipe": "int8", "calibration": data.calibration()},
    }
    for name, arguments in ours.items():
        artifact = tersor.compile(original, **arguments)
        print(f"{name}: {'; '.join(artifact.report.decisions)}", flush=True)
        found[name] = (artifact.save(folder / f"{name}.onnx"), artifact.choice)
    return found


def rounds(workers: dict[str, Worker], feed: int, count: int) -> dict[str, list[float]]:
    """Milliseconds of each system, a list over rounds; the order turns around every round."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    order = list(workers)
    for _ in range(count):
        for name in order:
            times[name].append(workers[name].milliseconds(feed))
            time.sleep(PAUSE)
        order.reverse()
    return times


def ratio(base: list[float], other: list[float]) -> dict[str, float]:
    """Speedup of ``other`` over ``base``: median and quartiles of the ratios within rounds."""
    low, middle, high = np.percentile(np.array(base) / np.array(other), (25, 50, 75))
    return {"median": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3)}


def speeds(workers: dict[str, Worker], count: int) -> dict[str, Any]:
    """Per shape and system: median milliseconds, and speedups over both peers."""
    found: dict[str, Any] = {}
    for feed, (batch, length) in enumerate(SHAPES):
        times = rounds(workers, feed, count)
        found[f"{batch}x{length}"] = {
            name: {
                "ms": round(float(np.median(own)), 2),
                **{f"over {peer}": ratio(times[peer], own) for peer in PEERS},
            }
            for name, own in times.items()
        }
        print(f"{batch}x{length} done", flush=True)
    return found


def fidelities(models: dict[str, tuple[Path, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Against ort-fp32, on the same files that were timed."""
    words, positive = metrics.valence_words()
    sentences, rated = data.test_feeds(), data.batches(words, 64)
    made = {}
    backend = registry.backend("ort")
    for name, (path, choice) in models.items():
        session = backend.open_session(path, choice)

        def run(feed: Any, session: Any = session) -> Any:
            return backend.run(session, feed)

        made[name] = (metrics.embed(run, sentences), metrics.embed(run, rated))
    reference, reference_words = made["ort-fp32"]
    head = metrics.valence_head(reference_words, positive)
    return {
        name: {
            **metrics.fidelity(reference, embeddings),
            "valence_accuracy": metrics.valence_accuracy(head, on_words, positive),
            "mib": models[name][0].stat().st_size / 2**20,
        }
        for name, (embeddings, on_words) in made.items()
    }


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")


def main() -> int:
    """Measures everything and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = systems(Path(folder))
        with Bench([data.full(*shape) for shape in SHAPES]) as bench:
            workers = {n: bench.start("ort", p, c) for n, (p, c) in models.items()}
            measured = speeds(workers, arguments.rounds)
        result = {
            "rounds": arguments.rounds,
            "machine": platform.machine(),
            "target": {k: str(v) for k, v in asdict(Target.host().measured()).items()},
            "versions": versions(),
            "choices": {n: c for n, (_, c) in models.items()},
            "speed": measured,
            "fidelity": fidelities(models),
        }
        arguments.out.mkdir(parents=True, exist_ok=True)
        _write(arguments.out / "minilm.json", result)
        _write(arguments.out / "profile.json", op_times.profiles(models, Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
