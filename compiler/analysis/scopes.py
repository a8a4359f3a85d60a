"""Which nodes a pass is for: patterns of scopes (``encoder.layer.0.*``), as ``fnmatch`` has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from tersor.errors import InvalidOption
from tersor.pipeline import Context

SHOWN = 5  # Scopes that a message names.


class Scoped(Protocol):
    """A node, or what else has a scope."""

    @property
    def scope(self) -> str: ...

    @property
    def label(self) -> str: ...


S = TypeVar("S", bound=Scoped)


def chosen(
    nodes: Iterable[S], scopes: Sequence[str], ignored: Sequence[str], context: Context
) -> list[S]:
    """Those of ``nodes`` whose scope fits one of ``scopes`` (none given: all) and none of ``ignored``.

    Raises:
        InvalidOption: a pattern that no node's scope fits.
    """
    candidates = list(nodes)
    for pattern in (*scopes, *ignored):
        if not any(fnmatchcase(n.scope, pattern) for n in candidates):
            raise InvalidOption(f"no layer's scope fits {pattern!r}; {_there_are(candidates)}")
    kept = []
    for node in candidates:
        if scopes and not _fits(node, scopes):
            continue  # Not asked for: nothing to explain.
        if _fits(node, ignored):
            context.skip(node, "its scope is ignored by option")
        else:
            kept.append(node)
    return kept


def _fits(node: Scoped, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(node.scope, pattern) for pattern in patterns)


def _there_are(nodes: Sequence[Scoped]) -> str:
    names = [name for name in dict.fromkeys(n.scope for n in nodes) if name]
    if not names:
        return "no layer of its kind has a scope" if nodes else "there is no layer of its kind"
    more = ", …" if len(names) > SHOWN else ""
    return f"there are {', '.join(names[:SHOWN])}{more}"
