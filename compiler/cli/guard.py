"""One-line errors for every command: ``error: what is wrong, and what to do``.

Exit codes: 1 bad input or failure, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tersor.cli.console import complain
from tersor.errors import TersorError

FAILED, USAGE, INTERRUPTED = 1, 2, 130
_DEBUG = "tersor.debug"


def _remember(context: typer.Context, value: bool) -> bool:
    context.meta[_DEBUG] = value
    return value


# Evaluated here, before the command runs; commands only declare it.
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show the traceback of an error.", callback=_remember, is_eager=True
    ),
]

# An option of all commands that read ONNX files.
HfCache = Annotated[
    bool,
    typer.Option(
        "--allow-hf-cache",
        help="Follow links of the Hugging Face cache to external data.",
    ),
]

Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Also read torch's .pt2, .pt and .pth files and a folder's pickled weights, which can run code.",
    ),
]

TrustCode = Annotated[
    bool,
    typer.Option("--trust", help="Run compiled models that are machine code (runtime tvm)."),
]


class Guarded(TyperGroup):
    """A group of commands whose errors are one line on stderr."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """As typer's; always ends in SystemExit."""
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except typer.Abort:
            complain("interrupted")
            code = INTERRUPTED
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            code = _usage(error)
        raise SystemExit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """As typer's, but exceptions become a line and an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            # typer handles its own exceptions, and a closed output pipe.
            typers = isinstance(error, typer.Exit | typer.Abort | BrokenPipeError)
            if typers or hasattr(error, "format_message"):
                raise
            raise _failed(error, ctx) from None


def explain(error: BaseException) -> str:
    """What is wrong, in one line."""
    if isinstance(error, TersorError):
        first, *rest = str(error).splitlines() or [type(error).__name__]
        return f"{first} (more with --debug)" if rest else first
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name!r} is not installed; 'tersor doctor' lists what is needed"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "not enough memory"
    text = " ".join(str(error).split())
    return (
        f"unexpected {type(error).__name__}{f': {text}' if text else ''}; "
        "this is a bug in Tersor: run it with --debug and report the output"
    )


def _failed(error: BaseException, context: Any) -> typer.Exit:
    if context.meta.get(_DEBUG):
        complain_trace(error)
    complain(f"error: {explain(error)}")
    return typer.Exit(FAILED)


def complain_trace(error: BaseException) -> None:
    """Prints a traceback to stderr."""
    for line in traceback.format_exception(error):
        for part in line.rstrip().splitlines():
            complain(part)


def _usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    text = " ".join(error.format_message().split())
    path = context.command_path if context is not None else "tersor"
    complain(f"error: {text.rstrip('.')} (see '{path} --help')")
    return int(getattr(error, "exit_code", USAGE))
