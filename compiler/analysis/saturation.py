"""Integer products that saturate in ONNX Runtime on some processors (``Target.saturates_int8``).

    u8 a, s8 w:   a0 w0 + a1 w1   in saturating 16 bits:   255 * 127 + 255 * 127 = 64,770 > 32,767

A saturated sum is off by thousands, not by a rounding error.  It takes two weights of the same sign that add
up to more than 128.  Signed activations are first made unsigned by adding 128, so the bound is the same.
Unsigned 8-bit weights take another, exact path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tersor.analysis.match import producer_if
from tersor.ir import Affine, DType, Graph, Node, TensorType, Value
from tersor.numerics.affine import pair_sums

if TYPE_CHECKING:
    from tersor.ops import Weight

SAFE = 128  # 255 * 128 <= 32,767


@dataclass(frozen=True)
class Product:
    """Operand indices of an integer product: activations (None: it quantizes them itself, to u8),
    weights, and the weights' zero point; ``window``: weights are [out, in, *kernel], not [..., in, out]."""

    activation: int | None
    weight: int
    zero: int
    window: bool = False


PRODUCTS = {
    "MatMulInteger": Product(0, 1, 3),
    "QLinearMatMul": Product(0, 3, 5),
    "QLinearConv": Product(0, 3, 5, window=True),
    "com.microsoft.DynamicQuantizeMatMul": Product(None, 1, 3),
    "com.microsoft.MatMulIntegerToFloat": Product(0, 1, 5),
    "com.microsoft.QGemm": Product(0, 3, 5),
}
# Ops that ONNX Runtime fuses into one of those when both operands are dequantized.
_FUSED = {"MatMul", "Gemm", "Conv", "tersor.Linear"}


def products(graph: Graph) -> list[Node]:
    """The nodes, in subgraphs too, that multiply 8-bit activations by constant 8-bit weights."""
    return [node for node in graph.walk() if weights_of(node) is not None]


def overflowing(graph: Graph) -> list[Node]:
    """Those of :func:`products` whose sums can saturate."""
    return [
        node for node in graph.walk() if (w := weights_of(node)) is not None and overflows(node, w)
    ]


def overflows(node: Node, weights: np.ndarray) -> bool:
    """Whether sums with ``weights``, [..., k, n] or those of a convolution, can exceed 16 bits."""
    if weights.dtype != np.int8 or weights.ndim < 2 or not weights.size:
        return False
    form = _form(node, weights.ndim)
    rows = form.matrix(weights).astype(np.int64)
    if len(form.inputs) > 1:
        # The order in which a kernel sums a window is unknown: assume the two largest meet.
        largest = [np.sort(np.maximum(s, 0), axis=1)[:, -2:].sum(axis=1) for s in (rows, -rows)]
        return bool(np.maximum(*largest).max() > SAFE)
    return bool(pair_sums(rows).max(initial=0) > SAFE)


def _form(node: Node, rank: int) -> Weight:
    """How a node multiplies by weights of ``rank``."""
    # Loads onnx's schemas, which `import tersor` does without.
    from tersor.ops import TABLE, Weight

    place = PRODUCTS.get(node.op)
    if place is None:
        (form,) = TABLE.weights(node)
        return form
    if place.window:
        return Weight(place.weight, tuple(range(1, rank)))
    return Weight(place.weight, (rank - 1 if node.attrs.get("transB") else rank - 2,))


def activations_of(node: Node) -> Value | None:
    """The integer activations of one of :func:`products`; None where the node quantizes them itself."""
    place = PRODUCTS.get(node.op)
    if place is not None:
        return None if place.activation is None else node.input(place.activation)
    from tersor.ops import TABLE

    weights = {form.operand for form in TABLE.weights(node)}
    others = [q.operand for q in TABLE.quantizers(node) if q.operand not in weights]
    dequantizer = producer_if(node.input(others[0]) if others else None, "DequantizeLinear")
    return None if dequantizer is None else dequantizer.inputs[0]


def weights_of(node: Node) -> np.ndarray | None:
    """The 8-bit weights of an 8-bit product; None for any other node."""
    place = PRODUCTS.get(node.op)
    if place is not None:
        weight = node.input(place.weight)
        return weight.numpy() if weight is not None and weight.is_constant else None
    if node.op not in _FUSED or not _is_8_bits(activations_of(node)):
        return None
    from tersor.ops import TABLE

    forms = TABLE.weights(node)
    weight = node.input(forms[0].operand) if forms else None
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
