"""Output of the command line: results to stdout, errors and progress to stderr.

Names in a model are untrusted text: markup is off on every console, and control characters, which could
rewrite what the terminal shows, are replaced.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tersor.errors import one_line, size

__all__ = [
    "ProgressReporter", "clean", "complain", "number", "output", "say", "show", "size", "table",
]  # fmt: skip
WIDTH_IN_FILES = 160  # Columns if output goes to a file or a pipe.
QUIET_SECONDS = 1.0  # Without a terminal, shorter commands print no progress.
SECONDS_PER_LINE = 5.0
LONGEST = 4000  # Characters of a line or cell.


def clean(text: object) -> str:
    """``text`` on one line of bounded length, without control and invisible characters."""
    return one_line(text, LONGEST)


def output(stderr: bool = False) -> Console:
    """A console on the current ``sys.stdout`` (or ``sys.stderr``)."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_IN_FILES
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def say(line: str = "") -> None:
    """Prints a line to stdout, unwrapped."""
    output().print(clean(line), soft_wrap=True)


def complain(line: str) -> None:
    """Prints a line to stderr."""
    output(stderr=True).print(clean(line), soft_wrap=True)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table; columns whose name starts with ``>`` are aligned to the right."""
    empty = Table(box=None, pad_edge=False, title=title, title_justify="left", header_style="bold")
    for column in columns:
        right = column.startswith(">")
        empty.add_column(
            column.removeprefix(">"), justify="right" if right else "left", overflow="fold"
        )
    return empty


def show(table: Table) -> None:
    """Prints a table whose cells have been through :func:`clean`."""
    output().print(table)


class ProgressReporter:
    """Prints the progress of one command. A context manager; call it with (done, total, what).

    On a terminal a transient progress bar; elsewhere an occasional line.
    """

    def __init__(self) -> None:
        self._start = self._printed = time.monotonic()
        self._last = ""
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=output(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("")

    def __enter__(self) -> ProgressReporter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=clean(what), completed=done, total=total)
            return
        now = time.monotonic()
        waited = now - self._start > QUIET_SECONDS
        due = not self._last or now - self._printed > SECONDS_PER_LINE
        if waited and due and what != self._last:
            complain(f"[{now - self._start:.0f} s] {what}")
            self._printed, self._last = now, what


def number(count: Any) -> str:
    """An integer with thousands separators."""
    return f"{count:,}" if isinstance(count, int) else clean(count)
