"""Puts the results of benchmarks/ into README.md, between its markers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NAMES = {
    "ort-fp32": "ONNX Runtime, fp32",
    "ort-quantize-dynamic": "ONNX Runtime, `quantize_dynamic` per channel",
    "tersor-fp32": "**Tersor `fp32`**",
    "tersor-int8": "**Tersor `int8`**, no calibration",
    "tersor-int8-calibrated": "**Tersor `int8`**, 64 calibration sentences",
}


def minilm(result: dict[str, Any]) -> str:
    """Speed over ONNX Runtime's fp32 and its own int8, fidelity and size."""
    shapes = list(result["speed"])
    head = ["", *shapes, "mean cosine", "worst", "nn1", "valence", "MiB"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, label in NAMES.items():
        f = result["fidelity"][name]
        cells = [_speed(result["speed"][s][name]) for s in shapes]
        accuracy = [f"{f[k]:.4f}" for k in ("mean_cosine", "min_cosine")]
        more = [f"{f['nn1']:.3f}", f"{f['valence_accuracy']:.3f}", f"{f['mib']:.1f}"]
        lines.append(_row([label, *cells, *accuracy, *more]))
    return "\n".join(lines)


def profile(result: dict[str, Any]) -> str:
    """Milliseconds by kind of op, before and after."""
    columns = list(result["systems"])
    kinds = sorted(
        {k for c in columns for k in result["systems"][c]["ops"]},
        key=lambda k: -max(result["systems"][c]["ops"].get(k, 0.0) for c in columns),
    )
    lines = [_row(["ms at 8x128", *columns]), _row(["---"] * (len(columns) + 1))]
    for kind in kinds:
        times = [result["systems"][c]["ops"].get(kind) for c in columns]
        if max(t or 0.0 for t in times) >= 0.3:
            lines.append(_row([kind, *("" if t is None else f"{t:.1f}" for t in times)]))
    totals = [f"**{sum(result['systems'][c]['ops'].values()):.1f}**" for c in columns]
    lines.append(_row(["**all**", *totals]))
    return "\n".join(lines)


def _speed(cell: dict[str, Any]) -> str:
    return f"{cell['over ort-fp32']['median']:.2f}x / {cell['over ort-quantize-dynamic']['median']:.2f}x"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Rewrites README.md."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, render in (("minilm", minilm), ("profile", profile)):
        begin, end = f"<!-- {name}: generated -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        table = render(json.loads((RESULTS / f"{name}.json").read_text()))
        text = f"{head}{begin}{table}\n{end}{tail}"
    readme.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
