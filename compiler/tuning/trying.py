"""Searches for sizes of the dynamic dims at which a model runs, guided by the runtime's error messages.

    tried  batch=1 sequence=32      Pad reflect: post-pad (64) exceeds maximum allowed (31)
    tried  batch=1 sequence=64      Conv: Invalid input shape: {96}
    tried  batch=1 sequence=256     it runs

A size is changed to a number in the error message, to its double, its half, or 1. Changes that leave the
message the same are dropped. Changes that get the model past the node at which it stopped are followed first.
"""

from __future__ import annotations

import heapq
import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence

from tersor.analysis.feeds import Sizes

Attempt = Callable[[Sizes], str | None]  # Why the model does not run at these sizes; None: it runs.
TRIES = 120
SECONDS = 10.0
SLOW = 1.0  # Seconds. Sizes that take longer are not changed further: larger ones would take more memory too.
LARGEST = 16384
_NODE = re.compile(r"Name:'([^']*)'")
_NUMBER = re.compile(r"(?<![\w.])\d{1,5}(?![\w.])")
_REASON = "Status Message:"  # ONNX Runtime's messages say where before the last one of these, and why after.


def search_sizes(
    start: Sizes, attempt: Attempt, *, tries: int = TRIES, seconds: float = SECONDS
) -> tuple[dict[str, int] | None, str]:
    """(sizes at which the model runs, or None; the refusal at ``start``)."""
    first = attempt(start)
    if first is None:
        return dict(start), ""
    end = time.monotonic() + seconds
    order = itertools.count()
    # Ordered by nodes passed (most first), then by steps taken (fewest first).
    work = [(0, 0, next(order), dict(start), first)]
    known, places, left = {_key(start)}, {_place(first)}, tries
    while work:
        passed, steps, _, sizes, refusal = heapq.heappop(work)
        for changed in _changed(sizes, refusal):
            if _key(changed) in known:
                continue
            if not left or time.monotonic() > end:
                return None, first
            left -= 1
            known.add(_key(changed))
            began = time.monotonic()
            new = attempt(changed)
            if new is None:
                return changed, first
            if new == refusal or time.monotonic() - began > SLOW:
                continue
            better = _place(new) not in places
            places.add(_place(new))
            entry = (passed - better, steps + 1, next(order), changed, new)
            heapq.heappush(work, entry)
            if better:
                # Follow it first; the other changes of these sizes come later.
                heapq.heappush(work, (passed, steps, next(order), sizes, refusal))
                break
    return None, first


def _changed(sizes: Sizes, refusal: str) -> Iterator[dict[str, int]]:
    """``sizes`` with one changed, numbers from the refusal first."""
    named = [n for n in _numbers(refusal) if 0 < n <= LARGEST]
    # The batch, usually the first dim, is seldom the reason.
    names = list(reversed(list(sizes)))
    # A table's out-of-range index is the size minus one.
    blamed = [n for n in names if sizes[n] > 1 and {sizes[n], sizes[n] - 1} & set(named)]
    for name in [*blamed, *(n for n in names if n not in blamed)]:
        size = sizes[name]
        # A 1 in the message seldom means this dim.
        longer = [n for n in named if n > 1]
        others = longer if name in blamed else []
        for value in dict.fromkeys([*others, size * 2, size // 2, 1, *longer]):
            if value != size and 0 < value <= LARGEST:
                yield {**sizes, name: value}


def _numbers(refusal: str) -> Sequence[int]:
    return list(dict.fromkeys(int(n) for n in _NUMBER.findall(refusal.rpartition(_REASON)[2])))


def _place(refusal: str) -> str:
    """Where the model stopped: the innermost node, or the refusal's text without numbers."""
    nodes = _NODE.findall(refusal)
    return nodes[-1] if nodes else _NUMBER.sub("", refusal)


def _key(sizes: Sizes) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(sizes.items()))
