"""Passes that join nodes into one where a backend runs the whole faster."""
