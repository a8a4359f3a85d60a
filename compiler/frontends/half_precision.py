"""Weights that a model folder stores in half precision: computed in float32, they keep 16 bits in the file.

@w: f32[k, n] dense, all numbers exact in bfloat16  ->  @w: f32[k, n] = cast(bf16), half the bytes
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np

from tersor.ir import Cast, DType, Graph

HALVES = {"F16": DType.F16, "BF16": DType.BF16}  # By safetensors' names.
MIN_ELEMENTS = 1024  # Smaller constants are not worth a Cast node.


def float_types(directory: Path) -> set[str]:
    """The floating-point types in the headers of a directory's safetensors files, by safetensors' names."""
    types: set[str] = set()
    for path in directory.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            types |= {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError):
            continue  # Damaged, which is reported when the weights are read.
    return {name for name in types if name.startswith(("F", "BF"))}


def store_as_halves(graph: Graph, types: Collection[str]) -> None:
    """Encodes float32 constants of ``graph`` in the first of ``types`` that represents them exactly."""
    for constant in graph.constants.values():
        if not constant.is_dense or constant.tensor.dtype is not DType.F32:
            continue
        if math.prod(constant.tensor.shape) < MIN_ELEMENTS:
            continue
        for name in sorted(types & HALVES.keys()):
            half = _exact(constant.numpy(), HALVES[name])
            if half is not None:
                graph.set_encoding(constant, Cast(half, DType.F32))
                break


def _exact(array: np.ndarray, dtype: DType) -> np.ndarray | None:
    """``array`` as ``dtype``; None if that would change a number."""
    with np.errstate(over="ignore"):
        half = array.astype(dtype.numpy)
    return half if np.array_equal(half.astype(array.dtype), array) else None
