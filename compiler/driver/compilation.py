"""``compile``: import, optimize, the recipe, lower, measure, keep the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tersor.analysis.feeds import Sizes, check_sizes, default_sizes
from tersor.analysis.summary import Summary, summarize
from tersor.artifact import Artifact
from tersor.artifact import manifest as manifests
from tersor.artifact.identity import as_imported, identity_of
from tersor.backend import Backend
from tersor.built import Built, built_size
from tersor.calibration.sources import Given, open_calibration
from tersor.driver.doubts import compared_with, fusion_remarks, overflow_remarks
from tersor.driver.job import JUDGED, Feed, Job, Kept, Progress
from tersor.driver.judging import Judge
from tersor.driver.recipe import Recipe
from tersor.driver.safety import check_lossless
from tersor.errors import InvalidModel, InvalidOption, Unsupported
from tersor.frontends import Imported, load_model
from tersor.ir import Graph, print_graph
from tersor.pipeline import Feeds, Pass, registry
from tersor.pipeline.report import PassReport, Report, TuneReport
from tersor.statistics.thinning import thinned
from tersor.target import Target
from tersor.tuning.cases import ADVICE, Cases, example_feed
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
    tell: Progress = progress or (lambda done, total, what: None)
    chosen = Target.parse(target) if isinstance(target, str) else target
    plan = Recipe.of(recipe).override(settings or {})
    backend = _backend(runtime, chosen)
    start = backend.Choice.of(chosen, portable=portable, buckets=buckets)
    measure_here = measure and chosen.is_host
    held = Database(database) if measure_here else None
    tell(0, 1, "importing")
    imported = load_model(
        model,
        example_inputs=example_inputs,
        dynamic_shapes=dynamic_shapes,
        input_names=input_names,
        output_names=output_names,
        allow_hf_cache=allow_hf_cache,
        trust=trust,
    )
    shapes = check_sizes(imported.graph, sizes) if sizes is not None else None
    check_sizes(imported.graph, buckets)
    batches = _calibration(imported, model, calibration, batch)
    report = Report(decisions=list(imported.remarks))
    report.decisions += overflow_remarks(imported.graph, chosen, runtime)
    example = _example(imported, example_inputs)
    job = Job(backend, runtime, chosen, start, report, tell, held)
    fused = job.run_passes(registry.optimization(), imported.graph)
    lossless = len(report.passes)
    cases = Cases()
    before = _input_model(imported, report) if measure_here or batches else b""
    if measure_here:
        tell(0, 1, "looking for inputs to measure with")
        cases = job.cases(before, fused, shapes, batches, example, traced=imported.traced)
        if cases.cases:
            job.latency = Stopwatch(backend, runtime, start, cases.cases)
    made_up: Feeds = [case.feed for case in cases.cases]
    known = batches or made_up
    tell(0, 1, "checking that outputs are what they were")
    check_lossless(registry.optimization(), imported.graph, fused, known, job.evaluator)
    compressed, judge = job.compress(plan, fused, batches, imported.graph)
    levels = [(plan.name, compressed)]
    lossy = any(step.keeps.values is None for step in plan.build())
    if lossy and _same(fused, compressed, report.passes[lossless:]):
        report.decisions.append(
            f"{plan.name} found nothing to compress: only lossless passes count"
        )
    elif lossy:
        levels.append(("fp32", fused))
    given = identity_of(imported)
    if cases.cases:
        kept = job.best(before, levels, cases.cases)
    else:
        why = f"the model does not run on made-up inputs ({cases.refusal}): {ADVICE}"
        if not measure:
            why = "measuring was turned off"
        elif not chosen.is_host:
            why = f"{chosen.name} is not this machine"
        report.decisions.append(f"not measured: {why}; whether it is faster is unknown")
        tell(0, 1, f"building {plan.name} for runtime {runtime}")
        kept = Kept(runtime, backend.build(compressed, start), start, compressed)
    if judge is None and cases.cases:
        on = MADE_UP if example is None else "example inputs"
        judge = Judge(fused, made_up, job.evaluator, on)
    tell(0, 1, "checking what was built")
    job.check_built(kept, known)
    if judge is not None:
        report.decisions += fusion_remarks(before, [*islice(judge.feeds, 1)])
        job.tell_fidelity(compared_with(imported.graph, before), kept, judge)
    report.size_before = manifests.identity_size(given)
    report.size_after = built_size(kept.model)
    manifest = {
        **_manifest(given, plan, chosen, compressed),
        "calibration": manifests.calibration_identity(batches),
    }
    return Artifact(
        kept.model, kept.runtime, kept.choice.to_json(), manifest, report, imported.files
    )


def convert(
    model: Any,
    passes: Sequence[Pass] | None = None,
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
    tell: Progress = progress or (lambda done, total, what: None)
    chosen = Target.parse(target) if isinstance(target, str) else target
    backend = _backend(runtime, chosen)
    choice = backend.Choice.of(chosen, portable=portable)
    imported = load_model(model, allow_hf_cache=allow_hf_cache, trust=trust)
    unmeasured = "not measured: whether it is faster is unknown"
    overflows = overflow_remarks(imported.graph, chosen, runtime)
    report = Report(decisions=[*imported.remarks, *overflows, unmeasured])
    job = Job(backend, runtime, chosen, choice, report, tell)
    steps = registry.optimization() if passes is None else list(passes)
    batches = _calibration(imported, model, calibration, batch)
    graph = job.run_passes(steps, imported.graph, batches)
    given = identity_of(imported)
    built = backend.build(graph, choice)
    job.check_built(Kept(runtime, built, choice, graph), batches)
    if batches:
        before = _input_model(imported, report)
        told = thinned(imported.graph, batches, JUDGED, job.evaluator)
        judge = Judge(imported.graph, told, job.evaluator)
        before = compared_with(imported.graph, before)
        job.tell_fidelity(before, Kept(runtime, built, choice, graph), judge)
    report.size_before = manifests.identity_size(given)
    report.size_after = built_size(built)
    plan = Recipe(name="convert", description=", ".join(step.label for step in steps))
    manifest = _manifest(given, plan, chosen, graph)
    return Artifact(built, runtime, choice.to_json(), manifest, report, imported.files)


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
    tell: Progress = progress or (lambda done, total, what: None)
    chosen = Target.parse(target) if isinstance(target, str) else target
    plan = Recipe.of(recipe).override(settings or {})
    backend = _backend(runtime, chosen)
    if not chosen.is_host:
        raise InvalidOption(
            f"target {chosen.name} is not this machine, and cannot be tuned for here"
        )
    if backend.tune is None:
        raise InvalidOption(f"runtime {runtime} has nothing to tune")
    held = Database(database)
    tell(0, 1, "importing")
    imported = load_model(model, **options)
    shapes = check_sizes(imported.graph, sizes) if sizes is not None else None
    batches = _calibration(imported, model, calibration, batch)
    start = backend.Choice.of(chosen)
    job = Job(backend, runtime, chosen, start, Report(), tell)
    fused = job.run_passes(registry.optimization(), imported.graph)
    graph, _ = job.compress(plan, fused, batches, imported.graph)
    _, report = backend.tune(graph, start, shapes or default_sizes(imported.graph), tell, held)
    return report


def inspect(model: Any, **options: Any) -> Summary:
    """What is in ``model``, as plain data; ``options`` as :func:`compile` has them for torch modules.

    Raises:
        InvalidModel, Unsupported, InvalidOption: as :func:`compile`.
    """
    return summarize(load_model(model, **options).graph)


def _backend(runtime: str, target: Target) -> Backend:
    backend = registry.backend(runtime)
    if target.kind not in backend.KINDS:
        kinds = ", ".join(backend.KINDS)
        raise Unsupported(f"runtime {runtime} builds for {kinds}, not for {target.name}")
    return backend


def _input_model(imported: Imported, report: Report) -> Path | Built:
    """What the result is compared with: the file itself where the reference runtime takes it, else the
    imported graph as it came."""
    if imported.original is not None:
        try:
            registry.reference().open_session(imported.original)
        except InvalidModel as error:
            report.decisions.append(f"compared with the input as imported: {error}")
        else:
            return imported.original
    return as_imported(imported)


def _calibration(imported: Imported, model: Any, given: Given | None, batch: int | None) -> Feeds:
    return open_calibration(given, imported.graph, batch=batch, model=model, files=imported.files)


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


def _same(before: Graph, after: Graph, between: Sequence[PassReport]) -> bool:
    """Whether the passes between two graphs changed nothing."""
    if any(p.rewrites for p in between):
        return False
    return print_graph(before) == print_graph(after)  # Passes need not count what they rewrite.


def _manifest(
    given: dict[str, Any], recipe: Recipe, target: Target, graph: Graph
) -> dict[str, Any]:
    return {
        "input": given,
        "interface": manifests.interface(graph),
        "recipe": recipe.model_dump(mode="json"),
        "target": {"name": target.name, "cpu": target.cpu, "features": sorted(target.features)},
        "versions": manifests.versions(),
    }
