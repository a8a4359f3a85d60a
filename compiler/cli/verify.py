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
        typer.Option(metavar="MODEL", help="Also check that it was built from this model."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Check that a compiled model is intact.

    Checks hashes, sizes, manifest and interface, and that the model loads.
    """
    import tersor
    from tersor.cli.models import naming

    with naming(artifact):
        verified = tersor.verify(artifact, model=input)
    files = len(verified.files)
    total = size(sum(verified.files.values()))
    for note in verified.notes:
        say(f"note: {note}")
    origin = f", built from {input}" if input is not None else ""
    say(f"{artifact} is intact: {files} {'file' if files == 1 else 'files'}, {total}{origin}")
