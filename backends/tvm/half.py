"""Mixed precision for GPUs: products in float16, and the ops between them.

Every op sums, normalizes and exponentiates in float32 whatever its operands' type, and rounds once; so the
question is which values are *stored* in float16:

- operands and results of products and of lookups in tables of weights;
- results of ops that only move, add, scale or normalize such values.

All others stay in float32, and so do ops with a constant beyond float16's range, such as the -3.4e38 of a
mask.  Inputs and outputs keep their types.

**Quantized graphs.**  Weights of products keep their int8, as parameters with their scales, and are
dequantized to float16 at run time (weight-only); embedding tables are stored in float16.  Activation
quantizers are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tersor.ir import Affine, Attribute, DType, Graph, Node, TensorType, Value
from tersor.ops.onnx_schema import TO_ONNX
from tersor.pipeline.rewriting import replace_node
from tersor.transforms.masks import drop_masks

_LARGEST = float(np.finfo(np.float16).max)
_PRODUCTS = frozenset(
    ("MatMul", "Gemm", "tersor.Linear", "Conv", "ConvTranspose", "Einsum", "Attention")
)
_LOOKUPS = frozenset(("Gather", "tersor.EmbeddingLayerNormalization"))
_JOINING = frozenset(("tersor.AddLayerNormalization", "tersor.AddRMSNormalization"))
_FOLLOWING = _JOINING | frozenset((
    "Add", "Sub", "Mul", "Sum", "Mean", "Max", "Min", "Where", "Clip", "Neg", "Abs", "Relu", "LeakyRelu",
    "PRelu", "Elu", "Selu", "Celu", "Gelu", "Swish", "Mish", "Erf", "Sigmoid", "Tanh", "HardSigmoid",
    "HardSwish", "Softplus", "Softsign", "Softmax", "LayerNormalization", "RMSNormalization",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "MaxPool", "AveragePool",
    "GlobalMaxPool", "GlobalAveragePool", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze",
    "Transpose", "Expand", "Tile", "Concat", "Split", "Slice", "Gather", "Pad", "DepthToSpace",
    "SpaceToDepth", "RotaryEmbedding",
))  # fmt: skip
_TABLE = 2  # The rank of an embedding table.
_MASK = 3  # Attention's operand that is added to float32 scores.


def halve(graph: Graph) -> Graph:
    """A copy of ``graph`` in mixed precision."""
    result = graph.copy()
    drop_masks(result)
    _Halving(result).run()
    return result


@dataclass
class _Halving:
    """Nodes are visited in order.

    Attributes:
        halves: results that are stored in float16.
        casts: of values that are read in the other type, their casts.
    """

    graph: Graph
    halves: set[Value] = field(default_factory=set)
    casts: dict[Value, Value] = field(default_factory=dict)

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if self._is_half(node):
                self._halve(node)
            else:
                for i, value in enumerate(node.inputs):
                    if value in self.halves:
                        self.graph.set_input(node, i, self._cast(value, DType.F32, node))
        outputs = [
            self._cast(v, DType.F32, None) if v in self.halves else v for v in self.graph.outputs
        ]
        self.graph.set_outputs(outputs, self.graph.output_names)

    def _is_half(self, node: Node) -> bool:
        read = [v for i, v in enumerate(node.inputs) if v is not None and _can_be_half(node, i, v)]
        results = [v for v in node.outputs if v.uses]
        if not read or not results or not all(_is_float32(v) for v in results):
            return False
        if not all(v in self.halves or v.encoding is None or _fits(v) for v in read):
            return False
        if node.op in _PRODUCTS:
            return True
        if node.op in _LOOKUPS and any(v.is_constant and v.tensor.rank == _TABLE for v in read):
            return True
        has_moments = node.op == "LayerNormalization" and len(results) > 1  # Moments are float32.
        if node.op not in _FOLLOWING or has_moments:
            return False
        computed = [v in self.halves for v in read if not v.is_constant]
        return any(computed) if node.op in _JOINING else bool(computed) and all(computed)

    def _halve(self, node: Node) -> None:
        operands = [
            self._half(node, v) if v is not None and _can_be_half(node, i, v) else v
            for i, v in enumerate(node.inputs)
        ]
        types = [
            TensorType(DType.F16, v.tensor.dims) if _is_float32(v) else v.type for v in node.outputs
        ]
        with self.graph.at(node):
            half = self.graph.emit_node(
                node.op, operands, node.attrs, names=[v.name for v in node.outputs], types=types
            )
        self.halves.update(v for v in half.outputs if v.tensor.dtype is DType.F16)
        replace_node(node, half.outputs)

    def _half(self, node: Node, value: Value) -> Value:
        if value.tensor.dtype is DType.F16:
            return value
        if value not in self.casts and value.is_constant:
            self.casts[value] = self._constant(node, value)
        return self._cast(value, DType.F16, node)

    def _constant(self, node: Node, value: Value) -> Value:
        encoding = value.encoding.layer(Affine) if value.encoding is not None else None
        is_int8 = encoding is not None and encoding.storage in (DType.I8, DType.U8)
        if encoding is None or not is_int8 or not encoding.is_standard or node.op not in _PRODUCTS:
            return self.graph.constant(value.numpy().astype(np.float16), value.name)
        parts = [
            self.graph.constant(getattr(encoding, part), f"{value.name}_{part}")
            for part in ("values", "scale", "zero_point")
        ]
        attrs: dict[str, Attribute] = {"axis": encoding.axis or 0, "block_size": encoding.block}
        # The scales stay float32: they are small.
        types = [TensorType(DType.F16, value.tensor.dims)]
        with self.graph.at(node):
            return self.graph.emit_node(
                "DequantizeLinear", parts, attrs, names=[value.name], types=types
            ).output

    def _cast(self, value: Value, dtype: DType, reader: Node | None) -> Value:
        """The value in the other type, cast before its first reader for all of them."""
        if value not in self.casts:
            with self.graph.at(reader):
                self.casts[value] = self.graph.emit("Cast", [value], {"to": TO_ONNX[dtype]})
        return self.casts[value]


def _is_float32(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype is DType.F32


def _can_be_half(node: Node, place: int, value: Value) -> bool:
    """Whether an operand is stored in float16 where the node's results are."""
    if not isinstance(value.type, TensorType):
        return False
    return value.type.dtype in (DType.F32, DType.F16) and not (
        node.op == "Attention" and place == _MASK
    )


def _fits(constant: Value) -> bool:
    """Whether a constant's finite numbers are in float16's range."""
    numbers = constant.numpy()
    return bool((~np.isfinite(numbers) | (np.abs(numbers) <= _LARGEST)).all())
