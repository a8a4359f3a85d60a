"""The deciding steps: measure candidates against the input model, and choose one."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tersor.backend import Choice
from tersor.built import Built
from tersor.driver.job import Job
from tersor.driver.steps import Source
from tersor.errors import InvalidModel
from tersor.ir import Graph
from tersor.pipeline import Pipeline, registry
from tersor.pipeline.registry import reference
from tersor.pipeline.report import BEST, INPUT, Decision, Decoded, Measurement, Report
from tersor.tuning.cases import Case, Cases, find_cases
from tersor.tuning.measure import NOT_SLOWER, SECONDS, Bench, Paired, Trial, Worker, compare
from tersor.tuning.reuse import Known
from tersor.tuning.search import Candidate, Search

DECIDING_PAIRS = 9
FINAL_PAIRS = 400  # An upper bound: a quiet machine settles after a few.


@dataclass(frozen=True)
class Chosen:
    """The result of a compilation: ``model`` for ``runtime``, run under ``choice``, built from ``graph``
    (None: the input unchanged). ``decoded``: constants that had to be decoded for the runtime."""

    runtime: str
    model: Built
    choice: Choice
    graph: Graph | None
    decoded: list[Decoded] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """A graph under its best choice, and its comparison with the input on each case, up to the first on
    which it is slower; or why it cannot be run."""

    name: str
    graph: Graph
    built: Candidate | None = None
    results: list[Paired] = field(default_factory=list)
    refused: str = ""

    @property
    def slower(self) -> bool:
        return any(result.slower for result in self.results)


def measurement_cases(job: Job, before: Path | Built, graph: Graph, source: Source) -> Cases:
    """The inputs to measure with. Each is tried on the input model in another process, because synthetic
    inputs may crash it."""
    example = source.example
    batches = source.batches
    if not batches and example is not None and not source.imported.traced:
        batches = [example]
    job.progress(0, 1, "selecting inputs to measure with")
    with Trial(registry.REFERENCE, before, reference().Choice().to_json()) as trial:
        cases = find_cases(graph, trial, sizes=source.sizes, batches=batches, example=example)
    job.report.say("measure", cases.remarks)
    return cases


# -- measure ---------------------------------------------------------------------------------------


def measure(
    job: Job, before: Path | Built, graphs: Iterable[tuple[str, Graph]], cases: Sequence[Case]
) -> Generator[Measured, None, None]:
    """Measures each of ``graphs`` against the input, lazily."""
    with Bench([case.feed for case in cases]) as bench:
        original = bench.start(registry.REFERENCE, before, reference().Choice().to_json())
        for name, graph in graphs:
            try:
                built = _search(job, name, graph, bench, cases)
            except InvalidModel as error:
                yield Measured(name, graph, refused=str(error))
                continue
            results = _against_input(job, name, original, built, cases)
            yield Measured(name, graph, built, results)
            bench.release(built.worker)


def _search(job: Job, name: str, graph: Graph, bench: Bench, cases: Sequence[Case]) -> Candidate:
    """The best way to build a graph."""
    choice = job.start
    if job.backend.tune is not None and job.database is not None:
        sizes = [case.sizes for case in cases]
        choice, tuned = job.backend.tune(graph, choice, sizes, job.progress, job.database)
        job.report.say("measure", tuned.remarks)
    variants = {name: graph}
    for suffix, step in job.backend.VARIANTS.items():
        pipeline = Pipeline([registry.find_pass(step)()])
        other = pipeline.run(graph)
        if pipeline.reports[0].rewrites:
            variants[f"{name}+{suffix}"] = other
    known = None
    if job.database is not None:
        known = Known(job.database, job.backend, [case.feed for case in cases])
    record = partial(_record, job.report, cases)
    search = Search(job.backend, job.runtime, bench, range(len(cases)), job.progress, record, known)
    job.progress(0, 1, f"building {name} for runtime {job.runtime}")
    candidate = search(variants, choice)
    job.report.say("measure", known.remarks if known is not None else ())
    return candidate


def _record(
    report: Report, cases: Sequence[Case], label: str, results: list[Paired] | str, known: bool
) -> None:
    if isinstance(results, str):
        report.measured.append(Measurement(label, BEST, refused=results))
        return
    report.measured += [
        Measurement(label, BEST, case.label, result.timing, reused=known)
        for result, case in zip(results, cases, strict=False)
    ]


def _against_input(
    job: Job, name: str, original: Worker, candidate: Candidate, cases: Sequence[Case]
) -> list[Paired]:
    results = []
    for i, case in enumerate(cases):
        what = f"measuring {name} against the input at {case.label} (about {SECONDS:.0f} s)"
        job.progress(i, len(cases), what)
        results.append(compare(original, candidate.worker, i, FINAL_PAIRS, _settled))
        timing = results[-1].timing
        job.report.measured.append(Measurement(candidate.way.label, INPUT, case.label, timing))
        if results[-1].slower:
            break  # Slower on one case is enough to reject it.
    return results


def _settled(so_far: Paired) -> bool:
    """Whether more pairs would not change the verdict "slower than the input"."""
    return so_far.pairs >= DECIDING_PAIRS and so_far.differs_from(NOT_SLOWER)


# -- choose ----------------------------------------------------------------------------------------


def choose(
    job: Job, before: Path | Built, measured: Generator[Measured, None, None], cases: Sequence[Case]
) -> Chosen:
    """The first candidate that is not slower than the input, else the input. Later ones are not measured."""
    why = "no candidate can be run"

    def decide(**fields: Any) -> None:
        job.report.decisions.append(Decision("choose", **fields))

    with closing(measured):
        for one in measured:
            if one.built is None:
                decide(outcome="refused", candidate=one.name, reason=one.refused)
            elif one.slower:
                result, case = min(
                    zip(one.results, cases, strict=False), key=lambda pair: pair[0].speedup
                )
                decide(outcome="slower", candidate=one.name, at=case.label, speedup=result.speedup)
                why = "no candidate is faster"
            else:
                way = one.built.way
                for result, case in _less_than_even(one, cases):
                    decide(
                        outcome="even", candidate=one.name, at=case.label, speedup=result.speedup
                    )
                decide(outcome="kept", candidate=way.label)
                return Chosen(
                    job.runtime, one.built.model, way.choice, one.graph, one.built.decoded
                )
    decide(outcome="kept", candidate=INPUT, reason=why)
    model = reference().read_built(before) if isinstance(before, Path) else before
    return Chosen(registry.REFERENCE, model, reference().Choice(), None)


def build_unmeasured(job: Job, name: str, graph: Graph) -> Chosen:
    """Builds a graph under the search's starting choice."""
    job.progress(0, 1, f"building {name} for runtime {job.runtime}")
    decoded: list[Decoded] = []
    model = job.backend.build(graph, job.start, decoded)
    return Chosen(job.runtime, model, job.start, graph, decoded)


def _less_than_even(one: Measured, cases: Sequence[Case]) -> list[tuple[Paired, Case]]:
    """Results that print as less than 1.00x but do not count as slower."""
    pairs = zip(one.results, cases, strict=True)
    return [(result, case) for result, case in pairs if f"{result.speedup:.2f}" < "1.00"]
