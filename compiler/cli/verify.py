"""``tersor verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.console import say, size
from tersor.cli.guard import Debug


def verify(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="A compiled model's folder, or an ONNX file.")
    ],
    input: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Check as well that it was made of this model."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Check that a compiled model is whole.

    Hashes, sizes, manifest, interface, and that the model opens.
    """
    import tersor
    from tersor.cli.models import naming

    with naming(artifact):
        found = tersor.verify(artifact, model=input)
    files = len(found.files)
    total = size(sum(found.files.values()))
    for note in found.notes:
        say(f"note: {note}")
    of = f", made of {input}" if input is not None else ""
    say(f"{artifact} is whole: {files} {'file' if files == 1 else 'files'}, {total}{of}")
