"""Running passes: what a pass is, what it promises, how it is run, verified and reported."""

from tersor.pipeline.rewriting import (
    EXACT,
    LOSSY,
    ROUNDING,
    Context,
    Evaluate,
    Feeds,
    Keeps,
    Latency,
    Pass,
    Rewrite,
    Skip,
    erase_dead,
    erase_unread,
    replace_node,
)
from tersor.pipeline.runner import Pipeline, weight_bytes
from tersor.pipeline.verification import LEVELS

__all__ = [
    "EXACT",
    "LEVELS",
    "LOSSY",
    "ROUNDING",
    "Context",
    "Evaluate",
    "Feeds",
    "Keeps",
    "Latency",
    "Pass",
    "Pipeline",
    "Rewrite",
    "Skip",
    "erase_dead",
    "erase_unread",
    "replace_node",
    "weight_bytes",
]
