"""``tersor compile`` and ``tersor convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.console import Teller
from tersor.cli.guard import Debug, HfCache, Trust

In = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="An ONNX file or a Hugging Face model folder (of sentence-transformers too).",
    ),
]
Recipe = Annotated[
    str,
    typer.Option(metavar="RECIPE", help="A name that 'tersor recipes' lists, or a .toml file."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="An option of the recipe's passes, as in quantize-dynamic.max_error=0.05; "
        "a:b for a list; floor=0.95, what the outputs have to keep. Repeatable.",
    ),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="DIM=N,…",
        help="Sizes of the open dims to measure at, as in batch=8,sequence=128. Repeatable.",
    ),
]
Database = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What was measured here before, by 'tersor tune' too; without it the user's cache.",
    ),
]
Target = Annotated[
    str, typer.Option(metavar="TARGET", help="cpu (this machine) or what 'tersor targets' lists.")
]
Runtime = Annotated[
    str,
    typer.Option(
        metavar="RUNTIME",
        help="What runs the result: ort (ONNX Runtime) or tvm (a library of machine code).",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|FOLDER",
        help="Real inputs. An .npz file holds an array for each input by its name: samples stacked along the "
        "batch axis, or what is the same for all of them. Of a folder each .npz file is a batch as it is. "
        "Texts (.txt, one a line, or .jsonl) go through the tokenizer.json of the model's folder.",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Samples or texts of --calibration that run at once: 8 of a file, where the model leaves it "
        "open.",
    ),
]
Vocabulary = Annotated[
    Path | None,
    typer.Option(
        "--vocabulary",
        metavar="FILE.txt",
        help="Texts, one a line. Tables, logits and the tokenizer of a model folder keep only what they "
        "use, and count ids anew.",
    ),
]
Portable = Annotated[
    bool, typer.Option("--portable", help="Only standard ONNX ops, for other runtimes to load.")
]
Skips = Annotated[bool, typer.Option("--skips", help="List where rules did not apply, and why.")]


def compile(
    model: In,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="A path that ends in .onnx: the model alone (not with runtime tvm). Any other: a folder "
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
            help="Sizes of the open dims that get code of their own beside the code for all others, as in "
            "batch=8,sequence=128 (only runtime tvm). Repeatable.",
        ),
    ] = None,
    vocabulary: Vocabulary = None,
    portable: Portable = False,
    no_measure: Annotated[
        bool,
        typer.Option(
            "--no-measure", help="Build the defaults; whether they are faster is unknown."
        ),
    ] = False,
    database: Database = None,
    skips: Skips = False,
    allow_hf_cache: HfCache = False,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    """Compress a model and build it for a target.

    What measures slower than the input is not kept.
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
    with Teller() as tell, naming(model):
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
            progress=tell,
        )
    artifact.save(out)
    report.show_report(artifact.report, skips=skips)
    report.show_written(out, artifact.model)


def convert(
    model: In,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The file to write, OUT.onnx; with runtime tvm a folder to write."
        ),
    ],
    passes: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--passes",
            metavar="LIST",
            help="Passes to run, in order: name{option=1,other=a:b},name. Without it: all that "
            "keep the model's numbers (canonicalization and fusion).",
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
    """Run just the passes that you name; nothing is measured."""
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
    with Teller() as tell, naming(model):
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
            progress=tell,
        )
    artifact.save(out)
    report.show_report(artifact.report, skips=skips)
    report.show_written(out, artifact.model)
