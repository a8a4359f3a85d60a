"""Enlarges dynamic dims of size 1 in example inputs, which torch.export would treat as static."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

MIN_SIZE = 2  # The smallest size that torch treats as dynamic.


def enlarged(tree: Any, shapes: Any) -> Any:
    """``tree`` with the dims that are dynamic by ``shapes``, of the same structure, at least 2 long. The
    elements are repeated, so that token ids stay valid."""
    if shapes is None:
        return tree
    if isinstance(tree, Tensor):
        items = shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes)
        for axis, marker in items:
            tree = _longer(tree, int(axis)) if _is_dynamic(marker) else tree
        return tree
    if isinstance(tree, Mapping):
        nested = {
            k: enlarged(v, shapes.get(k) if isinstance(shapes, Mapping) else None)
            for k, v in tree.items()
        }
        return type(tree)(nested) if type(tree) is dict else nested
    if type(tree) in (list, tuple):
        inner = [enlarged(v, s) for v, s in zip(tree, shapes, strict=True)]
        return type(tree)(inner)
    return tree


def _is_dynamic(marker: Any) -> bool:
    return marker is not None and not isinstance(marker, int) and marker is not Dim.STATIC


def _longer(x: Tensor, axis: int) -> Tensor:
    if x.shape[axis] >= MIN_SIZE:
        return x
    if x.shape[axis] == 1:
        return torch.cat([x, x], axis)
    shape = list(x.shape)
    shape[axis] = MIN_SIZE
    return x.new_zeros(shape)
