"""What a peer keeps of the multiply-adds, and the ratio of its own that leads there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

import tersor
from tersor.ir.dims import evaluate

SIZES = {"batch": 8, "sequence": 128}
TOLERANCE = 0.01


def macs(model: Path | onnx.ModelProto) -> int:
    """Multiply-adds of one run at 8x128, as Tersor counts them."""
    summary = tersor.inspect(model)
    assert not summary.unknown_macs
    return evaluate(summary.macs, SIZES)


def ratio_for(share: float, share_at: Callable[[float], float]) -> float:
    """The ratio in [0, 1) where ``share_at``, which falls in it, comes nearest to ``share``.

    Raises:
        ValueError: nothing within 1% of ``share`` is reached.
    """
    low, high = 0.0, 0.99
    found: dict[float, float] = {}
    for _ in range(12):
        middle = (low + high) / 2
        found[middle] = share_at(middle)
        low, high = (middle, high) if found[middle] > share else (low, middle)
    best = min(found, key=lambda ratio: abs(found[ratio] - share))
    if abs(found[best] - share) > TOLERANCE * share:
        raise ValueError(f"reaches {found[best]:.4f} of the MACs at best, not {share}")
    return best
