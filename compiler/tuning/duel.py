"""Sequential comparison of two systems on several inputs, stopped as soon as the faster one is clear.

    mean over the inputs of log(speedup)   against   log(MIN_GAIN),   in standard errors of that mean

Three errors above are a gain; two below are none, since keeping the incumbent costs little. Long runs start
with three pairs per input; then the input that reduces the error most per millisecond gets one more pair,
until the result is conclusive. If it never is, it is a tie, and the incumbent stays.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tersor.tuning.measure import LEAST_PAIRS, Comparison, Paired, Worker

HOPELESS = 0.9  # Stop timing a challenger whose upper-quartile speedup on one feed is below this.
# Proving a smaller gain takes long, and the choice would differ from run to run.
MIN_GAIN = 1.03
SECONDS = 3.0  # After the least pairs, which are always run.
LONG = 50.0  # Milliseconds of a run that averages over the machine's noise.
FEW = 3  # Initial pairs of long runs.
ALONE = 9  # Initial pairs if there is only one feed.
SCATTER = 0.01  # Least relative error assumed of a pair: a few that agree by chance prove nothing.


def duel(a: Worker, b: Worker, feeds: Sequence[int], pairs: int) -> list[Paired]:
    """Compares both on each of ``feeds``, in at most ``pairs`` pairs per feed; stops early at a feed on which
    b is hopeless."""
    comparisons: list[Comparison] = []
    for feed in feeds:
        comparisons.append(Comparison(a, b, feed))
        _begin(comparisons[-1], min(pairs, ALONE if len(feeds) == 1 else LEAST_PAIRS))
        if comparisons[-1].result.high < HOPELESS:
            return [one.result for one in comparisons]
    end = time.monotonic() + SECONDS
    while not is_conclusive(results := [one.result for one in comparisons]):
        unfinished = [one for one in comparisons if one.pairs < pairs]
        if not unfinished or time.monotonic() >= end:
            break
        max(unfinished, key=_information).add()
    return results


def _begin(one: Comparison, least: int) -> None:
    one.add()
    few = min(least, FEW)
    while one.pairs < (few if one.result.a_ms > LONG else least):
        one.add()


def _information(one: Comparison) -> float:
    """How much one more pair reduces the variance of the median, per millisecond."""
    result = one.result
    return _error(result) ** 2 / result.pairs / (result.a_ms + result.b_ms)


def _error(result: Paired) -> float:
    """The standard error of log(speedup)."""
    return max(result.error / result.speedup, SCATTER / math.sqrt(result.pairs))


def mean_speedup(results: Sequence[Paired]) -> float:
    """The geometric mean of the speedups."""
    return math.exp(float(np.mean([math.log(result.speedup) for result in results])))


def is_conclusive(results: Sequence[Paired]) -> bool:
    """Whether more pairs would not change on which side of MIN_GAIN the result is."""
    error = math.sqrt(sum(_error(result) ** 2 for result in results)) / len(results)
    gain = math.log(mean_speedup(results) / MIN_GAIN)
    return gain > 3 * error or gain < -2 * error


def is_gain(results: Sequence[Paired]) -> bool:
    """Whether the challenger is faster over all feeds beyond noise: by the geometric mean of the lower
    quartiles too."""
    pessimistic = mean_speedup([replace(result, speedup=result.low) for result in results])
    return mean_speedup(results) > MIN_GAIN and pessimistic > 1.0


def has_won(results: Sequence[Paired], feeds: int) -> bool:
    """Whether b replaces a: timed on all ``feeds``, hopeless on none, and a conclusive gain."""
    hopeless = any(result.high < HOPELESS for result in results)
    return len(results) == feeds and not hopeless and is_gain(results) and is_conclusive(results)
