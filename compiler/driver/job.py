"""The state that the steps of one compilation share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tersor.analysis.feeds import Sizes
from tersor.backend import Backend, Choice
from tersor.errors import Unsupported
from tersor.pipeline import Evaluate, registry
from tersor.pipeline.report import Report
from tersor.target import Target
from tersor.tuning.database import Database
from tersor.tuning.latency import Stopwatch

Progress = Callable[[int, int, str], None]


@dataclass
class Job:
    """One compilation: its target and its report. Passes evaluate graphs, and the input is measured, in the
    reference runtime, whatever the runtime of the result.

    Attributes:
        start: the backend's choice before anything is measured.
        database: earlier measurements on this machine; None if nothing is measured.
        latency: for passes that measure before they rewrite; None if nothing is measured.
    """

    backend: Backend
    runtime: str
    target: Target
    start: Choice
    progress: Progress
    report: Report = field(default_factory=Report)
    database: Database | None = None
    latency: Stopwatch | None = None
    evaluator: Evaluate = field(init=False)

    def __post_init__(self) -> None:
        self.evaluator = registry.reference().Evaluator()


def begin(
    runtime: str,
    target: str | Target,
    progress: Progress | None,
    *,
    portable: bool = False,
    buckets: Sequence[Sizes] = (),
) -> Job:
    """A new job.

    Raises:
        InvalidOption: no such runtime or target, or an option that the runtime does not support.
        Unsupported: the runtime is not installed, or does not build for the target.
    """
    chosen = Target.parse(target) if isinstance(target, str) else target
    backend = registry.backend(runtime)
    if chosen.kind not in backend.KINDS:
        kinds = ", ".join(backend.KINDS)
        raise Unsupported(f"runtime {runtime} builds for {kinds}, not for {chosen.name}")
    start = backend.Choice.of(chosen, portable=portable, buckets=buckets)
    return Job(backend, runtime, chosen, start, progress or (lambda done, total, what: None))
