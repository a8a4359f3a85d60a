"""Checks of the built model: that it computes what its graph says, and its fidelity to the input model."""

from __future__ import annotations

from pathlib import Path

from tersor.artifact.identity import as_imported
from tersor.backend import Choice
from tersor.built import Built
from tersor.driver import safety
from tersor.driver.choosing import Chosen
from tersor.driver.job import Job
from tersor.driver.judging import Judge, Run
from tersor.errors import InvalidModel, TersorError
from tersor.frontends import Imported
from tersor.pipeline import Feeds, registry
from tersor.pipeline.registry import reference


def input_model(job: Job, imported: Imported) -> Path | Built:
    """The model that the result is compared with: the input file if the reference runtime loads it, else
    the imported graph, unchanged."""
    if imported.original is not None:
        try:
            reference().open_session(imported.original)
        except InvalidModel as error:
            job.report.say("judge", [f"compared with the input as imported: {error}"])
        else:
            return imported.original
    return as_imported(imported)


def check_built(job: Job, chosen: Chosen, feeds: Feeds) -> None:
    """Checks that the built model computes what its graph says, if this machine can run it.

    Raises:
        PassFailed: it does not.
    """
    if chosen.graph is None or not job.target.is_host or not feeds:
        return
    job.progress(0, 1, "checking the built model")
    backend, choice = registry.backend(chosen.runtime), chosen.choice
    safety.check_built(
        chosen.graph,
        _runner(chosen.runtime, chosen.model, choice),
        lambda graph: _runner(chosen.runtime, backend.build(graph, choice), choice),
        feeds,
        job.evaluator,
        chosen.runtime,
    )


def report_fidelity(job: Job, before: Path | Built, chosen: Chosen, judge: Judge) -> None:
    """Reports the fidelity of the built model if this machine can run it, else of its graph."""
    if chosen.graph is None or not judge.feeds:
        return
    job.progress(0, 1, "comparing outputs")
    try:
        of_graph = judge(chosen.graph)
    except TersorError as error:
        of_graph = None
        job.report.say("judge", [f"scores were not compared: {error}"])
    if job.target.is_host:
        after = _runner(chosen.runtime, chosen.model, chosen.choice)
        job.report.fidelity = judge.of_built(_as_written(before), after, of_graph)
    elif of_graph is not None:
        job.report.fidelity = of_graph
        why = f"{job.target.name} is not this machine"
        job.report.say("judge", [f"fidelity is that of the graph in ONNX Runtime: {why}"])


def _as_written(model: Path | Built) -> Run:
    """Runs a model in the reference runtime without the runtime's own optimizer, whose fusions may change
    the numbers; with it if the runtime lacks kernels for the unoptimized model."""
    try:
        session = reference().open_session(model, level="none")
    except InvalidModel:
        session = reference().open_session(model)
    return session.run


def _runner(runtime: str, model: Path | Built, choice: Choice) -> Run:
    return registry.backend(runtime).open_session(model, choice).run
