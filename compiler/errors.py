"""Errors that users see. Each message is one line: which file, which node, what is wrong, what to do."""

from __future__ import annotations

import unicodedata

LONGEST = 600  # Characters of a message: names in a file may have a million.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # Unicode categories of invisible characters.


class TersorError(Exception):
    """Base of all errors that Tersor raises deliberately; the command line prints it as one line."""


class InvalidModel(TersorError):
    """The input model is damaged or contradicts itself."""


class Unsupported(TersorError):
    """The input is valid, but Tersor cannot translate it."""


class InvalidGraph(TersorError):
    """A graph breaks a rule of the IR: a bug in a pass or frontend, never the user's fault."""


class InvalidOption(TersorError):
    """An option, recipe, target or name that does not exist or is not applicable."""


class PassFailed(TersorError):
    """A pass broke a claim it makes (structure, types, values)."""


def suggest(word: str, choices: object) -> str:
    """``", did you mean 'x'?"`` when one of ``choices`` is close to ``word``, else an empty string."""
    import difflib

    close = difflib.get_close_matches(word, [str(c) for c in choices], n=1)  # type: ignore[attr-defined]
    return f", did you mean {close[0]!r}?" if close else ""


def size(count: int | None) -> str:
    """Human-readable bytes: ``22.7 MB``; ``unknown`` for None."""
    if count is None:
        return "unknown"
    amount: float = count
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}" if unit != "B" else f"{count} B"
        amount /= 1000
    return f"{amount:.2f} GB"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def one_line(text: object, limit: int | None = None) -> str:
    """``text`` on one line, without control and invisible characters, and with its middle cut out if it
    is longer than ``limit``: names in a model are untrusted text."""
    line = str(text)
    if limit is not None and len(line) > limit:
        line = f"{line[: limit // 2]} … {line[-limit // 4 :]}"
    return "".join(
        " "
        if c in "\n\t"
        else "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(c) in _HIDDEN
        else c
        for c in line
    )
