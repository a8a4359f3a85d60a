"""What the units of an axis group are worth: the criteria that structured pruning chooses by."""

from tersor.pruning.importance.criteria import CRITERIA, Criterion, importance, refusal

__all__ = ["CRITERIA", "Criterion", "importance", "refusal"]
