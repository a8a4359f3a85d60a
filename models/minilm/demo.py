"""``make demo``: compresses all-MiniLM-L6-v2 to int8 for both runtimes and compares it with the original."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tersor
from tersor.cli.console import ProgressReporter
from tersor.errors import Unsupported
from tersor.models.minilm import build, data, metrics
from tersor.pipeline import registry

OUT = Path("out")
RESULTS = {
    "ort": (OUT / "minilm-int8.onnx", "one file that plain ONNX Runtime loads"),
    "tvm": (
        OUT / "minilm-int8-tvm",
        "kernels made for this processor: tersor.load(..., trust=True)",
    ),
}
NEXT = (
    "tersor compile MODEL.onnx OUT.onnx --recipe int8 --calibration BATCHES.npz"
    "   # --runtime tvm for the library"
)


def main() -> int:
    """Writes an ONNX file and a library into ``out`` and prints what became better and what it cost."""
    console = Console()
    OUT.mkdir(exist_ok=True)
    made: dict[str, tersor.Artifact] = {}
    with tempfile.TemporaryDirectory() as folder, ProgressReporter() as progress:
        progress(0, 1, "exporting MiniLM to ONNX, as a user would")
        original = build.export_onnx(Path(folder) / "minilm.onnx")
        calibration = data.calibration()
        for runtime in RESULTS:
            try:
                made[runtime] = tersor.compile(
                    original,
                    recipe="int8",
                    runtime=runtime,
                    calibration=calibration,
                    progress=progress,
                )
            except Unsupported as error:
                console.print(f"{runtime} was left out: {error}", markup=False)
        progress(0, 1, "comparing embeddings of 500 sentences")
        fidelity = _fidelity(original, made)
    console.print(_table(made, fidelity))
    for runtime, artifact in made.items():
        for line in artifact.report.decisions:
            console.print(f"  {runtime}: {line}", markup=False)
    console.print()
    for runtime, artifact in made.items():
        path, what = RESULTS[runtime]
        console.print(f"written: {artifact.save(path)} ({what})", markup=False)
    console.print(f"\nNext, on a model of your own:\n  {NEXT}", markup=False)
    return 0


def _fidelity(original: Path, made: dict[str, tersor.Artifact]) -> dict[str, dict[str, float]]:
    session = registry.reference().open_session(original)
    feeds = data.test_feeds()
    reference = metrics.embed(session.run, feeds)
    return {
        runtime: metrics.fidelity(reference, metrics.embed(artifact.run, feeds))
        for runtime, artifact in made.items()
    }


def _table(made: dict[str, tersor.Artifact], fidelity: dict[str, dict[str, float]]) -> Table:
    table = Table(title="all-MiniLM-L6-v2 on this machine, speed over fp32 in ONNX Runtime")
    columns = ["", "fp32", *(f"int8, {runtime}" for runtime in made)]
    for column in columns:
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    reports = [artifact.report for artifact in made.values()]
    table.add_row("size", _mib(reports[0].size_before), *(_mib(r.size_after) for r in reports))
    speeds = [_speeds(report) for report in reports]
    for sizes, (before, _) in speeds[0].items():
        cells = [f"{row[sizes][1]}" if sizes in row else "" for row in speeds]
        table.add_row(f"latency, {_shape(sizes)}", before, *cells)
    for label, key, text in (
        ("mean cosine, 500 sentences", "mean_cosine", "{:.4f}"),
        ("worst cosine", "min_cosine", "{:.4f}"),
        ("same nearest neighbour", "nn1", "{:.1%}"),
    ):
        table.add_row(label, text.format(1), *(text.format(f[key]) for f in fidelity.values()))
    return table


def _speeds(report: tersor.Report) -> dict[str, tuple[str, str]]:
    """By sizes: latency of the input, and of the result with its speed over it."""
    return {
        row.sizes: (
            f"{timing.before_ms:.1f} ms",
            f"{timing.after_ms:.1f} ms, {timing.speedup:.2f}x",
        )
        for row, timing in report.against_input
        if row.candidate == report.kept
    }


def _shape(sizes: str) -> str:
    """``batch=8 sequence=128`` as ``8x128``."""
    return "x".join(item.partition("=")[2] for item in sizes.split())


def _mib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
