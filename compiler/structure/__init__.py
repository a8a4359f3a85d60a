"""Which axes of a graph shrink together, and cutting them; for any op, by the op table's ties."""

from tersor.structure.groups import AxisGroup, axis_groups
from tersor.structure.shared import merge_vectors, split_vectors
from tersor.structure.slicing import slice_graph, union, zero_graph

__all__ = [
    "AxisGroup",
    "axis_groups",
    "merge_vectors",
    "slice_graph",
    "split_vectors",
    "union",
    "zero_graph",
]
