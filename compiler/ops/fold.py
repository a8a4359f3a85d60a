"""Evaluating a node on constants, without torch: by ONNX's own reference implementation."""

from __future__ import annotations

import numpy as np

from tersor.ir import Node
from tersor.ops import onnx_schema


def fold_node(node: Node) -> list[np.ndarray] | None:
    """Results of a standard op whose operands are all constants; None where the reference
    implementation has no such op or refuses it.

    Results take the types that inference gave.
    """
    if "." in node.op or node.subgraphs:
        return None
    operands = [None if v is None else v.numpy() for v in node.inputs]
    results = onnx_schema.evaluate(node, operands)
    if results is None:
        return None
    typed = []
    for array, value in zip(results, node.outputs, strict=False):
        dtype = value.tensor.dtype.numpy
        typed.append(np.asarray(array).astype(dtype, copy=False))
    return typed
