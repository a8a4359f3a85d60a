"""Recurrences that an exporter unrolled: the form of a gate, the cell of a step, the chain of steps."""
