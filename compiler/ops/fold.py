"""Evaluating a node on constants, without torch: by ONNX's own reference implementation."""

from __future__ import annotations

import numpy as np

from tersor.ir import Node, TensorType
from tersor.ops import onnx_schema


def fold_node(node: Node) -> list[np.ndarray] | None:
    """Results of a standard op whose operands are all constants; None where the reference
    implementation has no such op, refuses it, or makes another shape than is inferred.

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
        result = np.asarray(array).astype(value.tensor.dtype.numpy, copy=False)
        # The reference implementation is wrong in corners (LpPool's dilations under VALID).
        if not value.tensor.accepts(TensorType(value.tensor.dtype, result.shape)):
            return None
        typed.append(result)
    return typed
