"""``tersor bench``: paired timing of two models, and the difference of their outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from tersor.cli.console import ProgressReporter, clean, say, show, table
from tersor.cli.guard import Debug, HfCache, TrustCode
from tersor.errors import InvalidModel, InvalidOption, suggest

if TYPE_CHECKING:
    from tersor.cli.models import Runnable
    from tersor.ir import Graph, Value
    from tersor.numerics.fidelity import Fidelity
    from tersor.tuning.measure import Paired

Feed = dict[str, np.ndarray]
_MODEL = "An ONNX file, an artifact or a model folder."


def bench(
    a: Annotated[Path, typer.Argument(metavar="A", help=_MODEL)],
    b: Annotated[Path, typer.Argument(metavar="B", help=_MODEL)],
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="An array for each input name, run unchanged."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=8x128",
            help="An input's shape; its values are made up, and inputs that share its dynamic dims get "
            "matching shapes. Repeatable.",
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(metavar="N", min=2, help="Number of paired runs.")] = 30,
    allow_hf_cache: HfCache = False,
    trust: TrustCode = False,
    debug: Debug = False,
) -> None:
    """Time two models and compare their outputs.

    They run alternately, each in its own runtime and its own process.
    """
    from tersor.calibration.arrays import check_arrays, read_arrays
    from tersor.cli import report
    from tersor.cli.inputs import shapes
    from tersor.cli.models import naming, read_runnable
    from tersor.driver.deviations import overflow
    from tersor.pipeline import registry
    from tersor.target import Target

    if inputs is not None and shape:
        raise typer.BadParameter("--inputs brings its own shapes", param_hint="'--shape'")
    arrays = read_arrays(inputs) if inputs is not None else None
    wanted = shapes(shape or ())
    first, second = (read_runnable(path, allow_hf_cache, trust) for path in (a, b))
    _check_interfaces(first, second, a, b)
    # For machine code only the types of the inputs are known, not what they index.
    known = second if first.is_code else first
    if arrays is not None and inputs is not None:
        check_arrays(arrays, known.graph, inputs)
    with naming(a):
        feeds = _feeds(first, known.graph, arrays, wanted)
    with ProgressReporter() as progress:
        results, fidelity, missing = _measure(
            first, second, list(feeds.values()), pairs, progress, (a, b)
        )
    times = table(
        "inputs", f">{clean(a)} ms", f">{clean(b)} ms", ">speedup", ">quartiles", ">pairs"
    )
    for label, result in zip(feeds, results, strict=True):
        times.add_row(clean(label), *report.time_cells(result.timing))
    show(times)
    say(f"speedup: of {b} over {a}, the median of {pairs} pairs")
    report.show_fidelity(fidelity)
    for path, model in ((a, first), (b, second)):
        if model.runtime == registry.REFERENCE and (
            warning := overflow(model.graph, Target.host())
        ):
            say(f"{path}: {warning}")
    for name in missing:
        say(f"output {name!r} is not in both models, and was not compared")
    if inputs is None:
        say("the inputs were made up: give real ones by --inputs for a meaningful fidelity")


def _check_interfaces(first: Runnable, second: Runnable, a: Path, b: Path) -> None:
    names = [{v.name for v in model.graph.inputs} for model in (first, second)]
    if names[0] != names[1]:
        inputs = [", ".join(sorted(n)) or "no inputs" for n in names]
        raise InvalidModel(
            f"{a} takes {inputs[0]}, {b} takes {inputs[1]}: give models with the same inputs"
        )


def _feeds(
    model: Runnable, graph: Graph, arrays: Feed | None, wanted: dict[str, tuple[int, ...]]
) -> dict[str, Feed]:
    """Feeds for both models, by label; by default made-up ones on which ``model`` runs.

    Raises:
        InvalidModel: the model runs on none.
    """
    from tersor.analysis.feeds import make_feed
    from tersor.tuning.cases import find_cases
    from tersor.tuning.measure import Trial

    if arrays is None and not wanted:
        with Trial(model.runtime, model.model, model.choice) as trial:
            cases = find_cases(graph, trial)
        if not cases.cases:
            raise InvalidModel(
                f"it does not run on made-up inputs: {cases.refusal}; give real ones by --inputs"
            )
        return {case.label: dict(case.feed) for case in cases.cases}
    feed = arrays if arrays is not None else make_feed(graph, bind(graph, wanted))
    return {" ".join(f"{k}={'x'.join(map(str, v.shape))}" for k, v in feed.items()): feed}


def bind(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of the dynamic dims for which the inputs have ``shapes``. Inputs get these shapes in the graph,
    also where their dims are unknown or expressions.

    Raises:
        InvalidOption: no such input, another rank, a conflicting dim, or a dim without a size.
    """
    from tersor.analysis.feeds import dim_names

    inputs = {v.name: v for v in graph.inputs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        where = f"--shape {name}={'x'.join(map(str, shape))}"
        if name not in inputs:
            raise InvalidOption(
                f"{where}: no input {name!r}{suggest(name, inputs)}; there are {', '.join(inputs)}"
            )
        _bind_one(inputs[name], shape, sizes, where)
    for name in dim_names(graph):
        if name not in sizes:
            raise InvalidOption(
                f"--shape does not determine dim {name!r}: give the shape of an input that has it"
            )
    return sizes


def _bind_one(value: Value, shape: tuple[int, ...], sizes: dict[str, int], where: str) -> None:
    from tersor.ir import TensorType
    from tersor.ir.dims import symbols

    type = value.type
    if not isinstance(type, TensorType) or (type.rank is not None and type.rank != len(shape)):
        raise InvalidOption(f"{where}: the input is {type}")
    for dim, size in zip(type.dims or (), shape, strict=False):
        if isinstance(dim, int) and dim != size:
            raise InvalidOption(f"{where}: {size} does not fit, the input is {type}")
        name = str(dim)
        if symbols(dim) == {name} and sizes.setdefault(name, size) != size:
            raise InvalidOption(f"{where}: {size} does not fit, {name} is {sizes[name]} already")
    value.type = TensorType(type.dtype, shape)


def _measure(
    first: Runnable,
    second: Runnable,
    feeds: list[Feed],
    pairs: int,
    progress: ProgressReporter,
    paths: tuple[Path, Path],
) -> tuple[list[Paired], Fidelity, list[str]]:
    """Paired times on each feed, fidelity of the second to the first, outputs that only one model has."""
    from tersor.cli.models import naming
    from tersor.numerics.fidelity import fidelity
    from tersor.tuning.measure import Bench, compare

    progress(0, len(feeds), "loading")
    with Bench(feeds) as runs:
        workers = []
        for path, model in zip(paths, (first, second), strict=True):
            with naming(path):
                workers.append(runs.start(model.runtime, model.model, model.choice))
        outputs = []
        for path, worker in zip(paths, workers, strict=True):
            with naming(path):
                outputs.append([worker.outputs(i) for i in range(len(feeds))])
        results = []
        for i in range(len(feeds)):
            progress(i, len(feeds), "measuring")
            results.append(compare(workers[0], workers[1], i, pairs))
    both = set(outputs[0][0]) & set(outputs[1][0])
    kept = [[{k: v for k, v in one.items() if k in both} for one in side] for side in outputs]
    return results, fidelity(kept[0], kept[1]), sorted(set(outputs[0][0]) ^ set(outputs[1][0]))
