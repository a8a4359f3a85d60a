"""How many examples the tests of random graphs look at."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Building a graph costs more than a draw is supposed to.
SLOW_DRAWS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def scaled(examples: int) -> settings:
    """So many examples by default, as many times more as the profile asks for."""
    return settings(
        max_examples=examples * settings.default.max_examples // 100,
        suppress_health_check=SLOW_DRAWS,
    )
