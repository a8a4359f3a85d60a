"""Passes that take parts of a model away: whole units of its structure, rather than bits of its numbers."""
