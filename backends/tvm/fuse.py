"""Fusion: replaces chains of nodes by ops with a kernel each.

    tvm.Linear     x or (q, ranges), W, bias, residual, gamma, beta, smooth  ->  y, q, ranges

    y = norm(activation(x W + bias) + residual). q and ranges are y (times ``smooth``, if given) quantized row
    by row: ranges has each row's scale and zero point as float32[..., 2]. x is float or, with ``quantized``
    1, another op's (q, ranges). q has a row per row of the flattened leading dims, at least 16, and is padded
    to a multiple of 64 columns.
    ``format`` is the name of W's format (:mod:`tersor.backends.tvm.formats`); ``result`` is ``float32`` or
    ``bfloat16`` (then y has its bits as u16).

    tvm.Attention  q, k, v or one tensor of all three, mask, past k, past v, lengths  ->  y, k, v

Kernels write only those outputs that are read. These ops exist within this backend only, so the op table has
no rows for them; a printed graph shows the kernels that run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tersor.backends.tvm.formats import FLOAT, QUANTIZED, choose
from tersor.backends.tvm.kernels import attention_int16
from tersor.backends.tvm.kernels.blocking import padded
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.linear_spec import ACTIVATIONS, MIN_ROWS, takes
from tersor.backends.tvm.kernels.products import K_STEP
from tersor.backends.tvm.windows import set_windows
from tersor.errors import Unsupported
from tersor.ir import (
    Attribute,
    DType,
    Encoding,
    Graph,
    Node,
    TensorType,
    Value,
    concat,
)
from tersor.ir.dims import maximum, product
from tersor.numerics.affine import ActivationForm
from tersor.ops.families.attention import head_counts
from tersor.pipeline.rewriting import erase_dead, replace_node
from tersor.transforms.dequantization import encoded_result
from tersor.transforms.masks import drop_masks

NORMS = {"tersor.AddLayerNormalization": "layer", "tersor.AddRMSNormalization": "rms"}
LINEAR, ATTENTION = "tvm.Linear", "tvm.Attention"
SMOOTH = 7  # The index of that operand of LINEAR.


def fuse(graph: Graph, isa: Isa) -> Graph:
    """A copy of ``graph`` with an op for each kernel to call.

    Raises:
        Unsupported: the model has an op of one of these names.
    """
    for node in graph.walk():
        if node.op in (LINEAR, ATTENTION):
            raise Unsupported(
                f"TVM has no lowering for {node.label}: {node.op} is reserved for its kernels"
            )
    result = graph.copy()
    drop_masks(result)
    _fold_dequantizers(result)
    set_windows(result)
    _Fusion(result, isa).run()
    return result


def _fold_dequantizers(graph: Graph) -> None:
    """Replaces DequantizeLinear of a constant by an encoded constant, which is decoded once instead of in
    every run."""
    for node in list(graph.walk()):
        if node.op != "DequantizeLinear" or node.graph is None:
            continue
        if (encoding := encoded_result(node)) is not None:
            replace_node(node, [node.graph.constant(encoding, node.output.name)])


@dataclass
class _Fusion:
    """Visits nodes in order and replaces each chain at its last node.

    Attributes:
        rows: by result, the (q, ranges) that its kernel can write.
    """

    graph: Graph
    isa: Isa
    rows: dict[Value, tuple[Value, Value]] = field(default_factory=dict)

    def run(self) -> None:
        pending: set[Node] = set()
        for node in list(self.graph.nodes):
            if node.graph is None:
                continue
            if node.op == "Attention" and _has_kernel(node):
                self._attention(node)
            elif (
                node.op in NORMS
                and (linear := _ends(node, self.isa)) in pending
                and linear is not None
            ):
                self._linear([linear], norm=node)
            elif node.op == "tersor.Linear" and _is_fusable(node, self.isa):
                after = node.output.only_user()
                if after is not None and (
                    (after.op in NORMS and _ends(after, self.isa) is node)
                    or _feeds_attention(node, after, self.isa)
                ):
                    pending.add(node)
                else:
                    self._linear([node])
        for node in pending:  # Those that were not fused with a later node.
            if node.graph is not None:
                self._linear([node])
        erase_dead(
            [
                n
                for n in self.graph.nodes
                if n.op in ("DequantizeLinear", "tersor.DynamicQuantizeRows", "Mul")
            ]
        )

    # -- linear layers -----------------------------------------------------------------------------

    def _linear(
        self, linears: list[Node], *, norm: Node | None = None, result: str = "float32"
    ) -> Value:
        """Emits one op for layers that read the same value, concatenated, and the norm after them."""
        first, last = linears[0], norm or linears[-1]
        rows = _rows(first)
        weights = [_encoding(n.inputs[1]) for n in linears]
        # A single weight keeps its encoding, which need not support concatenation.
        weight = concat(weights, 1) if len(weights) > 1 else weights[0].unmasked
        format = choose(weight, rows, self.isa)
        assert format is not None, f"no format for {_name(first)}"
        n = weight.type.shape[1]
        attrs: dict[str, Attribute] = {
            "format": format.name,
            "quantized": 0,
            "activation": first.attrs["activation"],
            "norm": "none",
            "epsilon": 0.0,
            "result": result,
        }
        x = _source(first)
        if rows == QUANTIZED:
            self._take_smoothing(x)
        source: list[Value | None] = [x, None]
        if rows == QUANTIZED and x in self.rows:
            source, attrs["quantized"] = list(self.rows[x]), 1
        with self.graph.at(last):
            operands = [*source, self.graph.constant(weight, _name(first)), self._bias(linears, n)]
            if norm is not None:
                attrs["norm"], attrs["epsilon"] = NORMS[norm.op], norm.attrs["epsilon"]
                residual = next(v for v in norm.inputs[:2] if v is not first.output)
                operands += [residual, norm.inputs[2], norm.input(3)]
            lead = x.tensor.dims[:-1]  # type: ignore[index]
            node = self.graph.emit_node(
                LINEAR, operands, attrs,
                names=[last.outputs[0].name, "q", "ranges"],
                types=_types(lead, n, result),
            )  # fmt: skip
        y, q, ranges = node.outputs
        self.rows[y] = (q, ranges)
        if len(linears) == 1:
            replace_node(last, [y])
        return y

    def _take_smoothing(self, x: Value) -> None:
        """If x is a kernel's y times a vector and y is not read quantized, lets that kernel quantize x
        instead."""
        node = x.producer
        if node is None or node.op != "Mul":
            return
        for y, factor in (tuple(node.inputs), tuple(node.inputs[::-1])):
            if y not in self.rows or y.type != x.type or factor is None or not factor.is_constant:
                continue
            q, ranges = self.rows[y]
            kernel = q.producer
            if q.uses or kernel is None or factor.tensor.dims != (y.tensor.dims or ())[-1:]:
                continue
            self.graph.set_input(kernel, SMOOTH, factor)
            del self.rows[y]
            self.rows[x] = q, ranges
            return

    def _bias(self, linears: list[Node], n: int) -> Value | None:
        given = [node.input(2) for node in linears]
        if len(given) == 1 or all(b is None for b in given):
            return given[0]
        parts = [
            np.zeros(_encoding(node.inputs[1]).type.shape[1], np.float32)
            if b is None
            else b.numpy()
            for node, b in zip(linears, given, strict=True)
        ]
        return self.graph.constant(np.concatenate(parts), "bias")

    # -- attention ---------------------------------------------------------------------------------

    def _attention(self, node: Node) -> None:
        """Replaces an Attention; merges the layers of q, k and v into one, whose result the kernel reads
        packed, if they read the same value and have no other readers."""
        heads, kv_heads = head_counts(node)  # type: ignore[misc]
        attrs: dict[str, Attribute] = {"q_num_heads": heads, "kv_num_heads": kv_heads}
        attrs |= {"is_causal": node.attrs["is_causal"], "scale": _scale(node, heads)}
        attrs |= {
            n: node.attrs[n] for n, none in _DEFAULTS.items() if node.attrs.get(n, none) != none
        }
        linears = [v.producer for v in node.inputs[:3] if v is not None]
        mergeable = (
            len(set(linears)) == 3
            and node.input(4) is None
            and all(
                n is not None and n.op == "tersor.Linear" and _feeds_attention(n, node, self.isa)
                for n in linears
            )
        )
        merged = [n for n in linears if n is not None] if mergeable else []
        if merged and _can_merge(merged, self.isa):
            quantized = _rows(merged[0]) == QUANTIZED
            result = "bfloat16" if self.isa.bfloat16 and quantized else "float32"
            with self.graph.at(node):
                operands: list[Value | None] = [self._linear(merged, result=result), None, None]
            d, v_d = (
                _encoding(n.inputs[1]).type.shape[1] // count
                for n, count in ((merged[0], heads), (merged[2], kv_heads))
            )
            if quantized and result == "float32" and attention_int16.takes(self.isa, d, v_d):
                result = "int16"
        else:
            operands, result = list(node.inputs[:3]), "float32"
        attrs["dtype"] = result
        with self.graph.at(node):
            fused = self.graph.emit_node(
                ATTENTION, [*operands, *node.inputs[3:]], attrs, types=[v.type for v in node.outputs],
                names=[v.name for v in node.outputs],
            )  # fmt: skip
        replace_node(node, fused.outputs)


def _types(lead: tuple[object, ...], n: int, result: str) -> list[TensorType]:
    rows = product(lead)  # type: ignore[arg-type]
    q_rows = None if rows is None else maximum(rows, MIN_ROWS)
    y = DType.U16 if result == "bfloat16" else DType.F32
    return [
        TensorType(y, (*lead, n)),  # type: ignore[arg-type]
        TensorType(DType.U8, (q_rows, padded(n, K_STEP))),
        TensorType(DType.F32, (*lead, 2)),  # type: ignore[arg-type]
    ]


def _is_fusable(node: Node, isa: Isa, *, norm: bool = False) -> bool:
    """Whether the kernel computes this layer, with or without a norm: it has a constant weight with a
    format."""
    weight, x, bias = node.inputs[1], _source(node), node.input(2)
    if weight is None or weight.encoding is None or weight.tensor.dtype is not DType.F32:
        return False
    k, n = weight.tensor.shape
    dims = x.tensor.dims
    known = dims is not None and len(dims) > 1 and None not in dims and x.tensor.dtype is DType.F32
    rows = _rows(node)
    if not known or not takes(k, n, rows, norm=norm) or node.attrs["activation"] not in ACTIVATIONS:
        return False
    if bias is not None and not (bias.is_constant and bias.tensor.dims == (n,)):
        return False
    if rows == FLOAT and x.is_constant:
        return False
    return choose(weight.encoding, rows, isa) is not None


def _rows(node: Node) -> ActivationForm:
    """The form of the rows that a layer reads."""
    return FLOAT if _quantized_source(node) is None else QUANTIZED


def _quantized_source(node: Node) -> Value | None:
    """The value whose quantized rows a layer reads; None if it reads floats."""
    x = node.inputs[0]
    if x is None or x.producer is None or x.producer.op != "DequantizeLinear":
        return None
    parts = [x.producer.input(i) for i in range(3)]
    quantizer = parts[0].producer if parts[0] is not None else None
    if quantizer is None or quantizer.op != "tersor.DynamicQuantizeRows":
        return None
    return quantizer.inputs[0] if parts == list(quantizer.outputs) else None


def _source(node: Node) -> Value:
    source = _quantized_source(node) or node.inputs[0]
    assert source is not None
    return source


def _ends(norm: Node, isa: Isa) -> Node | None:
    """The layer whose result the norm alone reads, and adds to a residual of the same shape."""
    if norm.attrs["axis"] not in (-1, len(norm.output.tensor.dims or ()) - 1):
        return None
    if len(norm.outputs) > 1 and norm.outputs[1].uses:
        return None
    if not all(v is None or v.is_constant for v in norm.inputs[2:]):
        return None
    a, b = norm.inputs[0], norm.inputs[1]
    for value, other in ((a, b), (b, a)):
        assert value is not None and other is not None
        linear = value.producer
        if linear is None or linear.op != "tersor.Linear" or value.only_user() is not norm:
            continue
        if (
            value.tensor == other.tensor
            and value is not other
            and _is_fusable(linear, isa, norm=True)
        ):
            return linear
    return None


def _feeds_attention(node: Node, attention: Node, isa: Isa) -> bool:
    return (
        attention.op == "Attention"
        and _has_kernel(attention)
        and _is_fusable(node, isa)
        and node.output.only_user() is attention
        and sum(v is node.output for v in attention.inputs) == 1
    )


def _can_merge(linears: list[Node], isa: Isa) -> bool:
    """Whether layers read the same value, and their concatenated weight has a format."""
    kinds = {
        (_source(n), n.attrs["activation"], _rows(n), _encoding(n.inputs[1]).concat_key(1))
        for n in linears
    }
    if len(kinds) > 1 or None in {form for *_, form in kinds}:
        return False
    weight = concat([_encoding(n.inputs[1]) for n in linears], 1)
    return choose(weight, _rows(linears[0]), isa) is not None


_DEFAULTS = {"softcap": 0.0, "left_window_size": -1, "right_window_size": -1}
"""Attributes of an Attention that are omitted at these defaults."""


def _has_kernel(node: Node) -> bool:
    """Whether the attention kernel computes this: float32, without reading its scores, with sizes that are
    known or named."""
    counts, mask, lengths = head_counts(node), node.input(3), node.input(6)
    if len(node.outputs) > 3 and node.outputs[3].uses:
        return False
    operands = [v for v in (*node.inputs[:3], node.input(4), node.input(5)) if v is not None]
    if counts is None or counts[0] % counts[1] or not all(_is_named(v) for v in operands):
        return False
    if any(v.tensor.dtype is not DType.F32 for v in operands):
        return False
    if any(not isinstance(v.tensor.dims[-1], int) for v in operands):  # type: ignore[index]
        return False
    if lengths is not None and (
        not _is_named(lengths) or lengths.tensor.dtype is not DType.I64 or node.input(4) is not None
    ):
        return False
    return mask is None or (
        _is_named(mask)
        and mask.tensor.dtype in (DType.BOOL, DType.F32)
        and mask.tensor.rank in (2, 3, 4)
    )


def _is_named(value: Value) -> bool:
    """Whether each dim is known or has a name."""
    return isinstance(value.type, TensorType) and None not in (value.tensor.dims or (None,))


def _scale(node: Node, heads: int) -> float:
    given = node.attrs.get("scale")
    if isinstance(given, (int, float)) and given:
        return float(given)
    q = node.inputs[0]
    assert q is not None and q.tensor.dims is not None
    last = q.tensor.dims[-1]
    assert isinstance(last, int)
    return float((last if q.tensor.rank == 4 else last // heads) ** -0.5)


def _encoding(value: Value | None) -> Encoding:
    assert value is not None and value.encoding is not None
    return value.encoding


def _name(node: Node) -> str:
    assert node.inputs[1] is not None
    return node.inputs[1].name
