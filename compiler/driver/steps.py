"""The steps before measuring: import, optimize, recipe, candidates. The later ones are in
:mod:`tersor.driver.choosing`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tersor.analysis.feeds import Sizes, check_sizes
from tersor.calibration.sources import Given, open_calibration
from tersor.driver.deviations import overflow_remarks
from tersor.driver.floors import FloorSearch, Stage
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

JUDGED = 256  # Samples that fidelity is measured on.
FITTED = "the calibration inputs used for fitting"
HELD_OUT = "calibration inputs not used for fitting"


@dataclass(frozen=True)
class Source:
    """The imported model and the inputs given with it.

    Attributes:
        batches: calibration batches; empty if none were given.
        example: example inputs by name, if they match the graph's inputs.
        sizes: sizes of the dynamic dims to measure at; None: the default sizes.
    """

    imported: Imported
    batches: Feeds
    example: Feed | None
    sizes: Sequence[Sizes] | None

    @property
    def graph(self) -> Graph:
        """The graph as imported."""
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
    """Imports the model and opens its inputs. ``options``: of :func:`tersor.frontends.load_model`.

    Raises:
        InvalidModel, Unsupported: what is wrong with the model, and where.
        InvalidOption: inputs or sizes do not match the model.
    """
    job.progress(0, 1, "importing")
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
    """Example inputs as arrays by name. The inputs that a torch module was traced with need not match the
    graph's; then there is no example.

    Raises:
        InvalidOption: the inputs do not match a model that was not traced.
    """
    if example is None:
        return None
    feed = example_feed(imported.graph, example)
    if feed is None and not imported.traced:
        inputs = ", ".join(f"{v.name} {v.type}" for v in imported.graph.inputs)
        raise InvalidOption(f"the example inputs do not match the model's inputs: {inputs}")
    return feed


# -- optimize --------------------------------------------------------------------------------------


def optimize(job: Job, graph: Graph) -> Graph:
    """The graph after the lossless passes that every compilation starts with."""
    return run_passes(job, registry.optimization(), graph, stage="optimize")


def run_passes(
    job: Job, passes: Sequence[Step], graph: Graph, calibration: Feeds = (), stage: str = "import"
) -> Graph:
    """The graph after ``passes``, which are added to the report. Checks that it is legal at ``stage``.

    Raises:
        PassFailed: it is not.
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
        progress=job.progress,
    )


# -- recipe ----------------------------------------------------------------------------------------


def apply_recipe(
    job: Job, plan: Recipe, graph: Graph, source: Source
) -> tuple[Graph, Judge | None]:
    """Runs the recipe's passes on ``graph``, as strongly as its floor allows; also returns the judge that
    used calibration inputs, if there were any.

    Raises:
        InvalidOption: an explicit budget cannot be met, or only below the floor.
    """
    fits = any(step.fits for step in plan.build())
    fitted: Feeds = source.batches
    apart: Feeds = ()
    if fits:
        fitted, apart = held_out(graph, fitted, job.evaluator)
    stages, judges = _floored(job, plan, graph, fitted, apart, source.graph)
    job.report.passes += [stage.report for stage in stages]
    history = [("the model", graph), *((stage.step.label, stage.after) for stage in stages)]
    legality.check("recipe", history[-1][1], lambda: history)
    return stages[-1].after if stages else graph, judges[0] if judges else None


def _floored(
    job: Job, plan: Recipe, graph: Graph, fitted: Feeds, apart: Feeds, named_by: Graph
) -> tuple[list[Stage], list[Judge]]:
    """Runs a recipe's passes, fitted on ``fitted`` and judged on both kinds of batches. ``named_by``: the
    graph as imported."""
    steps, run = plan.build(), job.evaluator
    own = FITTED if any(step.fits for step in steps) else "calibration inputs"
    judges = [
        Judge(graph, thinned(graph, feeds, JUDGED, run), run, on, named_by)
        for feeds, on in ((apart, HELD_OUT), (fitted, own))
        if feeds
    ]
    active = judges if plan.floor > 0 and all(step.comparable for step in steps) else []
    floored = FloorSearch(_one_by_one(job, fitted), lowest(active), plan.floor, job.progress)
    return floored(steps, plan.explicit_budgets, graph), judges


def _one_by_one(job: Job, calibration: Feeds) -> RunPass:
    def run(
        step: Pass, graph: Graph, excluded: frozenset[str], memo: dict[str, Any]
    ) -> tuple[Graph, PassReport]:
        pipeline = _pipeline(job, [step], calibration)
        pipeline.excluded, pipeline.memo = excluded, memo
        return pipeline.run(graph), pipeline.reports[0]

    return run


# -- candidates ------------------------------------------------------------------------------------


def candidates(
    job: Job, plan: Recipe, optimized: Graph, compressed: Graph
) -> list[tuple[str, Graph]]:
    """(name, graph) of possible results, the preferred one first: the recipe's result and, if that is lossy,
    the optimized graph it started from."""
    steps = plan.build()
    if all(step.keeps.values is not None for step in steps):
        return [(plan.name, compressed)]
    if _same(optimized, compressed, job.report.passes[-len(steps) :]):
        reason = "; ".join(
            filter(None, (_quantized(optimized), "only lossless passes changed the graph"))
        )
        job.report.decisions.append(Decision("recipe", reason, "unchanged", plan.name))
        return [(plan.name, compressed)]
    return [(plan.name, compressed), ("fp32", optimized)]


def _quantized(graph: Graph) -> str:
    """A remark if the input graph is quantized already; empty if not."""
    from tersor.analysis.layers import weight_readers  # Here: `import tersor` loads no onnx.

    weights = {r.weight for r in weight_readers(graph) if r.weight.is_constant}
    done = sum(not weight.stores_floats for weight in weights)
    return f"{done} of {len(weights)} weights are quantized already" if done else ""


def _same(before: Graph, after: Graph, between: Sequence[PassReport]) -> bool:
    """Whether the passes between two graphs changed nothing."""
    if any(p.rewrites for p in between):
        return False
    return print_graph(before) == print_graph(after)  # Not every pass counts its rewrites.
