"""Structure: which axes shrink together, and cutting them; for every op alike, by the op table's ties."""

from tersor.structure.groups import AxisGroup, axis_groups
from tersor.structure.shared import join_vectors, part_vectors
from tersor.structure.slicing import joined, slice_graph, zero_graph

__all__ = [
    "AxisGroup",
    "axis_groups",
    "join_vectors",
    "joined",
    "part_vectors",
    "slice_graph",
    "zero_graph",
]
