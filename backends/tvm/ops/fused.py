"""The fused ops: each becomes a call of a kernel, whose operands are packed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import relax, tirx

from tersor.backends.tvm.derive import compute, is_derived, values_of
from tersor.backends.tvm.formats import FORMATS
from tersor.backends.tvm.formats.format import Derived
from tersor.backends.tvm.fuse import ATTENTION, LINEAR
from tersor.backends.tvm.kernels import attention, embedding, linear
from tersor.backends.tvm.kernels.attention_spec import Attention
from tersor.backends.tvm.kernels.embedding import EmbeddingNorm, Table
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.linear_spec import BIAS, COLUMNS, SHARED, Grain, Linear
from tersor.backends.tvm.lowering import Lowering, Rule, dtype_of
from tersor.backends.tvm.ops import norm
from tersor.backends.tvm.ops._agreement import check_fits
from tersor.backends.tvm.ops.attention import presents
from tersor.ir import Affine, Dim, DType, Encoding, Node, Value
from tersor.structure.ties import tied_to

EMBEDDING = "tersor.EmbeddingLayerNormalization"


def rules(isa: Isa, grains: Mapping[str, Grain] | None = None) -> dict[str, Rule]:
    """The rules, for kernels of an ISA; ``grains`` by the names of tuned kernels."""
    return {
        LINEAR: lambda lowering, node: _linear(lowering, node, isa, grains or {}),
        ATTENTION: lambda lowering, node: _attention(lowering, node, isa),
        EMBEDDING: lambda lowering, node: _embedding(lowering, node, isa),
    }


def _call(
    lowering: Lowering,
    name: str,
    make: Callable[[], tirx.PrimFunc],
    operands: Sequence[Any],
    results: Sequence[Value],
) -> list[Any]:
    """A call of a kernel; the kernel is added to the module once."""
    function = lowering.kernel(name, make)
    types = [lowering.relax_type(value.type) for value in results]
    result = lowering.emit(
        relax.call_tir(function, relax.Tuple(list(operands)), types if len(types) > 1 else types[0])
    )
    if len(types) == 1:
        return [result]
    return [lowering.emit(relax.TupleGetItem(result, i)) for i in range(len(types))]


def linear_spec(node: Node, isa: Isa) -> Linear:
    """The kernel's specialization for a fused linear layer."""
    y, q, _ = node.outputs
    weight, attrs = node.inputs[2], dict[str, Any](node.attrs)
    assert weight is not None and weight.encoding is not None
    k, n = weight.tensor.shape
    return Linear(
        k, n,
        format=attrs["format"],
        quantized=bool(attrs["quantized"]),
        activation=attrs["activation"],
        norm=attrs["norm"],
        epsilon=attrs["epsilon"],
        result=attrs["result"] if y.uses else "",
        quantize=bool(q.uses),
        smooth=node.input(7) is not None,
        lead=len(y.tensor.dims or ()) - 1,
        variant=FORMATS[attrs["format"]].variant(weight.encoding, isa),
    )  # fmt: skip


def _linear(lowering: Lowering, node: Node, isa: Isa, grains: Mapping[str, Grain]) -> list[Any]:
    y, q, ranges = node.outputs
    x, x_ranges, weight, bias, residual, gamma, beta, smooth = (node.input(i) for i in range(8))
    assert x is not None and weight is not None and weight.encoding is not None
    spec = linear_spec(node, isa)
    operands = [lowering[x], *([lowering[x_ranges]] if spec.quantized else [])]
    packs = FORMATS[spec.format].pack(weight.encoding, isa)
    packed = [compute(*derived) for derived in packs]
    operands += [
        *_packed(lowering, weight, spec, packs, packed),
        _columns(lowering, weight, spec, packed, (bias, gamma, beta, smooth)),
    ]
    if residual is not None:
        operands.append(lowering[residual])
    wanted = [*([y] if spec.result else []), *([q, ranges] if spec.quantize else [])]
    grain = grains.get(spec.name)
    results = _call(lowering, spec.name, lambda: linear.kernel(spec, isa, grain), operands, wanted)
    by_value = dict(zip(wanted, results, strict=True))
    return [by_value.get(v) for v in (y, q, ranges)]


def _packed(
    lowering: Lowering,
    weight: Value,
    spec: Linear,
    packs: Sequence[Derived],
    packed: Sequence[np.ndarray],
) -> list[Any]:
    """The packed weight: stored so in the file, or packed when the model is loaded where the stored weight is
    smaller, is shared with other readers, or has to be decoded."""
    encoding, format, name = weight.encoding, FORMATS[spec.format], f"{weight.name}_packed"
    assert encoding is not None
    tied = any(user.op != LINEAR for other in tied_to(weight) for user in other.users)
    decoded = format.decodes and not encoding.is_dense
    if decoded:
        lowering.report_decoded(weight, loaded=is_derived(encoding))
    return [
        lowering.derived(steps, sources, name)
        if tied or decoded or array.nbytes > sum(source.nbytes for source in sources)
        else lowering.parameter(array, name)
        for (steps, sources), array in zip(packs, packed, strict=True)
    ]


def _columns(
    lowering: Lowering,
    weight: Value,
    spec: Linear,
    packed: Sequence[np.ndarray],
    vectors: Sequence[Value | None],
) -> Any:
    """The kernel's table of numbers per column, most of whose rows are zeros: computed when the model is
    loaded, from the stored vectors."""
    assert weight.encoding is not None
    rows = dict(enumerate(FORMATS[spec.format].columns(weight.encoding, packed)))
    for row, vector in zip(SHARED, vectors, strict=True):
        if vector is not None:
            rows[row] = lowering.steps(vector)
    if not rows:
        rows[BIAS] = (), (np.zeros(1, np.float32),)
    places = {row: lowering.arrays.derive(*derived) for row, derived in rows.items()}
    step = (COLUMNS, spec.n, *places)
    place = lowering.arrays.derive_of((step,), tuple(places.values()))
    return lowering.parameter_at(place, f"{weight.name}_columns")


def _attention(lowering: Lowering, node: Node, isa: Isa) -> list[Any]:
    q, k, v, mask, past_k, past_v, lengths = (node.input(i) for i in range(7))
    spec = _attention_spec(node)
    operands, present = [lowering[q]], list[Any]()
    if k is not None and v is not None:
        keys_values = [lowering[k], lowering[v]]
        if past_k is not None or len(node.outputs) > 1:
            keys_values = present = presents(lowering, k, v, past_k, past_v, spec.kv_heads)
        operands += keys_values
    if mask is not None:
        assert mask.tensor.dims is not None
        check_fits(lowering, [mask.tensor.dims[:-1]], _scored(q, spec.heads))
    operands += [lowering[value] for value in (mask, lengths) if value is not None]
    if past_k is not None:
        operands.append(lowering.dim(past_k.tensor.dims[2]))  # type: ignore[index]
    y = _call(lowering, spec.name, lambda: attention.kernel(spec, isa), operands, node.outputs[:1])
    return [*y, *present]


def _scored(q: Value | None, heads: int) -> tuple[Dim, ...]:
    """The dims of scores before the keys: batch, heads, queries."""
    assert q is not None and q.tensor.dims is not None
    return q.tensor.dims[0], heads, q.tensor.dims[-2]


def _attention_spec(node: Node) -> Attention:
    """The kernel's specialization for a fused attention."""
    q, k, _, mask, past, _, lengths = (node.input(i) for i in range(7))
    assert q is not None
    attrs: Any = node.attrs
    heads, kv_heads = attrs["q_num_heads"], attrs["kv_num_heads"]
    d, v_d, layout = _last_dim(q), _last_dim(node.outputs[0]), "heads"
    if q.tensor.rank == 3:
        v_d, layout = v_d // heads, "hidden" if k is not None else "packed"
        d = d // heads if k is not None else (d - kv_heads * v_d) // (heads + kv_heads)
    joined = past is not None or len(node.outputs) > 1
    return Attention(
        heads,
        kv_heads,
        d,
        v_d,
        attrs["scale"],
        attrs["dtype"],
        layout,
        "heads" if joined or layout == "heads" else "hidden",
        mask="" if mask is None else dtype_of(mask.type),
        axes="" if mask is None else _axes(mask, q),
        causal=bool(attrs.get("is_causal")),
        window=(attrs.get("left_window_size", -1), attrs.get("right_window_size", -1)),
        softcap=float(attrs.get("softcap") or 0.0),
        past=past is not None,
        lengths=lengths is not None,
    )


def _axes(mask: Value, q: Value) -> str:
    dims, batch = mask.tensor.dims, (q.tensor.dims or (None,))[0]
    assert dims is not None
    *outer, _ = zip("bhqk"[-len(dims) :], dims, strict=True)
    # A fixed batch of one does not broadcast: buckets share the kernel with other sizes.
    broadcast = [dim == 1 and not (name == "b" and batch == 1) for name, dim in outer]
    return "".join("1" if b else name for b, (name, _) in zip(broadcast, outer, strict=True)) + "k"


def _last_dim(value: Value | None) -> int:
    assert value is not None and value.tensor.dims is not None
    (*_, last) = value.tensor.dims
    assert isinstance(last, int)
    return last


def _embedding(lowering: Lowering, node: Node, isa: Isa) -> Sequence[Any]:
    """The kernel where tables are constants with rows of whole vectors and ids are [batch, length]; else the
    generic rule."""
    gamma, beta, *pairs = node.inputs
    out = node.output.tensor
    n = out.dims[-1] if out.dims is not None else None
    plain = (
        isinstance(n, int)
        and n % 16 == 0
        and out.rank == 3
        and out.dtype is DType.F32
        and all(v is not None and v.is_constant for v in (gamma, beta, *pairs[1::2]))
        and all(_ids_fit(ids, node.output) for ids in pairs[::2])
    )
    if not plain:
        return norm.RULES[EMBEDDING](lowering, node)
    assert isinstance(n, int) and gamma is not None and beta is not None
    vectors = np.stack([gamma.numpy(), beta.numpy()]).astype(np.float32)
    tables, operands = [], [lowering.parameter(vectors, "embedding_norm")]
    for ids, table in zip(pairs[::2], pairs[1::2], strict=True):
        assert ids is not None and table is not None
        dims = ids.tensor.dims
        assert dims is not None
        rows, encoding = table.tensor.shape[0], table.encoding
        int8 = encoding is not None and has_int8_rows(encoding)
        tables.append(Table(rows, int8, dtype_of(ids.type), dims[0] != 1, dims[1] != 1))
        operands.append(lowering[ids])
        if int8:
            assert isinstance(encoding, Affine)
            operands.append(lowering.derived(*values_of(encoding), table.name))
            operands.append(lowering.parameter(encoding.scale, f"{table.name}_scale"))
        else:
            operands.append(lowering[table])
    spec = EmbeddingNorm(n, float(node.attrs["epsilon"]), tuple(tables))  # type: ignore[arg-type]
    return _call(
        lowering, spec.name, lambda: embedding.kernel(spec, isa), operands, node.outputs[:1]
    )


def has_int8_rows(encoding: Encoding) -> bool:
    """Whether the embedding kernel can look up rows as they are stored."""
    return (
        isinstance(encoding, Affine)
        and encoding.storage is DType.I8
        and (encoding.axis, encoding.block) == (0, 0)
        and encoding.is_symmetric
    )


def _ids_fit(ids: Value | None, out: Value) -> bool:
    """Whether ids are integers [batch, length], or 1 in place of either."""
    if ids is None or not ids.tensor.dtype.is_integer or ids.tensor.rank != 2:
        return False
    wanted = out.tensor.dims
    assert wanted is not None and ids.tensor.dims is not None
    return all(d in (1, w) for d, w in zip(ids.tensor.dims, wanted[:2], strict=True))
