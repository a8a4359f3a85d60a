"""The ``tersor`` command. Commands import their modules when they run, so that help is quick."""

from __future__ import annotations

import os
import warnings
from typing import Annotated

import typer

from tersor.cli.bench import bench
from tersor.cli.compile import compile, convert
from tersor.cli.console import say
from tersor.cli.doctor import doctor
from tersor.cli.guard import Guarded
from tersor.cli.inspect import inspect
from tersor.cli.lists import passes, recipes, targets
from tersor.cli.tune import tune
from tersor.cli.verify import verify

app = typer.Typer(
    name="tersor",
    cls=Guarded,
    help="Tersor: a graph compiler for model compression.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
for command in (compile, convert, tune, inspect, bench, verify, passes, recipes, targets, doctor):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        from tersor import __version__

        say(f"tersor {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Tersor: a graph compiler for model compression."""


def main() -> None:
    """The console script."""
    # Users of this command cannot act on warnings of libraries.
    warnings.simplefilter("ignore")
    # Progress bars of libraries would garble Tersor's.
    os.environ.setdefault("TQDM_DISABLE", "1")
    app(prog_name="tersor")
