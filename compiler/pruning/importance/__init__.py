"""Importance of the units of an axis group: the criteria of structured pruning."""

from tersor.pruning.importance.criteria import CRITERIA, Criterion, importance, refusal

__all__ = ["CRITERIA", "Criterion", "importance", "refusal"]
