"""Hypothesis strategies: random graphs, with inputs that fit.

Graphs grow one step at a time, on values that are there. ``layers``: what exporters write; ``anyop``: the
whole op table in all element types; ``control``: subgraphs; ``graphs``: steps put together.
"""

from strategies.builder import SIZES, Builder, Case, Rejected
from strategies.graphs import cases, table_cases

__all__ = ["SIZES", "Builder", "Case", "Rejected", "cases", "table_cases"]
