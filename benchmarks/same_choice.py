"""Reproducibility of choices: compiles one model several times without reuse; prints choices, wall and CPU
time.

``python same_choice.py [MODEL.onnx] [--times N] [--recipe R] [--runtime R]``; without a model, a small tagger
(bidirectional LSTM, untrained) of about 2 ms.
"""

from __future__ import annotations

import argparse
import collections
import os
import tempfile
import time
from pathlib import Path

import tersor
from tersor.models.bilstm_tagger import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--runtime", default="ort")
    arguments = parser.parse_args()
    choices: collections.Counter[str] = collections.Counter()
    for i in range(arguments.times):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = arguments.model or build.export_onnx(folder / "tagger.onnx", build.module())
            start, before = time.perf_counter(), os.times()
            artifact = tersor.compile(
                model,
                recipe=arguments.recipe,
                runtime=arguments.runtime,
                database=folder / "fresh.json",
            )
            wall, after = time.perf_counter() - start, os.times()
        cpu = sum(after[:4]) - sum(before[:4])
        chosen = f"kept {artifact.report.kept}"
        choices[chosen] += 1
        speeds = " ".join(f"{timing.speedup:.2f}x" for _, timing in artifact.report.against_input)
        print(f"{i + 1}: {wall:.1f} s, {cpu:.1f} s of CPU, {chosen} ({speeds})", flush=True)
    for chosen, count in choices.most_common():
        print(f"{count} of {arguments.times}: {chosen}")


if __name__ == "__main__":
    main()
