"""The pass interface, and running, verifying and reporting passes."""

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
from tersor.pipeline.rounds import Repeat, Step, passes_in
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
    "Repeat",
    "Rewrite",
    "Skip",
    "Step",
    "erase_dead",
    "erase_unread",
    "passes_in",
    "replace_node",
    "weight_bytes",
]
