"""``tersor inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.guard import Debug, HfCache, Trust


def inspect(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="An ONNX file, an artifact or a model folder."),
    ],
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="A second one, to compare with.")
    ] = None,
    top: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many of the largest weights.")
    ] = 10,
    depth: Annotated[
        int, typer.Option(metavar="N", min=0, help="How deep modules are listed.")
    ] = 3,
    allow_hf_cache: HfCache = False,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Show what is in a model, or in two beside each other.

    Ops, parameters, multiply-adds (MACs), size, labels, largest weights, modules.
    """
    from tersor.analysis.feeds import default_sizes
    from tersor.analysis.summary import summarize
    from tersor.cli import report
    from tersor.cli.models import read_graph, read_imported

    imported = read_imported(model, allow_hf_cache, trust)
    graph = imported.graph
    # The last is the largest of the sizes that models are measured at.
    at = default_sizes(graph)[-1]
    if other is None:
        report.show_summary(summarize(graph), at, top=top, depth=depth, remarks=imported.remarks)
        return
    second = summarize(read_graph(other, allow_hf_cache, trust))
    report.show_comparison(summarize(graph), second, at, [str(model), str(other)])
