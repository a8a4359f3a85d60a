"""``tersor compile`` and ``tersor convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.console import ProgressReporter
from tersor.cli.guard import Debug, HfCache, Trust

In = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="An ONNX file, or a Hugging Face or sentence-transformers model folder.",
    ),
]
Recipe = Annotated[
    str,
    typer.Option(metavar="RECIPE", help="A recipe listed by 'tersor recipes', or a .toml file."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="An option of the recipe's passes, as in quantize-dynamic.max_error=0.05 (a:b for a list), or "
        "the fidelity floor of the outputs, as in floor=0.95. Repeatable.",
    ),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="DIM=N,…",
        help="Sizes of the dynamic dims to measure at, as in batch=8,sequence=128. Repeatable.",
    ),
]
Database = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Earlier measurements on this machine, including those of 'tersor tune'. Default: a file in "
        "the user's cache.",
    ),
]
Target = Annotated[
    str,
    typer.Option(
        metavar="TARGET", help="cpu (this machine), or a target listed by 'tersor targets'."
    ),
]
Runtime = Annotated[
    str,
    typer.Option(
        metavar="RUNTIME",
        help="The runtime of the result: ort (ONNX Runtime) or tvm (a library of machine code).",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|FOLDER",
        help="Real inputs. An .npz file has an array for each input name: samples stacked along the batch "
        "axis, or one value for all samples. Each .npz file of a folder is one batch. Texts (.txt, one per "
        "line, or .jsonl) are tokenized with tokenizer.json of the model's folder.",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Batch size for --calibration files and texts. Default: 8 if the batch size is dynamic.",
    ),
]
Vocabulary = Annotated[
    Path | None,
    typer.Option(
        "--vocabulary",
        metavar="FILE.txt",
        help="Texts, one per line. Token ids that they do not use are removed from the embeddings, logits "
        "and tokenizer of a model folder, and the others are renumbered.",
    ),
]
Portable = Annotated[
    bool, typer.Option("--portable", help="Use only standard ONNX ops, for other runtimes.")
]
Skips = Annotated[
    bool, typer.Option("--skips", help="List the places where rules did not apply, and why.")
]


def compile(
    model: In,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="A path ending in .onnx: only the model (not with runtime tvm). Any other path: a folder "
            "with the model, its settings and the report.",
        ),
    ],
    recipe: Recipe = "int8",
    set: Settings = None,
    target: Target = "cpu",
    runtime: Runtime = "ort",
    calibration: Calibration = None,
    batch: Batch = None,
    size: Sizes = None,
    bucket: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIM=N,…",
            help="Sizes of the dynamic dims that get specialized code, as in batch=8,sequence=128 (only "
            "runtime tvm). Repeatable.",
        ),
    ] = None,
    vocabulary: Vocabulary = None,
    portable: Portable = False,
    no_measure: Annotated[
        bool,
        typer.Option("--no-measure", help="Build with default settings; the speedup is unknown."),
    ] = False,
    database: Database = None,
    skips: Skips = False,
    allow_hf_cache: HfCache = False,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Compress a model and build it for a target.

    A result that is slower than the input is discarded.
    """
    import tersor
    from tersor.artifact import check_path
    from tersor.cli import inputs, report
    from tersor.cli.models import naming
    from tersor.pipeline import registry

    check_path(out, runtime)
    inputs.check_output(out, model)
    settings = inputs.pairs(set or (), "--set")
    sizes = inputs.sizes(size or ())
    buckets = inputs.sizes(bucket or (), "--bucket")
    tersor.Recipe.of(recipe).override(settings)
    tersor.Target.parse(target)
    registry.backend(runtime)
    texts = inputs.vocabulary(vocabulary, out, calibration) if vocabulary is not None else None
    with ProgressReporter() as progress, naming(model):
        artifact = tersor.compile(
            model
            if texts is None
            else tersor.trim_vocabulary(model, texts, allow_hf_cache=allow_hf_cache, trust=trust),
            target,
            recipe,
            runtime=runtime,
            calibration=calibration,
            batch=batch,
            settings=settings,
            sizes=sizes,
            buckets=buckets or (),
            portable=portable,
            measure=not no_measure,
            database=database,
            allow_hf_cache=allow_hf_cache,
            trust=trust,
            progress=progress,
        )
    artifact.save(out)
    report.show_report(artifact.report, skips=skips)
    report.show_written(out, artifact.model)


def convert(
    model: In,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The file to write, OUT.onnx; with runtime tvm a folder."
        ),
    ],
    passes: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--passes",
            metavar="LIST",
            help="Passes to run, in order: name{option=1,other=a:b},name. Default: all lossless passes "
            "(canonicalization and fusion).",
        ),
    ] = None,
    target: Target = "cpu",
    runtime: Runtime = "ort",
    calibration: Calibration = None,
    batch: Batch = None,
    portable: Portable = False,
    skips: Skips = False,
    allow_hf_cache: HfCache = False,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Run only the given passes, without measuring."""
    import tersor
    from tersor.artifact import check_path
    from tersor.cli import inputs, passlist, report
    from tersor.cli.models import naming
    from tersor.pipeline import registry

    if out.suffix != ".onnx" and runtime not in registry.CODE:
        raise typer.BadParameter(f"{out} does not end in .onnx", param_hint="'OUT'")
    check_path(out, runtime)
    inputs.check_output(out, model)
    steps = passlist.build_passes(passes) if passes is not None else None
    tersor.Target.parse(target)
    registry.backend(runtime)
    with ProgressReporter() as progress, naming(model):
        artifact = tersor.convert(
            model,
            steps,
            target=target,
            runtime=runtime,
            calibration=calibration,
            batch=batch,
            portable=portable,
            allow_hf_cache=allow_hf_cache,
            trust=trust,
            progress=progress,
        )
    artifact.save(out)
    report.show_report(artifact.report, skips=skips)
    report.show_written(out, artifact.model)
