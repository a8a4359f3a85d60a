"""``compile``: import, optimize, recipe, candidates, measure, choose; and what else shares these steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tersor.analysis.feeds import Sizes, default_sizes
from tersor.analysis.summary import Summary, summarize
from tersor.artifact import Artifact
from tersor.artifact import manifest as manifests
from tersor.artifact.identity import identity_of
from tersor.built import built_size
from tersor.calibration.sources import Given
from tersor.driver.checking import check_built, input_model, report_fidelity
from tersor.driver.choosing import Kept, choose, find_inputs, unmeasured
from tersor.driver.choosing import measure as measure_candidates
from tersor.driver.doubts import compared_with, fusion_remarks
from tersor.driver.job import Job, Progress, begin
from tersor.driver.judging import Judge
from tersor.driver.recipe import Recipe
from tersor.driver.safety import check_lossless
from tersor.driver.steps import (
    JUDGED,
    Source,
    apply_recipe,
    candidates,
    optimize,
    read,
    run_passes,
)
from tersor.errors import InvalidOption
from tersor.frontends import load_model
from tersor.ir import Graph
from tersor.pipeline import Feeds, Step, passes_in, registry
from tersor.pipeline.report import Decision, TuneReport
from tersor.statistics.thinning import thinned
from tersor.target import Target
from tersor.tuning.cases import ADVICE, Cases
from tersor.tuning.database import Database
from tersor.tuning.latency import Stopwatch

MADE_UP = "made-up inputs: give calibration for real ones"


def compile(
    model: Any,
    target: str | Target = "cpu",
    recipe: str | Path | Mapping[str, Any] | Recipe = "int8",
    *,
    runtime: str = "ort",
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    calibration: Given | None = None,
    batch: int | None = None,
    settings: Mapping[str, Any] | None = None,
    sizes: Sequence[Sizes] | None = None,
    buckets: Sequence[Sizes] = (),
    portable: bool = False,
    measure: bool = True,
    database: str | Path | None = None,
    allow_hf_cache: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Compresses ``model`` and builds it for ``target``; never slower than the input where measured.

    Args:
        model: an ONNX file (path, bytes, ModelProto), an ``nn.Module``, an ``ExportedProgram``, an
            ``fx.GraphModule``, a Hugging Face model directory (of sentence-transformers too: its modules
            are part of the model), or what :func:`trim_vocabulary` makes.
        target: ``cpu`` (this machine), ``cpu:<isa>``, or a :class:`Target`.
        recipe: a shipped recipe's name, a ``.toml`` file, or plain data.
        runtime: ``ort``, or ``tvm``: a library of machine code. Where nothing that it builds is faster
            than the input in ONNX Runtime, the artifact is the input, for ONNX Runtime.
        example_inputs: what a torch module is traced with; of other models, real inputs to measure with
            where there is no calibration. A mapping by name or a sequence.
        dynamic_shapes: as torch.export takes them, or names: ``{"input_ids": {0: "batch"}}``.
        input_names, output_names: the compiled model's, in order; by default the input model's.
        calibration: inputs from data like what the model will see, never made up; one batch is in memory at
            a time. A ``.npz`` file of samples stacked by input, a folder of such, each a batch; texts, which
            the tokenizer of the model's folder takes apart (``.txt``, one a line, or ``.jsonl``; package
            ``tokenizers``); or batches by input name: a list, or whatever gives them one by one (a
            DataLoader, a generator, ONNX Runtime's ``CalibrationDataReader``), which is read once, into a
            temporary file.
        batch: how many samples of a calibration file, or texts, run at once; by default 8, and all of each
            file of a folder.
        settings: options of the recipe's passes: ``{"quantize-dynamic.max_error": 0.05}``.
        sizes: sizes of the open dims to measure at: ``[{"batch": 8, "sequence": 128}]``. By default
            those of the calibration batches or example inputs; without any, 1x32, 1x128 and 8x128 or, where
            the model does not run at these, sizes near them at which it does.
        buckets: sizes of the open dims that get code of their own; all others share one. Runtime ``tvm``
            only.
        portable: only standard ONNX ops, so that any runtime loads the result.
        measure: False skips all measuring: defaults are built, and that it pays is unknown.
        database: the file of what was measured on this machine before, by :func:`tune` or in searches, and
            what is measured now; by default this user's. Where another is named, none of that is used.
        allow_hf_cache: an ONNX file's external data may be links of the Hugging Face cache.
        trust: read torch's ``.pt2``, ``.pt`` and ``.pth`` files and a directory's pickled weights too,
            which can run code then.
        progress: called with (done, total, what).

    Raises:
        InvalidModel, Unsupported: what is wrong with the model, and where.
        InvalidOption: what is wrong with an argument.
    """
    plan = Recipe.of(recipe).override(settings or {})
    job = begin(runtime, target, progress, portable=portable, buckets=buckets)
    measured = measure and job.target.is_host
    job.database = Database(database) if measured else None
    source = read(
        job,
        model,
        calibration,
        batch,
        sizes=sizes,
        buckets=buckets,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        input_names=input_names,
        output_names=output_names,
        allow_hf_cache=allow_hf_cache,
        trust=trust,
    )
    optimized = optimize(job, source.graph)
    before = input_model(job, source.imported) if measured or source.batches else b""
    cases = find_inputs(job, before, optimized, source) if measured else Cases()
    if cases.cases:
        job.latency = Stopwatch(job.backend, runtime, job.start, cases.cases)
    made_up: Feeds = [case.feed for case in cases.cases]
    known = source.batches or made_up
    job.tell(0, 1, "checking that outputs are what they were")
    remarks = check_lossless(registry.optimization(), source.graph, optimized, known, job.evaluator)
    job.report.say("judge", remarks)
    compressed, judge = apply_recipe(job, plan, optimized, source)
    graphs = candidates(job, plan, optimized, compressed)
    given = identity_of(source.imported)
    if cases.cases:
        kept = choose(
            job, before, measure_candidates(job, before, graphs, cases.cases), cases.cases
        )
    else:
        why = _not_measured(job, cases, measure)
        job.report.decisions.append(Decision("measure", why, "unmeasured"))
        kept = unmeasured(job, *graphs[0])
    if judge is None and cases.cases:
        on = MADE_UP if source.example is None else "example inputs"
        judge = Judge(optimized, made_up, job.evaluator, on)
    check_built(job, kept, known)
    if judge is not None:
        job.report.say("judge", fusion_remarks(before, [*islice(judge.feeds, 1)]))
        report_fidelity(job, compared_with(source.graph, before), kept, judge)
    return _artifact(job, source, given, plan, kept, compressed)


def convert(
    model: Any,
    passes: Sequence[Step] | None = None,
    *,
    target: str | Target = "cpu",
    runtime: str = "ort",
    calibration: Given | None = None,
    batch: int | None = None,
    portable: bool = False,
    allow_hf_cache: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Runs just these passes (None: the lossless ones) and lowers the result; nothing is measured.

    Raises:
        As :func:`compile`.
    """
    job = begin(runtime, target, progress, portable=portable)
    source = read(job, model, calibration, batch, allow_hf_cache=allow_hf_cache, trust=trust)
    job.report.decisions.append(Decision("measure", "convert measures nothing", "unmeasured"))
    steps: list[Step] = registry.optimization() if passes is None else list(passes)
    graph = run_passes(job, steps, source.graph, source.batches)
    given = identity_of(source.imported)
    kept = unmeasured(job, "the graph", graph)
    check_built(job, kept, source.batches)
    if source.batches:
        before = compared_with(source.graph, input_model(job, source.imported))
        told = thinned(source.graph, source.batches, JUDGED, job.evaluator)
        report_fidelity(job, before, kept, Judge(source.graph, told, job.evaluator))
    plan = Recipe(name="convert", description=", ".join(step.label for step in passes_in(steps)))
    return _artifact(job, source, given, plan, kept, graph)


def tune(
    model: Any,
    target: str | Target = "cpu",
    recipe: str | Path | Mapping[str, Any] | Recipe = "int8",
    *,
    runtime: str = "tvm",
    sizes: Sequence[Sizes] | None = None,
    calibration: Given | None = None,
    batch: int | None = None,
    settings: Mapping[str, Any] | None = None,
    database: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> TuneReport:
    """Measures how the kernels of a compilation best divide their work, for :func:`compile` to find in
    ``database``. Nothing is built. Ctrl-C keeps what is known by then, and the next call goes on there.

    Args:
        sizes, calibration, batch, settings, database: as :func:`compile` has them.
        options: as :func:`compile` has them for torch modules.

    Raises:
        As :func:`compile`; InvalidOption too for a runtime that has nothing to tune, or another machine.
    """
    plan = Recipe.of(recipe).override(settings or {})
    job = begin(runtime, target, progress)
    if not job.target.is_host:
        raise InvalidOption(
            f"target {job.target.name} is not this machine, and cannot be tuned for here"
        )
    if job.backend.tune is None:
        raise InvalidOption(f"runtime {runtime} has nothing to tune")
    held = Database(database)
    source = read(job, model, calibration, batch, sizes=sizes, **options)
    graph, _ = apply_recipe(job, plan, optimize(job, source.graph), source)
    wanted = source.sizes or default_sizes(source.graph)
    _, report = job.backend.tune(graph, job.start, wanted, job.tell, held)
    return report


def inspect(model: Any, **options: Any) -> Summary:
    """What is in ``model``, as plain data; ``options`` as :func:`compile` has them for torch modules.

    Raises:
        InvalidModel, Unsupported, InvalidOption: as :func:`compile`.
    """
    return summarize(load_model(model, **options).graph)


def _not_measured(job: Job, cases: Cases, measure: bool) -> str:
    why = f"the model does not run on made-up inputs ({cases.refusal}): {ADVICE}"
    if not measure:
        why = "measuring was turned off"
    elif not job.target.is_host:
        why = f"{job.target.name} is not this machine"
    return why


def _artifact(
    job: Job, source: Source, given: dict[str, Any], plan: Recipe, kept: Kept, graph: Graph
) -> Artifact:
    """The result. ``given``: the identity of the input; ``graph``: what passes made of it."""
    report, target = job.report, job.target
    report.size_before = manifests.identity_size(given)
    report.size_after = built_size(kept.model)
    report.decoded = kept.decoded
    manifest = {
        "input": given,
        "interface": manifests.interface(graph),
        "recipe": plan.model_dump(mode="json"),
        "target": {"name": target.name, "cpu": target.cpu, "features": sorted(target.features)},
        "versions": manifests.versions(),
        "calibration": manifests.calibration_identity(source.batches),
    }
    choice, files = kept.choice.to_json(), source.imported.files
    return Artifact(kept.model, kept.runtime, choice, manifest, report, files)
