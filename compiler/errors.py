"""Errors that users see. Each message is one line: which file, which node, what is wrong, what to do."""

from __future__ import annotations

import unicodedata

LONGEST = 600  # Characters of a message: names in a file may have a million.
_HIDDEN = {
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Zl",
    "Zp",
}  # Unicode's classes of what is not a visible character.


class TersorError(Exception):
    """Base of all errors that tersor raises on purpose; the command line prints it as one line."""


class InvalidModel(TersorError):
    """The input model is broken or says something that cannot be."""


class Unsupported(TersorError):
    """The input is valid, but nothing here can translate it."""


class InvalidGraph(TersorError):
    """A graph breaks a rule of the IR: a bug in a pass or frontend, never the user's fault."""


class InvalidOption(TersorError):
    """An option, recipe, target or name that does not exist or does not fit."""


class PassFailed(TersorError):
    """A pass broke a claim it makes (structure, types, values)."""


def suggest(word: str, choices: object) -> str:
    """``", did you mean 'x'?"`` when one of ``choices`` is close to ``word``, else an empty string."""
    import difflib

    close = difflib.get_close_matches(word, [str(c) for c in choices], n=1)  # type: ignore[attr-defined]
    return f", did you mean {close[0]!r}?" if close else ""


def size(count: int | None) -> str:
    """Bytes for people: ``22.7 MB``; an unknown size is said to be unknown."""
    if count is None:
        return "unknown"
    amount: float = count
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}" if unit != "B" else f"{count} B"
        amount /= 1000
    return f"{amount:.2f} GB"


def one_line(text: object, limit: int | None = None) -> str:
    """``text`` on one line, without control characters and invisible ones, and its middle left out
    where it is longer than ``limit``: names in a model are anyone's text."""
    told = str(text)
    if limit is not None and len(told) > limit:
        told = f"{told[: limit // 2]} … {told[-limit // 4 :]}"
    return "".join(
        " "
        if c in "\n\t"
        else "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(c) in _HIDDEN
        else c
        for c in told
    )
