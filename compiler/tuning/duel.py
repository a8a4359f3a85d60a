"""Two systems on several inputs, for no longer than it takes to see which is faster over all of them.

    mean over the inputs of log(speedup)   against   log(MIN_GAIN),   in standard errors of that mean

Three above it are a gain; two below it are none, as whoever stays with what is known loses little. Where a
run takes long, three pairs of each are a start; then the input that tells most for its time gets one more,
until it is plain. What is not plain in the end is a tie, and what is known stays.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tersor.tuning.measure import LEAST_PAIRS, Comparison, Paired, Worker

HOPELESS = 0.9  # So slow on one feed by three quarters of the pairs: the other feeds are not asked.
# A smaller gain is not worth leaving what is known to work, nor the time to be sure of it: what is chosen
# would be another from run to run.
MIN_GAIN = 1.03
SECONDS = 3.0  # After the least pairs, which are always run.
LONG = 50.0  # Milliseconds of a run that averages over what goes on in the machine.
FEW = 3  # Pairs of long runs to begin with.
ALONE = 9  # Pairs to begin with where there is one feed only.
SCATTER = 0.01  # Of a pair, at least: a few that are alike by chance prove nothing.


def duel(a: Worker, b: Worker, feeds: Sequence[int], pairs: int) -> list[Paired]:
    """How both compare on each of ``feeds``, in at most ``pairs`` runs of each; the rest of the feeds is left
    out where one shows that b is hopeless."""
    held: list[Comparison] = []
    for feed in feeds:
        held.append(Comparison(a, b, feed))
        _begin(held[-1], min(pairs, ALONE if len(feeds) == 1 else LEAST_PAIRS))
        if held[-1].result.high < HOPELESS:
            return [one.result for one in held]
    end = time.monotonic() + SECONDS
    while not is_plain(results := [one.result for one in held]) and time.monotonic() < end:
        more = [one for one in held if one.pairs < pairs]
        if not more:
            break
        max(more, key=_promise).add()
    return results


def _begin(one: Comparison, least: int) -> None:
    one.add()
    few = min(least, FEW)
    while one.pairs < (few if one.result.a_ms > LONG else least):
        one.add()


def _promise(one: Comparison) -> float:
    """How much of the variance of its median one more pair takes away, a millisecond."""
    told = one.result
    return _error(told) ** 2 / told.pairs / (told.a_ms + told.b_ms)


def _error(told: Paired) -> float:
    """The standard error of log(speedup)."""
    return max(told.error / told.speedup, SCATTER / math.sqrt(told.pairs))


def over_all(results: Sequence[Paired]) -> float:
    """The geometric mean of the speedups."""
    return math.exp(float(np.mean([math.log(told.speedup) for told in results])))


def is_plain(results: Sequence[Paired]) -> bool:
    """Whether it is plain on which side of MIN_GAIN more pairs would end up."""
    error = math.sqrt(sum(_error(told) ** 2 for told in results)) / len(results)
    gain = math.log(over_all(results) / MIN_GAIN)
    return gain > 3 * error or gain < -2 * error


def is_gain(results: Sequence[Paired]) -> bool:
    """Whether the challenger is faster over all feeds, and so plainly that it is not the weather: by
    the geometric mean of the lower quartiles too."""
    surely = over_all([replace(told, speedup=told.low) for told in results])
    return over_all(results) > MIN_GAIN and surely > 1.0


def has_won(results: Sequence[Paired], feeds: int) -> bool:
    """Whether b takes the place of a: asked all ``feeds``, it is hopeless on none, and its gain is plain."""
    hopeless = any(told.high < HOPELESS for told in results)
    return len(results) == feeds and not hopeless and is_gain(results) and is_plain(results)
