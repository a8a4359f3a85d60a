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


def zoo(result: dict[str, Any]) -> str:
    """Each workload with each recipe: speed over its own ONNX file, size, fidelity and metric."""
    head = ["workload", "recipe", "kept", "speed over the input", "KiB", "mean cosine", "metric"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, workload in sorted(result["workloads"].items()):
        for recipe, row in sorted(workload["recipes"].items()):
            sizes = f"{workload['bytes_input'] / 1024:.0f} → {row['bytes'] / 1024:.0f}"
            cosine = row["fidelity"].get("mean_cosine")
            lines.append(
                _row(
                    [
                        name,
                        f"`{recipe}`",
                        row["kept"],
                        ", ".join(map(_at_size, row["speed"])) or "the input itself",
                        sizes,
                        "" if cosine is None else f"{cosine:.4f}",
                        _metrics(workload["metric_input"], row["metric"]),
                    ]
                )
            )
    return "\n".join(lines)


def _at_size(row: dict[str, Any]) -> str:
    """``8x128 1.31x (1.29–1.33)``: the median and the quartiles."""
    size = "x".join(item.partition("=")[2] for item in row["sizes"].split())
    return f"{size} {row['speedup']:.2f}x ({row['speedup_q1']:.2f}–{row['speedup_q3']:.2f})"


def _metrics(before: dict[str, float], after: dict[str, float]) -> str:
    return ", ".join(f"{k} {before[k]:.3f} → {v:.3f}" for k, v in sorted(after.items()))


def _speed(cell: dict[str, Any]) -> str:
    return f"{cell['over ort-fp32']['median']:.2f}x / {cell['over ort-quantize-dynamic']['median']:.2f}x"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Rewrites README.md with the results that are there."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, render in (("minilm", minilm), ("profile", profile), ("zoo", zoo)):
        results = RESULTS / f"{name}.json"
        if not results.exists():
            print(f"{results.name} is not there: its table stays as it is")
            continue
        begin, end = f"<!-- {name}: generated -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        table = render(json.loads(results.read_text()))
        text = f"{head}{begin}{table}\n{end}{tail}"
    readme.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
