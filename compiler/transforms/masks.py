"""Removing masks from constants."""

from tersor.ir import Graph


def drop_masks(graph: Graph) -> None:
    """Stores pruned constants without their masks, zeros included: for a backend without sparse kernels."""
    for owner in graph.all_graphs():
        for constant in owner.constants.values():
            if constant.encoding is not None and constant.encoding.mask is not None:
                owner.set_encoding(constant, constant.encoding.unmasked)
