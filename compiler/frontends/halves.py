"""Weights that a folder holds in half precision: computed in float32, they are held as they were.

@w: f32[k, n] dense, all of whose numbers are bfloat16's  ->  @w: f32[k, n] = cast(bf16), half the bytes
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from tersor.ir import Cast, DType, Graph

SHORT = {"F16": DType.F16, "BF16": DType.BF16}  # By safetensors' names.
MIN_ELEMENTS = 1024  # Smaller constants are not worth a node that casts them.


def float_types(directory: Path) -> set[str]:
    """Types of the floats in a directory's weights, by the headers of its safetensors, in their words."""
    found: set[str] = set()
    for path in directory.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            found |= {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError):
            continue  # Damaged: who reads the weights themselves says so.
    return {kind for kind in found if kind.startswith(("F", "BF"))}


def hold_short(graph: Graph, types: Collection[str]) -> None:
    """Holds float32 constants of ``graph`` in the first of ``types`` that has all of their numbers."""
    for constant in graph.constants.values():
        if not constant.is_dense or constant.tensor.dtype is not DType.F32:
            continue
        if math.prod(constant.tensor.shape) < MIN_ELEMENTS:
            continue
        for kind in sorted(types & SHORT.keys()):
            short = _shortened(constant.numpy(), SHORT[kind])
            if short is not None:
                graph.set_encoding(constant, Cast(short, DType.F32))
                break


def _shortened(array: np.ndarray, dtype: DType) -> np.ndarray | None:
    """``array`` in a shorter type; None where that would change a number."""
    with np.errstate(over="ignore"):
        short = array.astype(dtype.numpy)
    same: bool = np.array_equal(short.astype(array.dtype), array)
    return short if same else None
