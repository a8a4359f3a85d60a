"""Pruning passes that remove structure: units, layers, vocabulary."""
