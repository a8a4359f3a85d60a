"""``tersor inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.compile import Skips
from tersor.cli.guard import Debug, HfCache, Trust


def inspect(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="An ONNX file, an artifact or a model folder."),
    ],
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="A second model, to compare with.")
    ] = None,
    top: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many of the largest weights to list.")
    ] = 10,
    depth: Annotated[int, typer.Option(metavar="N", min=0, help="How deep to list modules.")] = 3,
    skips: Skips = False,
    allow_hf_cache: HfCache = False,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Show the contents of a model, or of two side by side.

    Ops, parameters, multiply-adds (MACs), size, labels, largest weights, modules; for an artifact also its
    compilation report.
    """
    from tersor.analysis.feeds import default_sizes
    from tersor.analysis.summary import summarize
    from tersor.cli import report
    from tersor.cli.console import say
    from tersor.cli.models import read_graph, read_imported, read_saved
    from tersor.pipeline import registry

    saved = read_saved(model) if other is None else None
    if saved is not None and saved.runtime in registry.CODE:
        say(f"{model} is machine code (runtime {saved.runtime}), which has no graph")
        report.show_report(saved.report, skips=skips)
        return
    imported = read_imported(model, allow_hf_cache, trust)
    graph = imported.graph
    # The largest of the default sizes.
    at = default_sizes(graph)[-1]
    if other is None:
        report.show_summary(summarize(graph), at, top=top, depth=depth, remarks=imported.remarks)
        if saved is not None:
            say()
            report.show_report(saved.report, skips=skips)
        return
    second = summarize(read_graph(other, allow_hf_cache, trust))
    report.show_comparison(summarize(graph), second, at, [str(model), str(other)])
