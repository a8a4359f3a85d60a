"""``make demo``: compresses all-MiniLM-L6-v2 to int8 and compares it with the original."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tersor
from tersor.cli.console import Teller
from tersor.models.minilm import build, data, metrics
from tersor.pipeline import registry

OUT = Path("out")


def main() -> int:
    """Writes ``out/minilm-int8.onnx`` and prints what became better and what it cost."""
    console = Console()
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Teller() as tell:
        tell(0, 1, "exporting MiniLM to ONNX, as a user would")
        original = build.export_onnx(Path(folder) / "minilm.onnx")
        artifact = tersor.compile(
            original, recipe="int8", calibration=data.calibration(), progress=tell
        )
        tell(0, 1, "comparing embeddings of 500 sentences")
        fidelity = _fidelity(original, artifact)
    path = artifact.save(OUT / "minilm-int8.onnx")
    console.print(_table(artifact.report, fidelity))
    for line in artifact.report.decisions:
        console.print(f"  {line}", markup=False)
    console.print(f"\nwritten: {path}", markup=False)
    return 0


def _fidelity(original: Path, artifact: tersor.Artifact) -> dict[str, float]:
    backend = registry.backend("ort")
    session = backend.open_session(original)
    feeds = data.test_feeds()
    reference = metrics.embed(lambda feed: backend.run(session, feed), feeds)
    return metrics.fidelity(reference, metrics.embed(artifact.run, feeds))


def _table(report: tersor.Report, fidelity: dict[str, float]) -> Table:
    table = Table(title="all-MiniLM-L6-v2 on this machine, in ONNX Runtime")
    for column in ("", "fp32", "int8", ""):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    before, after = report.size_before or 0, report.size_after or 1
    table.add_row("size", _mib(before), _mib(after), f"{before / after:.2f}x smaller")
    for row in report.measured:
        if row["against"] != "the input" or row["candidate"] not in report.decisions[-1]:
            continue
        quartiles = f"{row['speedup_q1']:.2f}-{row['speedup_q3']:.2f}"
        table.add_row(
            f"latency, {_shape(row['sizes'])}",
            f"{row['before_ms']:.1f} ms",
            f"{row['after_ms']:.1f} ms",
            f"{row['speedup']:.2f}x ({quartiles})",
        )
    table.add_row("mean cosine, 500 sentences", "1", f"{fidelity['mean_cosine']:.4f}", "")
    table.add_row("worst cosine", "1", f"{fidelity['min_cosine']:.4f}", "")
    table.add_row("same nearest neighbour", "100%", f"{fidelity['nn1']:.1%}", "")
    return table


def _shape(sizes: str) -> str:
    """``batch=8 sequence=128`` as ``8x128``."""
    return "x".join(item.partition("=")[2] for item in sizes.split())


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
