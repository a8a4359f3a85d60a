"""``python -m tersor.models``: the workloads as ONNX files, and what a model makes of their tasks."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.console import Teller, say
from tersor.cli.guard import Debug, Guarded
from tersor.errors import InvalidOption, suggest
from tersor.models import zoo

app = typer.Typer(
    name="python -m tersor.models",
    cls=Guarded,
    help="Workloads: models with real inputs and a metric.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A workload that 'list' shows.")]


@app.command("list")
def list_workloads(debug: Debug = False) -> None:
    """List the workloads."""
    for name in zoo.names():
        say(name)
        say(f"    {zoo.description(name)}")


@app.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    debug: Debug = False,
) -> None:
    """Write a workload as an ONNX file, as torch exports it."""
    from tersor.cli.inputs import check_output

    workload = _find(name)
    if out.suffix != ".onnx":
        raise InvalidOption(f"cannot write {out}: give a path that ends in .onnx")
    check_output(out, out.with_suffix(""))
    with _telling(), tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".") as folder:
        os.replace(workload.export_onnx(Path(folder) / out.name), out)
    say(f"written: {out}")


@app.command()
def metric(
    name: Name,
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL", help="An ONNX file or an artifact; by default the module itself."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Tell what a model makes of a workload's task; more is better."""
    workload = _find(name)
    with _telling():
        run = zoo.runner(workload, workload.build()) if model is None else _opened(workload, model)
        found = workload.metric(run)
    for key, value in found.items():
        say(f"{key} {value:.4f}")


def _find(name: str) -> zoo.Workload:
    known = zoo.names()
    if name not in known:
        there = ", ".join(known)
        raise InvalidOption(f"no workload {name!r}{suggest(name, known)}; there are {there}")
    return zoo.find(name)


def _opened(workload: zoo.Workload, path: Path) -> zoo.Run:
    """A way to run the file.

    Raises:
        InvalidOption: it is another model, by its inputs and outputs.
    """
    from tersor.cli.models import read_runnable
    from tersor.pipeline import registry

    found = read_runnable(path)
    have = ([v.name for v in found.graph.inputs], list(found.graph.output_names))
    want = (list(workload.dynamic_shapes), list(workload.outputs))
    if set(have[0]) != set(want[0]) or not set(want[1]) <= set(have[1]):
        raise InvalidOption(
            f"{path} is not {workload.name}: it takes {', '.join(have[0])} and gives "
            f"{', '.join(have[1])}; wanted are {', '.join(want[0])} and {', '.join(want[1])}"
        )
    return registry.backend(found.runtime).open_session(found.model, found.choice).run


@contextmanager
def _telling() -> Iterator[None]:
    """Within it, training shows its progress."""
    from tersor.models import training

    with Teller() as tell, training.telling(tell):
        yield


def main() -> None:
    """As ``tersor``'s own command."""
    # Warnings of the libraries below say nothing that a user of this command could act on.
    warnings.simplefilter("ignore")
    # Their progress bars would run through ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    app(prog_name="python -m tersor.models")


if __name__ == "__main__":
    main()
