"""Structured pruning: importance of units, how many to remove, and refitting their readers."""
