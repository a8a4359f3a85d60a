"""MiniLM's time at 8x128 by op, before and after compilation, from ONNX Runtime's profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import onnxruntime as ort

from tersor.models.minilm import data

RUNS = 30
SHAPE = (8, 128)
# Multiply-adds with the layers' weights, per token.
WEIGHT_MACS = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
INTEGER = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")


def profile(model: Any, choice: dict[str, Any], folder: Path) -> dict[str, float]:
    """Milliseconds per run of a file, or its bytes, by op type; the first runs are left out."""
    settings = ort.SessionOptions()
    settings.enable_profiling = True
    settings.profile_file_prefix = str(folder / "profile")
    disabled = list(choice["session"]["disabled_optimizers"]) or None
    session = ort.InferenceSession(
        model, settings, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )
    feed = data.full(*SHAPE)
    for _ in range(RUNS + 3):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e["name"].endswith("_kernel_time")]
    per_run = len(kernels) // (RUNS + 3)
    spent: defaultdict[str, float] = defaultdict(float)
    for event in kernels[3 * per_run :]:
        spent[event["args"]["op_name"]] += event["dur"] / 1000 / RUNS
    return {k: round(v, 3) for k, v in sorted(spent.items(), key=lambda i: -i[1])}


def profiles(models: dict[str, tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    """Op times of each system, and the rate of its int8 products in 10^9 operations per second."""
    systems: dict[str, Any] = {}
    for name, (model, choice) in models.items():
        with tempfile.TemporaryDirectory() as folder:
            ops = profile(model, choice, Path(folder))
        systems[name] = {"ops": ops}
        if integer := sum(ops.get(k, 0.0) for k in INTEGER):
            operations = 2 * WEIGHT_MACS * SHAPE[0] * SHAPE[1]
            systems[name]["int8_gops"] = round(operations / integer / 1e6, 1)
    return {"shape": SHAPE, "runs": RUNS, "systems": systems}
