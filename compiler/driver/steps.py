"""The steps up to what is measured: import, optimize, recipe, candidates. Those after it are in
:mod:`tersor.driver.choosing`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tersor.analysis.feeds import Sizes, check_sizes
from tersor.calibration.sources import Given, open_calibration
from tersor.driver.doubts import overflow_remarks
from tersor.driver.floors import Floored, Stage
from tersor.driver.floors import Run as RunPass
from tersor.driver.job import Job
from tersor.driver.judging import Judge, lowest
from tersor.driver.recipe import Recipe
from tersor.errors import InvalidOption
from tersor.frontends import Imported, load_model
from tersor.ir import Graph, print_graph
from tersor.pipeline import Feeds, Pass, Pipeline, Step, legality, registry
from tersor.pipeline.report import Decision, PassReport
from tersor.pipeline.rewriting import Feed
from tersor.statistics.thinning import held_out, thinned
from tersor.tuning.cases import example_feed

JUDGED = 256  # Samples that fidelity is told on.
FITTED = "the calibration inputs that it was fitted on"
HELD_OUT = "calibration inputs that were not fitted on"


@dataclass(frozen=True)
class Source:
    """What is compiled.

    Attributes:
        batches: of calibration; empty without.
        example: example inputs by name, where they are the graph's.
        sizes: of the open dims to measure at; None: by default.
    """

    imported: Imported
    batches: Feeds
    example: Feed | None
    sizes: Sequence[Sizes] | None

    @property
    def graph(self) -> Graph:
        """As it was imported."""
        return self.imported.graph


# -- import ----------------------------------------------------------------------------------------


def read(
    job: Job,
    model: Any,
    calibration: Given | None,
    batch: int | None,
    *,
    sizes: Sequence[Sizes] | None = None,
    buckets: Sequence[Sizes] = (),
    **options: Any,
) -> Source:
    """The model, and the inputs that came with it. ``options``: of :func:`tersor.frontends.load_model`.

    Raises:
        InvalidModel, Unsupported: what is wrong with the model, and where.
        InvalidOption: inputs or sizes that are not the model's.
    """
    job.tell(0, 1, "importing")
    imported = load_model(model, **options)
    graph = imported.graph
    legality.check("import", graph)
    shapes = check_sizes(graph, sizes) if sizes is not None else None
    check_sizes(graph, buckets)
    batches = open_calibration(calibration, graph, batch=batch, model=model, files=imported.files)
    job.report.say("import", imported.remarks)
    job.report.say("import", overflow_remarks(graph, job.target, job.runtime))
    return Source(imported, batches, _example(imported, options.get("example_inputs")), shapes)


def _example(imported: Imported, example: Any) -> Feed | None:
    """Example inputs as arrays by name. What a torch module was traced with need not be the graph's
    inputs; it is no example then.

    Raises:
        InvalidOption: those of another model do not fit.
    """
    if example is None:
        return None
    found = example_feed(imported.graph, example)
    if found is None and not imported.traced:
        takes = ", ".join(f"{v.name} {v.type}" for v in imported.graph.inputs)
        raise InvalidOption(f"the example inputs are not what the model takes: {takes}")
    return found


# -- optimize --------------------------------------------------------------------------------------


def optimize(job: Job, graph: Graph) -> Graph:
    """The graph after the lossless passes that every compilation begins with."""
    return run_passes(job, registry.optimization(), graph, stage="optimize")


def run_passes(
    job: Job, passes: Sequence[Step], graph: Graph, calibration: Feeds = (), stage: str = "import"
) -> Graph:
    """The graph after ``passes``, which the report lists; what holds at ``stage`` holds for it.

    Raises:
        PassFailed: it does not.
    """
    pipeline = _pipeline(job, passes, calibration)
    result = pipeline.run(graph)
    job.report.passes += pipeline.reports
    legality.check(stage, result, lambda: legality.replay(pipeline.ran, graph))
    return result


def _pipeline(job: Job, passes: Sequence[Step], calibration: Feeds) -> Pipeline:
    return Pipeline(
        passes,
        target=job.target,
        calibration=calibration,
        evaluate=job.evaluator,
        supports=job.backend.supports,
        faster_sums=job.backend.FASTER_SUMS,
        latency=job.latency,
        progress=job.tell,
    )


# -- recipe ----------------------------------------------------------------------------------------


def apply_recipe(
    job: Job, plan: Recipe, graph: Graph, source: Source
) -> tuple[Graph, Judge | None]:
    """The recipe's passes on ``graph``, as far as its floor allows, and what judged them by calibration.

    Raises:
        InvalidOption: a budget that was asked for cannot be had, or not above the floor.
    """
    fits = any(step.fits for step in plan.build())
    fitted: Feeds = source.batches
    apart: Feeds = ()
    if fits:
        fitted, apart = held_out(graph, fitted, job.evaluator)
    stages, judges = _floored(job, plan, graph, fitted, apart, source.graph)
    job.report.passes += [stage.report for stage in stages]
    made = [("the model", graph), *((stage.step.label, stage.after) for stage in stages)]
    legality.check("recipe", made[-1][1], lambda: made)
    return stages[-1].after if stages else graph, judges[0] if judges else None


def _floored(
    job: Job, plan: Recipe, graph: Graph, fitted: Feeds, apart: Feeds, named_by: Graph
) -> tuple[list[Stage], list[Judge]]:
    """The passes of a recipe that is fitted on some batches and judged by others too. ``named_by``: the
    graph as its user knows it."""
    steps, run = plan.build(), job.evaluator
    own = FITTED if any(step.fits for step in steps) else "calibration inputs"
    judges = [
        Judge(graph, thinned(graph, feeds, JUDGED, run), run, on, named_by)
        for feeds, on in ((apart, HELD_OUT), (fitted, own))
        if feeds
    ]
    asked = judges if plan.floor > 0 and all(step.comparable for step in steps) else []
    floored = Floored(_one_by_one(job, fitted), lowest(asked), plan.floor, job.tell)
    return floored(steps, plan.insists, graph), judges


def _one_by_one(job: Job, calibration: Feeds) -> RunPass:
    def run(
        step: Pass, graph: Graph, spared: frozenset[str], memo: dict[str, Any]
    ) -> tuple[Graph, PassReport]:
        pipeline = _pipeline(job, [step], calibration)
        pipeline.spared, pipeline.memo = spared, memo
        return pipeline.run(graph), pipeline.reports[0]

    return run


# -- candidates ------------------------------------------------------------------------------------


def candidates(
    job: Job, plan: Recipe, optimized: Graph, compressed: Graph
) -> list[tuple[str, Graph]]:
    """Graphs that may be the result, by name, the preferred one first: what the recipe made and, where that
    is lossy, what it was made of."""
    steps = plan.build()
    if all(step.keeps.values is not None for step in steps):
        return [(plan.name, compressed)]
    if _same(optimized, compressed, job.report.passes[-len(steps) :]):
        reason = "; ".join(filter(None, (_quantized(optimized), "only lossless passes count")))
        job.report.decisions.append(Decision("recipe", reason, "unchanged", plan.name))
        return [(plan.name, compressed)]
    return [(plan.name, compressed), ("fp32", optimized)]


def _quantized(graph: Graph) -> str:
    """Why there is little to compress in a graph that somebody compressed."""
    from tersor.analysis.layers import weight_readers  # Here: `import tersor` loads no onnx.

    weights = {r.weight for r in weight_readers(graph) if r.weight.is_constant}
    done = sum(not weight.stores_floats for weight in weights)
    return f"{done} of {len(weights)} weights are quantized already" if done else ""


def _same(before: Graph, after: Graph, between: Sequence[PassReport]) -> bool:
    """Whether the passes between two graphs changed nothing."""
    if any(p.rewrites for p in between):
        return False
    return print_graph(before) == print_graph(after)  # Passes need not count what they rewrite.
