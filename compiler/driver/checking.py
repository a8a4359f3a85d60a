"""What came out, against the input: that it computes what its graph says, and what compression cost."""

from __future__ import annotations

from pathlib import Path

from tersor.artifact.identity import as_imported
from tersor.backend import Choice
from tersor.built import Built
from tersor.driver import safety
from tersor.driver.choosing import Kept
from tersor.driver.job import Job
from tersor.driver.judging import Judge, Run
from tersor.errors import InvalidModel, TersorError
from tersor.frontends import Imported
from tersor.pipeline import Feeds, registry
from tersor.pipeline.registry import reference


def input_model(job: Job, imported: Imported) -> Path | Built:
    """What the result is compared with: the file itself where the reference runtime takes it, else the
    imported graph as it came."""
    if imported.original is not None:
        try:
            reference().open_session(imported.original)
        except InvalidModel as error:
            job.report.say("judge", [f"compared with the input as imported: {error}"])
        else:
            return imported.original
    return as_imported(imported)


def check_built(job: Job, kept: Kept, feeds: Feeds) -> None:
    """That what was built computes what its graph says, where this machine can run it.

    Raises:
        PassFailed: it does not.
    """
    if kept.graph is None or not job.target.is_host or not feeds:
        return
    job.tell(0, 1, "checking what was built")
    backend, choice = registry.backend(kept.runtime), kept.choice
    safety.check_built(
        kept.graph,
        _runner(kept.runtime, kept.model, choice),
        lambda graph: _runner(kept.runtime, backend.build(graph, choice), choice),
        feeds,
        job.evaluator,
        kept.runtime,
    )


def report_fidelity(job: Job, before: Path | Built, kept: Kept, judge: Judge) -> None:
    """Of what was built, where this machine can run it; else of its graph."""
    if kept.graph is None or not judge.feeds:
        return
    job.tell(0, 1, "comparing outputs")
    try:
        of_graph = judge(kept.graph)
    except TersorError as error:
        of_graph = None
        job.report.say("judge", [f"its scores were not judged: {error}"])
    if job.target.is_host:
        after = _runner(kept.runtime, kept.model, kept.choice)
        job.report.fidelity = judge.of_built(_as_written(before), after, of_graph)
    elif of_graph is not None:
        job.report.fidelity = of_graph
        why = f"{job.target.name} is not this machine"
        job.report.say("judge", [f"fidelity is that of the graph in ONNX Runtime: {why}"])


def _as_written(model: Path | Built) -> Run:
    """A model as the reference runtime computes it without its own optimizer, whose fusions may move the
    numbers; with it, where it has kernels only for what that makes."""
    try:
        session = reference().open_session(model, level="none")
    except InvalidModel:
        session = reference().open_session(model)
    return session.run


def _runner(runtime: str, model: Path | Built, choice: Choice) -> Run:
    return registry.backend(runtime).open_session(model, choice).run
