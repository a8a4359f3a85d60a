"""``python -m tersor.models``: exports the workloads to ONNX and evaluates models on their tasks."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.console import ProgressReporter, say
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
Name = Annotated[str, typer.Argument(metavar="NAME", help="A workload; see 'list'.")]


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
    """Export a workload to ONNX with torch's exporter."""
    from tersor.cli.inputs import check_output

    workload = _find(name)
    if out.suffix != ".onnx":
        raise InvalidOption(f"cannot write {out}: the path must end in .onnx")
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
    """Evaluate a model on a workload's task; higher is better."""
    workload = _find(name)
    with _telling():
        run = zoo.runner(workload, workload.build()) if model is None else _opened(workload, model)
        results = workload.metric(run)
    for key, value in results.items():
        say(f"{key} {value:.4f}")


def _find(name: str) -> zoo.Workload:
    known = zoo.names()
    if name not in known:
        raise InvalidOption(
            f"no workload {name!r}{suggest(name, known)}; there are {', '.join(known)}"
        )
    return zoo.find(name)


def _opened(workload: zoo.Workload, path: Path) -> zoo.Run:
    """Opens the file to run it.

    Raises:
        InvalidOption: its inputs and outputs are not the workload's.
    """
    from tersor.cli.models import read_runnable
    from tersor.pipeline import registry

    runnable = read_runnable(path)
    inputs, outputs = [v.name for v in runnable.graph.inputs], list(runnable.graph.output_names)
    if set(inputs) != set(workload.dynamic_shapes) or not set(workload.outputs) <= set(outputs):
        raise InvalidOption(
            f"{path} is not {workload.name}: its inputs are {', '.join(inputs)} and its outputs "
            f"{', '.join(outputs)}, not {', '.join(workload.dynamic_shapes)} and "
            f"{', '.join(workload.outputs)}"
        )
    return registry.backend(runnable.runtime).open_session(runnable.model, runnable.choice).run


@contextmanager
def _telling() -> Iterator[None]:
    """Shows the progress of training within the block."""
    from tersor.models import training

    with ProgressReporter() as progress, training.telling(progress):
        yield


def main() -> None:
    """The entry point."""
    # Users of this command cannot act on warnings of the libraries below.
    warnings.simplefilter("ignore")
    # Their progress bars would interfere with ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    app(prog_name="python -m tersor.models")


if __name__ == "__main__":
    main()
