"""Examples whose open dims are of size 1: torch takes such a size for fixed, and finds out nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

FEWEST = 2  # The smallest size that torch takes for open.


def grown(tree: Any, shapes: Any) -> Any:
    """``tree`` with the dims that ``shapes``, of its structure, leaves open at least 2 long: what is there
    comes twice, so that ids stay ids."""
    if shapes is None:
        return tree
    if isinstance(tree, Tensor):
        items = shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes)
        for axis, marker in items:
            tree = _longer(tree, int(axis)) if _is_open(marker) else tree
        return tree
    if isinstance(tree, Mapping):
        nested = {
            k: grown(v, shapes.get(k) if isinstance(shapes, Mapping) else None)
            for k, v in tree.items()
        }
        return type(tree)(nested) if type(tree) is dict else nested
    if type(tree) in (list, tuple):
        inner = [grown(v, s) for v, s in zip(tree, shapes, strict=True)]
        return type(tree)(inner)
    return tree


def _is_open(marker: Any) -> bool:
    return marker is not None and not isinstance(marker, int) and marker is not Dim.STATIC


def _longer(x: Tensor, axis: int) -> Tensor:
    if x.shape[axis] >= FEWEST:
        return x
    if x.shape[axis] == 1:
        return torch.cat([x, x], axis)
    shape = list(x.shape)
    shape[axis] = FEWEST
    return x.new_zeros(shape)
