"""Analyses of a graph. They only read it."""
