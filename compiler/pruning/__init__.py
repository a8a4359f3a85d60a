"""Structured pruning: what units are worth, how many of them go, and how their readers make up for it."""
