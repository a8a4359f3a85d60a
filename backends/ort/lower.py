"""Lowering: fused ops and encodings become ops that ONNX Runtime executes.

The result has only standard and ``com.microsoft`` ops, and dense constants.  Each
rule is a function ``(graph, node, lowering) -> values`` that emits the node's replacement before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tersor.analysis.saturation import PRODUCTS
from tersor.backends.ort import embedding, linear, norm, quantize, unsigned
from tersor.backends.ort.attention import AttentionLowering
from tersor.backends.ort.constants import decode
from tersor.backends.ort.lowering import Lowering
from tersor.backends.ort.options import LowerOptions
from tersor.backends.ort.ties import merge_equal_constants
from tersor.errors import Unsupported
from tersor.ir import Graph, Node, TensorType, Value
from tersor.pipeline import erase_dead, replace_node
from tersor.pipeline.report import Decoded
from tersor.transforms.masks import drop_masks

Rule = Callable[[Graph, Node, Lowering], Sequence[Value] | None]

# Rules by op. One that returns None keeps the node.
RULES: dict[str, Rule] = {
    "tersor.Linear": linear.lower_linear,
    "tersor.AddLayerNormalization": norm.lower_add_layer_norm,
    "tersor.AddRMSNormalization": norm.lower_add_rms_norm,
    "RMSNormalization": norm.lower_rms_norm,
    "tersor.EmbeddingLayerNormalization": embedding.lower_embedding_norm,
    "tersor.DynamicQuantizeRows": quantize.lower_dynamic_rows,
    "DequantizeLinear": quantize.lower_dequantize,
    "Gather": embedding.lower_gather,
    "Swish": linear.lower_swish,
    **dict.fromkeys(PRODUCTS, unsigned.lower_product),
}


def lower(
    graph: Graph, options: LowerOptions | None = None, decoded: list[Decoded] | None = None
) -> Graph:
    """A copy of ``graph`` in ops that ONNX Runtime has, subgraphs included. Constants that had to be
    decoded are added to ``decoded``.

    Raises:
        Unsupported: a ``tersor.*`` op has no rule, or an encoding no form (node named).
    """
    lowering = Lowering(options or LowerOptions(), [] if decoded is None else decoded)
    rules = {**RULES, "Attention": AttentionLowering().lower}
    result = graph.copy()
    drop_masks(result)
    for node in result.walk():
        rule = rules.get(node.op)
        if rule is None or node.graph is None or not _is_typed(node):
            continue
        with node.graph.at(node):
            values = rule(node.graph, node, lowering)
        if values is not None:
            replace_node(node, values)
    for owner in list(result.all_graphs()):
        for constant in list(owner.constants.values()):
            if not constant.is_dense:
                decode(owner, constant, lowering)
    # Quantizers of activations whose readers now read the integers, or quantize by themselves.
    erase_dead([n for n in result.walk() if n.op in ("DequantizeLinear", "DynamicQuantizeLinear")])
    merge_equal_constants(result)
    for node in result.walk():
        if node.op.startswith("tersor."):
            raise Unsupported(f"{node.label}: {node.op} has no form in ONNX Runtime")
    return result


def _is_typed(node: Node) -> bool:
    """Whether a node is known to compute with tensors: the results of an opaque op may be anything. Tersor's
    own ops, which cannot stay, and integer products always do."""
    if node.op.startswith("tersor.") or node.op in PRODUCTS:
        return True
    values = [v for v in (*node.inputs, *node.outputs[:1]) if v is not None]
    return all(isinstance(v.type, TensorType) for v in values)
