"""Sizes of the open dims at which a model runs, found by running it and reading why it did not.

    tried  batch=1 sequence=32      Pad reflect: post-pad (64) exceeds maximum allowed (31)
    tried  batch=1 sequence=64      Conv: Invalid input shape: {96}
    tried  batch=1 sequence=256     it runs

A size changes to a number that the refusal names, to its double, its half, or 1. What leaves the refusal as
it was has nothing to do with it, and is not followed. What gets the model past the node at which it stopped
is followed first.
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
SLOW = (
    1.0  # Seconds of a try from which none is changed on: larger sizes would take more, memory too.
)
LARGEST = 16384  # Of a size.
_NODE = re.compile(r"Name:'([^']*)'")
_NUMBER = re.compile(r"(?<![\w.])\d{1,5}(?![\w.])")
_REASON = "Status Message:"  # Of ONNX Runtime; before the last of it stands where, not why.


def search_sizes(
    start: Sizes, attempt: Attempt, *, tries: int = TRIES, seconds: float = SECONDS
) -> tuple[dict[str, int] | None, str]:
    """(sizes at which the model runs, the refusal at ``start``); None: none were found."""
    first = attempt(start)
    if first is None:
        return dict(start), ""
    end = time.monotonic() + seconds
    order = itertools.count()
    # The refusals that were passed (most first), the steps taken (least first).
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
            found = attempt(changed)
            if found is None:
                return changed, first
            if found == refusal or time.monotonic() - began > SLOW:
                continue
            better = _place(found) not in places
            places.add(_place(found))
            entry = (passed - better, steps + 1, next(order), changed, found)
            heapq.heappush(work, entry)
            if better:
                # It is looked at first; what else could be changed here comes after that.
                heapq.heappush(work, (passed, steps, next(order), sizes, refusal))
                break
    return None, first


def _changed(sizes: Sizes, refusal: str) -> Iterator[dict[str, int]]:
    """``sizes`` with one changed, what the refusal names first."""
    named = [n for n in _numbers(refusal) if 0 < n <= LARGEST]
    # The last of the dims are the long ones; the batch, mostly the first, is seldom the reason.
    names = list(reversed(list(sizes)))
    # The last index, which a table refuses, is one less.
    blamed = [n for n in names if sizes[n] > 1 and {sizes[n], sizes[n] - 1} & set(named)]
    for name in [*blamed, *(n for n in names if n not in blamed)]:
        size = sizes[name]
        # A dim of 1 fits many things that were not meant.
        longer = [n for n in named if n > 1]
        others = longer if name in blamed else []
        for value in dict.fromkeys([*others, size * 2, size // 2, 1, *longer]):
            if value != size and 0 < value <= LARGEST:
                yield {**sizes, name: value}


def _numbers(refusal: str) -> Sequence[int]:
    return list(dict.fromkeys(int(n) for n in _NUMBER.findall(refusal.rpartition(_REASON)[2])))


def _place(refusal: str) -> str:
    """Where the model stopped: the innermost node, or the words of the refusal."""
    nodes = _NODE.findall(refusal)
    return nodes[-1] if nodes else _NUMBER.sub("", refusal)


def _key(sizes: Sizes) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(sizes.items()))
