"""The steps that decide: measure candidates against the input, and choose."""

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
FINAL_PAIRS = 400  # As many only on a busy machine, where it is not plain after few.


@dataclass(frozen=True)
class Kept:
    """What a compilation gives: ``model`` for ``runtime``, run under ``choice``, built of ``graph``; None:
    the input as it was. ``decoded``: constants that the runtime reads as plain numbers."""

    runtime: str
    model: Built
    choice: Choice
    graph: Graph | None
    decoded: list[Decoded] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """A graph at its best choice, and how it compares with the input on each of the cases, up to the first on
    which it is slower; or why it cannot be run."""

    name: str
    graph: Graph
    built: Candidate | None = None
    results: list[Paired] = field(default_factory=list)
    refused: str = ""

    @property
    def slower(self) -> bool:
        return any(result.slower for result in self.results)


def find_inputs(job: Job, before: Path | Built, graph: Graph, source: Source) -> Cases:
    """The inputs to measure with. They are tried on the input model in another process: what is made
    up may be anything, and end it."""
    example = source.example
    batches = source.batches
    if not batches and example is not None and not source.imported.traced:
        batches = [example]
    job.tell(0, 1, "looking for inputs to measure with")
    with Trial(registry.REFERENCE, before, reference().Choice().to_json()) as trial:
        found = find_cases(graph, trial, sizes=source.sizes, batches=batches, example=example)
    job.report.say("measure", found.remarks)
    return found


# -- measure ---------------------------------------------------------------------------------------


def measure(
    job: Job, before: Path | Built, graphs: Iterable[tuple[str, Graph]], cases: Sequence[Case]
) -> Generator[Measured, None, None]:
    """Each of ``graphs`` against the input, one when it is asked for."""
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
        choice, tuned = job.backend.tune(graph, choice, sizes, job.tell, job.database)
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
    search = Search(job.backend, job.runtime, bench, range(len(cases)), job.tell, record, known)
    job.tell(0, 1, f"building {name} for runtime {job.runtime}")
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
        job.tell(i, len(cases), what)
        results.append(compare(original, candidate.worker, i, FINAL_PAIRS, _settled))
        timing = results[-1].timing
        job.report.measured.append(Measurement(candidate.way.label, INPUT, case.label, timing))
        if results[-1].slower:
            break  # It is not kept, whatever the others say.
    return results


def _settled(so_far: Paired) -> bool:
    """Whether it is plain that a result is slower than the input, or is not."""
    return so_far.pairs >= DECIDING_PAIRS and so_far.differs_from(NOT_SLOWER)


# -- choose ----------------------------------------------------------------------------------------


def choose(
    job: Job, before: Path | Built, measured: Generator[Measured, None, None], cases: Sequence[Case]
) -> Kept:
    """The first that is not slower than the input; else the input itself. No more are measured then."""
    why = "nothing that was tried can be run"

    def decide(**told: Any) -> None:
        job.report.decisions.append(Decision("choose", **told))

    with closing(measured):
        for one in measured:
            if one.built is None:
                decide(outcome="refused", candidate=one.name, reason=one.refused)
            elif one.slower:
                result, case = min(
                    zip(one.results, cases, strict=False), key=lambda pair: pair[0].speedup
                )
                decide(outcome="slower", candidate=one.name, at=case.label, speedup=result.speedup)
                why = "nothing that was tried is faster"
            else:
                way = one.built.way
                for result, case in _less_than_even(one, cases):
                    decide(
                        outcome="even", candidate=one.name, at=case.label, speedup=result.speedup
                    )
                decide(outcome="kept", candidate=way.label)
                return Kept(job.runtime, one.built.model, way.choice, one.graph, one.built.decoded)
    decide(outcome="kept", candidate=INPUT, reason=why)
    model = reference().read_built(before) if isinstance(before, Path) else before
    return Kept(registry.REFERENCE, model, reference().Choice(), None)


def unmeasured(job: Job, name: str, graph: Graph) -> Kept:
    """A graph as the search would start from it."""
    job.tell(0, 1, f"building {name} for runtime {job.runtime}")
    decoded: list[Decoded] = []
    model = job.backend.build(graph, job.start, decoded)
    return Kept(job.runtime, model, job.start, graph, decoded)


def _less_than_even(one: Measured, cases: Sequence[Case]) -> list[tuple[Paired, Case]]:
    """Results that are printed as less than 1.00x, and yet are kept."""
    pairs = zip(one.results, cases, strict=True)
    return [(result, case) for result, case in pairs if f"{result.speedup:.2f}" < "1.00"]
