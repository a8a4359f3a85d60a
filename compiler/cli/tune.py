"""``tersor tune``: measures how kernels best divide their work, before compiling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tersor.cli.compile import (
    Batch,
    Calibration,
    Database,
    In,
    Recipe,
    Runtime,
    Settings,
    Sizes,
    Target,
)
from tersor.cli.console import ProgressReporter, clean, say, show, table
from tersor.cli.guard import INTERRUPTED, Debug, HfCache, Trust

if TYPE_CHECKING:
    from tersor.pipeline.report import TuneReport


def tune(
    model: In,
    recipe: Recipe = "int8",
    set: Settings = None,
    target: Target = "cpu",
    runtime: Runtime = "tvm",
    calibration: Calibration = None,
    batch: Batch = None,
    size: Sizes = None,
    database: Database = None,
    allow_hf_cache: HfCache = False,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Tune a model's kernels on this machine, for later use by compile.

    Known kernels are not measured again; Ctrl-C keeps the results so far.
    """
    import tersor
    from tersor.cli import inputs
    from tersor.cli.models import naming

    settings = inputs.pairs(set or (), "--set")
    sizes = inputs.sizes(size or ())
    tersor.Recipe.of(recipe).override(settings)
    with ProgressReporter() as progress, naming(model):
        report = tersor.tune(
            model,
            target,
            recipe,
            runtime=runtime,
            sizes=sizes,
            calibration=calibration,
            batch=batch,
            settings=settings,
            database=database,
            progress=progress,
            allow_hf_cache=allow_hf_cache,
            trust=trust,
        )
    _show(report)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)


def _show(report: TuneReport) -> None:
    if report.kernels:
        rows = table("kernel", "grain", "")
        for row in report.kernels:
            grain = " ".join(f"{k}={v}" for k, v in row["grain"].items())
            rows.add_row(clean(row["name"]), grain, "measured" if row["measured"] else "known")
        show(rows)
    for line in report.remarks:
        say(line)
    if report.interrupted:
        done = f"{len(report.kernels)} of {report.total} kernels are tuned"
        say(f"{done}: run it again to resume")
    elif not report.total:
        say("the model has no kernels to tune")
    else:
        say(f"kernels tuned: {report.total}, of which {_known(report)} were known before")
    if report.kernels and report.database:
        say(f"the results are in {report.database}")


def _known(report: TuneReport) -> int:
    return sum(not row["measured"] for row in report.kernels)
