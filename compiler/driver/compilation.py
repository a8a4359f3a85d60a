"""``compile`` in steps: import, optimize, recipe, candidates, measure, choose. Also ``convert``, ``tune``."""

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
from tersor.driver.choosing import Chosen, build_unmeasured, choose, measurement_cases
from tersor.driver.choosing import measure as measure_candidates
from tersor.driver.deviations import fusion_remarks, with_exact_sums
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
    """Compresses ``model`` and builds it for ``target``; if measured, never slower than the input.

    Args:
        model: an ONNX file (path, bytes, ModelProto), an ``nn.Module``, an ``ExportedProgram``, an
            ``fx.GraphModule``, a Hugging Face or sentence-transformers model directory (with pooling and
            dense modules), or the result of :func:`trim_vocabulary`.
        target: ``cpu`` (this machine), ``cpu:<isa>``, or a :class:`Target`.
        recipe: a shipped recipe's name, a ``.toml`` file, or plain data.
        runtime: ``ort``, or ``tvm``: a library of machine code. If no TVM build is faster than the input in
            ONNX Runtime, the artifact is the input, for ONNX Runtime.
        example_inputs: inputs to trace a torch module with; for other models, real inputs to measure with
            if there is no calibration. A mapping by name or a sequence.
        dynamic_shapes: as for torch.export, or names: ``{"input_ids": {0: "batch"}}``.
        input_names, output_names: the compiled model's, in order; by default the input model's.
        calibration: real inputs, representative of the model's use. A ``.npz`` file of samples stacked by
            input; a folder of such files, each a batch; texts, tokenized by the tokenizer of the model's
            folder (``.txt``, one per line, or ``.jsonl``; package ``tokenizers``); or batches by input name:
            a list, or an iterable (a DataLoader, a generator, ONNX Runtime's ``CalibrationDataReader``),
            which is read once, into a temporary file. One batch is in memory at a time.
        batch: batch size for a calibration file or texts, by default 8; each file of a folder is one batch
            by default.
        settings: options of the recipe's passes: ``{"quantize-dynamic.max_error": 0.05}``.
        sizes: sizes of the dynamic dims to measure at: ``[{"batch": 8, "sequence": 128}]``. By default
            those of the calibration batches or example inputs; without any, 1x32, 1x128 and 8x128, or the
            nearest sizes at which the model runs.
        buckets: sizes of the dynamic dims that get specialized code; all other sizes share one variant.
            Runtime ``tvm`` only.
        portable: only standard ONNX ops, so that any runtime loads the result.
        measure: False skips all measuring: default settings are built, and the speedup is unknown.
        database: the file of earlier measurements on this machine, by :func:`tune` or in searches; new ones
            are added. By default this user's; another file replaces it.
        allow_hf_cache: allow external data of an ONNX file to be links of the Hugging Face cache.
        trust: also read torch's ``.pt2``, ``.pt`` and ``.pth`` files and a directory's pickled weights,
            which can run code.
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
    cases = measurement_cases(job, before, optimized, source) if measured else Cases()
    if cases.cases:
        job.latency = Stopwatch(job.backend, runtime, job.start, cases.cases)
    made_up: Feeds = [case.feed for case in cases.cases]
    known = source.batches or made_up
    job.progress(0, 1, "checking that outputs are unchanged")
    remarks = check_lossless(registry.optimization(), source.graph, optimized, known, job.evaluator)
    job.report.say("judge", remarks)
    compressed, judge = apply_recipe(job, plan, optimized, source)
    graphs = candidates(job, plan, optimized, compressed)
    given = identity_of(source.imported)
    if cases.cases:
        chosen = choose(
            job, before, measure_candidates(job, before, graphs, cases.cases), cases.cases
        )
    else:
        why = _not_measured(job, cases, measure)
        job.report.decisions.append(Decision("measure", why, "unmeasured"))
        chosen = build_unmeasured(job, *graphs[0])
    if judge is None and cases.cases:
        on = MADE_UP if source.example is None else "example inputs"
        judge = Judge(optimized, made_up, job.evaluator, on)
    check_built(job, chosen, known)
    if judge is not None:
        job.report.say("judge", fusion_remarks(before, [*islice(judge.feeds, 1)]))
        report_fidelity(job, with_exact_sums(source.graph, before), chosen, judge)
    return _artifact(job, source, given, plan, chosen, compressed)


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
    """Runs exactly these passes (None: the lossless ones) and lowers the result, without measuring.

    Raises:
        As :func:`compile`.
    """
    job = begin(runtime, target, progress, portable=portable)
    source = read(job, model, calibration, batch, allow_hf_cache=allow_hf_cache, trust=trust)
    job.report.decisions.append(Decision("measure", "convert measures nothing", "unmeasured"))
    steps: list[Step] = registry.optimization() if passes is None else list(passes)
    graph = run_passes(job, steps, source.graph, source.batches)
    given = identity_of(source.imported)
    chosen = build_unmeasured(job, "the graph", graph)
    check_built(job, chosen, source.batches)
    if source.batches:
        before = with_exact_sums(source.graph, input_model(job, source.imported))
        sampled = thinned(source.graph, source.batches, JUDGED, job.evaluator)
        report_fidelity(job, before, chosen, Judge(source.graph, sampled, job.evaluator))
    plan = Recipe(name="convert", description=", ".join(step.label for step in passes_in(steps)))
    return _artifact(job, source, given, plan, chosen, graph)


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
    """Measures how the kernels of a compilation best divide their work and stores the results in
    ``database``, where :func:`compile` reads them. No model is built. Ctrl-C keeps the results so far; the
    next call resumes there.

    Args:
        sizes, calibration, batch, settings, database: as in :func:`compile`.
        options: as in :func:`compile` for torch modules.

    Raises:
        As :func:`compile`; InvalidOption also for a runtime that has nothing to tune, or another machine.
    """
    plan = Recipe.of(recipe).override(settings or {})
    job = begin(runtime, target, progress)
    if not job.target.is_host:
        raise InvalidOption(
            f"target {job.target.name} is not this machine: tune on a machine that has it"
        )
    if job.backend.tune is None:
        raise InvalidOption(f"runtime {runtime} has nothing to tune")
    results = Database(database)
    source = read(job, model, calibration, batch, sizes=sizes, **options)
    graph, _ = apply_recipe(job, plan, optimize(job, source.graph), source)
    wanted = source.sizes or default_sizes(source.graph)
    _, report = job.backend.tune(graph, job.start, wanted, job.progress, results)
    return report


def inspect(model: Any, **options: Any) -> Summary:
    """A summary of ``model`` as plain data; ``options`` as in :func:`compile` for torch modules.

    Raises:
        InvalidModel, Unsupported, InvalidOption: as :func:`compile`.
    """
    return summarize(load_model(model, **options).graph)


def _not_measured(job: Job, cases: Cases, measure: bool) -> str:
    if not measure:
        return "measuring was turned off"
    if not job.target.is_host:
        return f"{job.target.name} is not this machine"
    return f"the model does not run on made-up inputs ({cases.refusal}): {ADVICE}"


def _artifact(
    job: Job, source: Source, given: dict[str, Any], plan: Recipe, chosen: Chosen, graph: Graph
) -> Artifact:
    """The artifact. ``given``: the identity of the input; ``graph``: the graph after all passes."""
    report, target = job.report, job.target
    report.size_before = manifests.identity_size(given)
    report.size_after = built_size(chosen.model)
    report.decoded = chosen.decoded
    manifest = {
        "input": given,
        "interface": manifests.interface(graph),
        "recipe": plan.model_dump(mode="json"),
        "target": {"name": target.name, "cpu": target.cpu, "features": sorted(target.features)},
        "versions": manifests.versions(),
        "calibration": manifests.calibration_identity(source.batches),
    }
    choice, files = chosen.choice.to_json(), source.imported.files
    return Artifact(chosen.model, chosen.runtime, choice, manifest, report, files)
