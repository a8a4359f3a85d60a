"""The steps of one compilation: run passes, measure what comes out, keep the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tersor.analysis.feeds import Sizes
from tersor.backend import Backend, Choice
from tersor.built import Built
from tersor.driver.floors import Floored, Stage
from tersor.driver.floors import Run as RunPass
from tersor.driver.judging import Judge, Run, lowest
from tersor.driver.recipe import Recipe
from tersor.driver.safety import check_built
from tersor.errors import InvalidModel, TersorError
from tersor.ir import Graph
from tersor.pipeline import Evaluate, Feeds, Pass, Pipeline, registry
from tersor.pipeline.registry import reference
from tersor.pipeline.report import PassReport, Report
from tersor.statistics.thinning import held_out, thinned
from tersor.target import Target
from tersor.tuning.cases import Case, Cases, find_cases
from tersor.tuning.database import Database
from tersor.tuning.latency import Stopwatch
from tersor.tuning.measure import NOT_SLOWER, SECONDS, Bench, Paired, Trial, Worker, compare
from tersor.tuning.reuse import Known
from tersor.tuning.search import Candidate, Search

Feed = Mapping[str, np.ndarray]
Progress = Callable[[int, int, str], None]
DECIDING_PAIRS = 9
FINAL_PAIRS = 400  # As many only on a busy machine, where it is not plain after few.
JUDGED = 256  # Samples that fidelity is told on.
FITTED = "the calibration inputs that it was fitted on"
HELD_OUT = "calibration inputs that were not fitted on"


@dataclass(frozen=True)
class Kept:
    """What a compilation gives: ``model`` for ``runtime``, run under ``choice``, built of ``graph``; None:
    the input as it was."""

    runtime: str
    model: Built
    choice: Choice
    graph: Graph | None


@dataclass
class Job:
    """What the steps of one compilation share. Passes see values, and the input is measured, in the
    reference runtime, whatever runs the result."""

    backend: Backend
    runtime: str
    target: Target
    start: Choice  # Before anything is measured.
    report: Report
    tell: Progress
    database: Database | None = None  # Where the runtime's kernels are tuned.
    latency: Stopwatch | None = None  # None where nothing is measured.
    evaluator: Evaluate = field(init=False)

    def __post_init__(self) -> None:
        self.evaluator = reference().Evaluator()

    def run_passes(self, passes: Sequence[Pass], graph: Graph, calibration: Feeds = ()) -> Graph:
        pipeline = self._pipeline(passes, calibration)
        result = pipeline.run(graph)
        self.report.passes += pipeline.reports
        return result

    def _pipeline(self, passes: Sequence[Pass], calibration: Feeds) -> Pipeline:
        return Pipeline(
            passes,
            target=self.target,
            calibration=calibration,
            evaluate=self.evaluator,
            supports=self.backend.supports,
            latency=self.latency,
            progress=self.tell,
        )

    def compress(
        self, plan: Recipe, graph: Graph, batches: Feeds, named_by: Graph
    ) -> tuple[Graph, Judge | None]:
        """The recipe's passes on ``graph``, as far as its floor allows, and what judged them by calibration.

        Args:
            named_by: the graph as its user knows it.

        Raises:
            InvalidOption: a budget that was asked for cannot be had, or not above the floor.
        """
        fits = any(step.fits for step in plan.build())
        fitted: Feeds = batches
        apart: Feeds = ()
        if fits:
            fitted, apart = held_out(graph, batches, self.evaluator)
        stages, judges = self._floored(plan, graph, fitted, apart, named_by)
        self.report.passes += [stage.report for stage in stages]
        return stages[-1].after if stages else graph, judges[0] if judges else None

    def _floored(
        self, plan: Recipe, graph: Graph, fitted: Feeds, apart: Feeds, named_by: Graph
    ) -> tuple[list[Stage], list[Judge]]:
        """The passes of a recipe that is fitted on some batches and judged by others too."""
        steps = plan.build()
        own = FITTED if any(step.fits for step in steps) else "calibration inputs"
        judges = [
            Judge(
                graph, thinned(graph, feeds, JUDGED, self.evaluator), self.evaluator, on, named_by
            )
            for feeds, on in ((apart, HELD_OUT), (fitted, own))
            if feeds
        ]
        asked = judges if plan.floor > 0 and all(step.comparable for step in steps) else []
        floored = Floored(self._one_by_one(fitted), lowest(asked), plan.floor, self.tell)
        return floored(steps, plan.insists, graph), judges

    def _one_by_one(self, calibration: Feeds) -> RunPass:
        def run(
            step: Pass, graph: Graph, spared: frozenset[str], memo: dict[str, Any]
        ) -> tuple[Graph, PassReport]:
            pipeline = self._pipeline([step], calibration)
            pipeline.spared, pipeline.memo = spared, memo
            return pipeline.run(graph), pipeline.reports[0]

        return run

    def cases(
        self,
        before: Path | Built,
        graph: Graph,
        sizes: Sequence[Sizes] | None,
        calibration: Feeds,
        example: Feed | None,
        *,
        traced: bool,
    ) -> Cases:
        """The inputs to measure with. They are tried on the input model in another process: what is made
        up may be anything, and end it."""
        batches = calibration or ([example] if example is not None and not traced else [])
        with Trial(registry.REFERENCE, before, reference().Choice().to_json()) as trial:
            found = find_cases(graph, trial, sizes=sizes, batches=batches, example=example)
        self.report.decisions += found.remarks
        return found

    def best(
        self,
        before: Path | Built,
        levels: Sequence[tuple[str, Graph]],
        cases: Sequence[Case],
    ) -> Kept:
        """The first of ``levels`` that is not slower than the input, at its best choice; else the
        input itself."""
        with Bench([case.feed for case in cases]) as bench:
            default, slower = reference().Choice(), False
            original = bench.start(registry.REFERENCE, before, default.to_json())
            for name, graph in levels:
                try:
                    candidate = self._search(name, graph, bench, cases)
                except InvalidModel as error:
                    self.report.decisions.append(f"{name} was not kept: {error}")
                    continue
                results = self._final(name, original, candidate, cases)
                if not any(r.slower for r in results):
                    self.report.decisions += _as_fast(name, results, cases)
                    self.report.decisions.append(f"kept {candidate.way.label}")
                    return Kept(self.runtime, candidate.model, candidate.way.choice, graph)
                bench.release(candidate.worker)
                self.report.decisions.append(_slower(name, results, cases))
                slower = True
        why = "nothing that was tried is faster" if slower else "nothing that was tried can be run"
        self.report.decisions.append(f"kept the input: {why}")
        model = reference().read_built(before) if isinstance(before, Path) else before
        return Kept(registry.REFERENCE, model, default, None)

    def _search(self, name: str, graph: Graph, bench: Bench, cases: Sequence[Case]) -> Candidate:
        choice = self.start
        if self.backend.tune is not None and self.database is not None:
            sizes = [case.sizes for case in cases]
            choice, tuned = self.backend.tune(graph, choice, sizes, self.tell, self.database)
            self.report.decisions += tuned.remarks
        variants = {name: graph}
        for suffix, step in self.backend.VARIANTS.items():
            pipeline = Pipeline([registry.find_pass(step)()])
            other = pipeline.run(graph)
            if pipeline.reports[0].rewrites:
                variants[f"{name}+{suffix}"] = other
        known = None
        if self.database is not None:
            known = Known(self.database, self.backend, [case.feed for case in cases])
        search = Search(
            self.backend, self.runtime, bench, range(len(cases)), self.tell, self._record, known
        )
        self.tell(0, 1, f"building {name} for runtime {self.runtime}")
        candidate = search(variants, choice)
        self.report.decisions += known.remarks if known is not None else []
        return candidate

    def _record(self, label: str, results: list[Paired] | str, known: bool) -> None:
        row: dict[str, Any] = {"candidate": label, "against": "the best so far"}
        if isinstance(results, str):
            self.report.measured.append({**row, "refused": results})
            return
        if known:
            row["reused"] = True
        self.report.measured += [{**row, "feed": i, **r.to_json()} for i, r in enumerate(results)]

    def _final(
        self, name: str, original: Worker, candidate: Candidate, cases: Sequence[Case]
    ) -> list[Paired]:
        results = []
        for i, case in enumerate(cases):
            self.tell(
                i,
                len(cases),
                f"measuring {name} against the input at {case.label} (about {SECONDS:.0f} s)",
            )
            results.append(compare(original, candidate.worker, i, FINAL_PAIRS, _settled))
            self.report.measured.append(
                {
                    "candidate": candidate.way.label,
                    "against": "the input",
                    "sizes": case.label,
                    **results[-1].to_json(),
                }
            )
            if results[-1].slower:
                break  # It is not kept, whatever the others say.
        return results

    def check_built(self, kept: Kept, feeds: Feeds) -> None:
        """That what was built computes what its graph says, where this machine can run it.

        Raises:
            PassFailed: it does not.
        """
        if kept.graph is None or not self.target.is_host or not feeds:
            return
        backend, choice = registry.backend(kept.runtime), kept.choice
        check_built(
            kept.graph,
            _runner(kept.runtime, kept.model, choice),
            lambda graph: _runner(kept.runtime, backend.build(graph, choice), choice),
            feeds,
            self.evaluator,
            kept.runtime,
        )

    def tell_fidelity(self, before: Path | Built, kept: Kept, judge: Judge) -> None:
        """Of what was built, where this machine can run it; else of its graph."""
        if kept.graph is None or not judge.feeds:
            return
        self.tell(0, 1, "comparing outputs")
        try:
            of_graph = judge(kept.graph)
        except TersorError as error:
            of_graph = None
            self.report.decisions.append(f"its scores were not judged: {error}")
        if self.target.is_host:
            self.report.fidelity = judge.of_built(
                _as_written(before),
                _runner(kept.runtime, kept.model, kept.choice),
                of_graph,
            )
        elif of_graph is not None:
            self.report.fidelity = of_graph
            self.report.decisions.append(
                f"fidelity is that of the graph in ONNX Runtime: {self.target.name} is not this machine"
            )


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


def _settled(so_far: Paired) -> bool:
    """Whether it is plain that a result is slower than the input, or is not."""
    return so_far.pairs >= DECIDING_PAIRS and so_far.differs_from(NOT_SLOWER)


def _as_fast(name: str, results: Sequence[Paired], cases: Sequence[Case]) -> list[str]:
    """Lines for results that are told as less than 1.00x and yet are kept."""
    return [
        f"{name} is as fast as the input at {case.label}: {result.speedup:.2f}x is within what two runs of "
        "the same show"
        for result, case in zip(results, cases, strict=True)
        if f"{result.speedup:.2f}" < "1.00"
    ]


def _slower(name: str, results: Sequence[Paired], cases: Sequence[Case]) -> str:
    worst, case = min(zip(results, cases, strict=False), key=lambda pair: pair[0].speedup)
    return (
        f"{name} is slower than the input at {case.label} ({worst.speedup:.2f}x) and was not kept"
    )
