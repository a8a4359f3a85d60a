"""Integer products that overflow on some processors (``Target.saturates_int8``), as ONNX Runtime makes them.

    u8 a, s8 w:   a0 w0 + a1 w1   into 16 bits that saturate:   255 * 127 + 255 * 127 = 64,770 > 32,767

Such a sum is wrong by thousands, not rounded.  Two products of one sign reach it where their weights add
up to more than 128.  Signed activations are made unsigned by adding 128 first, and have the same bound.
Weights of 8 bits without a sign go another way there, which is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import producer_if
from tersor.ir import Affine, DType, Graph, Node, TensorType, Value
from tersor.numerics.affine import pair_sums

SAFE = 128  # 255 * 128 <= 32,767


@dataclass(frozen=True)
class Product:
    """Where an op that multiplies integers has its activations (None: it quantizes them itself, to u8),
    its weights and their zero point."""

    activation: int | None
    weight: int
    zero: int


PRODUCTS = {
    "MatMulInteger": Product(0, 1, 3),
    "QLinearMatMul": Product(0, 3, 5),
    "QLinearConv": Product(0, 3, 5),
    "com.microsoft.DynamicQuantizeMatMul": Product(None, 1, 3),
    "com.microsoft.MatMulIntegerToFloat": Product(0, 1, 5),
    "com.microsoft.QGemm": Product(0, 3, 5),
}
# Ops of which ONNX Runtime makes one of those where both operands are dequantized.
_FUSED = {"MatMul", "Gemm", "Conv", "tersor.Linear"}


def products(graph: Graph) -> list[Node]:
    """The nodes that multiply activations and constant weights of 8 bits, subgraphs' too."""
    return [node for node in graph.walk() if weights_of(node) is not None]


def overflowing(graph: Graph) -> list[Node]:
    """Those of :func:`products` whose sums can overflow."""
    return [
        node for node in graph.walk() if (w := weights_of(node)) is not None and overflows(node, w)
    ]


def overflows(node: Node, weights: np.ndarray) -> bool:
    """Whether sums of a node that multiplies by ``weights``, [..., k, n] or those of a convolution, can
    leave 16 bits."""
    if weights.dtype != np.int8 or weights.ndim < 2 or not weights.size:
        return False
    if node.op in ("Conv", "QLinearConv"):
        # In what order a kernel adds up a window is its own: the two largest, wherever they are.
        flat = weights.reshape(len(weights), -1).astype(np.int64)
        largest = [np.sort(np.maximum(s, 0), axis=1)[:, -2:].sum(axis=1) for s in (flat, -flat)]
        return bool(np.maximum(*largest).max() > SAFE)
    inner = np.moveaxis(weights, -1 if node.attrs.get("transB") else -2, -1).astype(np.int64)
    return bool(pair_sums(inner.reshape(-1, inner.shape[-1])).max(initial=0) > SAFE)


def activations_of(node: Node) -> Value | None:
    """The integers that one of :func:`products` multiplies; None where it makes them itself, as u8."""
    place = PRODUCTS.get(node.op)
    if place is not None:
        return None if place.activation is None else node.input(place.activation)
    dequantizer = producer_if(node.input(0), "DequantizeLinear")
    return None if dequantizer is None else dequantizer.inputs[0]


def weights_of(node: Node) -> np.ndarray | None:
    """The 8-bit weights that a node multiplies activations of 8 bits by; None where it does no such."""
    place = PRODUCTS.get(node.op)
    if place is not None:
        weight = node.input(place.weight)
        return weight.numpy() if weight is not None and weight.is_constant else None
    if node.op not in _FUSED or not _is_8_bits(activations_of(node)):
        return None
    weight = node.input(1)
    encoding = weight.encoding if weight is not None else None
    if encoding is not None and (affine := encoding.layer(Affine)) is not None:
        return affine.values if affine.storage in (DType.I8, DType.U8) else None
    dequantizer = producer_if(weight, "DequantizeLinear")
    quantized = dequantizer.inputs[0] if dequantizer is not None else None
    if quantized is None or not quantized.is_constant or quantized.tensor.dtype.bits != 8:
        return None
    return quantized.numpy()


def _is_8_bits(x: Value | None) -> bool:
    known = x is not None and isinstance(x.type, TensorType)
    return known and x.type.dtype in (DType.I8, DType.U8)  # type: ignore[union-attr]
