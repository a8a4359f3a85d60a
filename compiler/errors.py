"""Errors that users see. Each message is one line: which file, which node, what is wrong, what to do."""

from __future__ import annotations


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
