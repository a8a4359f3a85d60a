"""ONNX protobuf to IR.

Names, dtypes and symbolic dims are kept; ops are brought to what they mean at ``IR_OPSET``
(:mod:`normalize`); types are inferred by the op table, whose symbolic dims are sharper than the
file's own value_info, which fills in only where the table knows nothing (opaque ops).
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import AttributeProto, GraphProto, NodeProto

from tersor.errors import InvalidGraph, InvalidModel
from tersor.frontends.onnx.load import read_model, tensor_array
from tersor.frontends.onnx.normalize import normalize
from tersor.ir import Attribute, Dense, Graph, TensorType, UnknownType, Value, ValueType, symbol
from tersor.ops import TABLE
from tersor.ops.onnx_schema import type_from_proto

MIN_OPSET = 11


def import_model(source: str | Path | bytes | onnx.ModelProto) -> Graph:
    """The graph of an ONNX model: a path, its bytes, or the protobuf.

    Raises:
        InvalidModel: not a model, or one that contradicts itself; names the tensor or node.
        Unsupported: an opset or op form that cannot be brought to the newest.
    """
    model, folder = read_model(source)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opsets = {o.domain if o.domain != "ai.onnx" else "": o.version for o in model.opset_import}
    if "" in opsets and opsets[""] < MIN_OPSET:
        raise InvalidModel(
            f"opset {opsets['']} is older than {MIN_OPSET}: convert it with onnx.version_converter first"
        )
    scope = _Scope(TABLE.graph(model.graph.name or "main"), folder, opsets.get("", 0))
    _import_graph(model.graph, scope)
    return scope.graph


@dataclass
class _Scope:
    """A graph under construction: the values it sees by their names in the file."""

    graph: Graph
    folder: Path | None
    opset: int
    values: dict[str, Value] = field(default_factory=dict)
    written: dict[str, ValueType] = field(default_factory=dict)

    def inner(self, name: str) -> _Scope:
        graph = Graph(name, None, self.graph)
        return _Scope(graph, self.folder, self.opset, dict(self.values))

    def value(self, name: str, reader: str) -> Value | None:
        if not name:
            return None
        if name not in self.values:
            raise InvalidModel(f"{reader} reads {name!r}, which nothing makes")
        return self.values[name]


def _import_graph(proto: GraphProto, scope: _Scope) -> None:
    graph = scope.graph
    initializers = {t.name for t in proto.initializer}
    # Inputs and outputs name the interface, so their names are taken before any other.
    for info in proto.input:
        if info.name not in initializers:
            type = _named_dims(info.name, type_from_proto(info.type))
            scope.values[info.name] = graph.add_input(info.name, type)
    for tensor in proto.initializer:
        array = tensor_array(tensor, scope.folder)
        scope.values[tensor.name] = graph.constant(Dense(array), tensor.name)
    for sparse in proto.sparse_initializer:
        dense = _densify(sparse, scope.folder)
        scope.values[sparse.values.name] = graph.constant(dense, sparse.values.name)
    scope.written = {i.name: type_from_proto(i.type) for i in (*proto.value_info, *proto.output)}
    for node in _sorted(proto.node, set(scope.values)):
        _import_node(node, scope)
    outputs = [scope.value(o.name, f"graph output {o.name!r}") for o in proto.output]
    graph.set_outputs([v for v in outputs if v is not None], [o.name for o in proto.output])


def _named_dims(name: str, type: ValueType) -> ValueType:
    """Unknown dims of an input become symbols of their own: what comes of them can then be told."""
    if not isinstance(type, TensorType) or type.dims is None:
        return type
    return type.with_dims(
        tuple(symbol(f"{name}_dim{i}") if d is None else d for i, d in enumerate(type.dims))
    )


def _densify(sparse: onnx.SparseTensorProto, folder: Path | None) -> np.ndarray:
    """COO indices, linear [n] or by axis [n, rank], with values [n] (ONNX, SparseTensorProto)."""
    values, indices = tensor_array(sparse.values, folder), tensor_array(sparse.indices, folder)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def _sorted(nodes: Sequence[NodeProto], known: set[str]) -> list[NodeProto]:
    """Nodes so that each stands after what makes its operands; in the file's order if that is so."""
    made = {name: i for i, n in enumerate(nodes) for name in n.output if name}
    waits = [{made[name] for name in _reads(n) if name in made and name not in known} for n in nodes]
    if all(j < i for i, needed in enumerate(waits) for j in needed):
        return list(nodes)
    readers: dict[int, list[int]] = {}
    for i, needed in enumerate(waits):
        for j in needed:
            readers.setdefault(j, []).append(i)
    ready = [i for i, needed in enumerate(waits) if not needed]
    order: list[int] = []
    while ready:
        i = ready.pop(0)
        order.append(i)
        for j in readers.get(i, ()):
            waits[j].discard(i)
            if not waits[j]:
                ready.append(j)
    if len(order) < len(nodes):
        stuck = next(n for i, n in enumerate(nodes) if waits[i])
        raise InvalidModel(f"{_label(stuck)} is part of a cycle")
    return [nodes[i] for i in order]


def _reads(node: NodeProto) -> list[str]:
    """Names that a node reads, in its subgraphs too (names made inside may be among them: harmless,
    as names are unique over a model)."""
    found = list(node.input)
    graphs = [g for a in node.attribute for g in (a.g, *a.graphs) if g.node or g.output]
    while graphs:
        graph = graphs.pop()
        found += [o.name for o in graph.output]
        for inner in graph.node:
            found += inner.input
            graphs += [g for a in inner.attribute for g in (a.g, *a.graphs) if g.node or g.output]
    return found


def _import_node(proto: NodeProto, scope: _Scope) -> None:
    graph, label = scope.graph, _label(proto)
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    if domain == "" and proto.op_type == "Constant":
        scope.values[proto.output[0]] = graph.constant(
            _constant(proto, scope), proto.output[0]
        )
        return
    op = f"{domain}.{proto.op_type}" if domain else proto.op_type
    inputs = [scope.value(name, label) for name in proto.input]
    attrs = {a.name: _attribute(a, scope) for a in proto.attribute}
    names = list(proto.output)
    while len(names) > 1 and not names[-1]:
        names.pop()
    try:
        if not domain:
            op, inputs, attrs = normalize(graph, op, inputs, attrs, scope.opset, len(names))
        while inputs and inputs[-1] is None:
            inputs.pop()
        opaque = TABLE.is_opaque(op)
        node = graph.emit_node(
            op,
            inputs,
            attrs,
            names=[n if n else "unused" for n in names],
            types=[scope.written.get(n, UnknownType()) for n in names] if opaque else None,
            scope=_module_path(proto),
            node_name=proto.name,
        )
    except InvalidGraph as error:
        raise InvalidModel(f"{label}: {error}") from None
    for name, value in zip(names, node.outputs, strict=True):
        if isinstance(value.type, UnknownType):
            value.type = scope.written.get(name, value.type)
        if name:
            scope.values[name] = value


def _label(proto: NodeProto) -> str:
    name = proto.name or (f"making {proto.output[0]!r}" if proto.output else "")
    return f"node {proto.op_type} {name}".rstrip()


def _constant(proto: NodeProto, scope: _Scope) -> np.ndarray:
    attribute = proto.attribute[0]
    if attribute.name == "value":
        return tensor_array(attribute.t, scope.folder)
    if attribute.name == "sparse_value":
        return _densify(attribute.sparse_tensor, scope.folder)
    value = onnx.helper.get_attribute_value(attribute)
    dtype = {"value_int": np.int64, "value_ints": np.int64}.get(attribute.name, np.float32)
    if attribute.name.startswith("value_string"):
        return np.array(value, object)
    return np.array(value, dtype)


def _attribute(proto: AttributeProto, scope: _Scope) -> Attribute:
    match proto.type:
        case AttributeProto.GRAPH:
            return _subgraph(proto.g, scope)
        case AttributeProto.GRAPHS:
            return tuple(_subgraph(g, scope) for g in proto.graphs)
        case AttributeProto.TENSOR:
            return Dense(tensor_array(proto.t, scope.folder))
        case AttributeProto.TENSORS:
            return tuple(Dense(tensor_array(t, scope.folder)) for t in proto.tensors)
        case AttributeProto.SPARSE_TENSOR:
            return Dense(_densify(proto.sparse_tensor, scope.folder))
        case AttributeProto.TYPE_PROTO:
            return type_from_proto(proto.tp)
        case AttributeProto.STRING:
            return _text(proto.s)
        case AttributeProto.STRINGS:
            return tuple(_text(s) for s in proto.strings)  # type: ignore[return-value]
        case AttributeProto.INT:
            return int(proto.i)
        case AttributeProto.FLOAT:
            return float(proto.f)
        case AttributeProto.INTS:
            return tuple(int(i) for i in proto.ints)
        case AttributeProto.FLOATS:
            return tuple(float(f) for f in proto.floats)
    raise InvalidModel(f"attribute {proto.name!r} has no type that is known here")


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _subgraph(proto: GraphProto, outer: _Scope) -> Graph:
    scope = outer.inner(proto.name or "body")
    _import_graph(proto, scope)
    return scope.graph


def _module_path(proto: NodeProto) -> str:
    """The module that a node came from: torch's exporter writes the path of module names as metadata,
    older ones name nodes ``/encoder/layer.0/attention/self/query/MatMul``."""
    for entry in proto.metadata_props:
        if entry.key == "tersor.scope":
            return str(entry.value)
        if entry.key == "pkg.torch.onnx.name_scopes":
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                break
            return str(scopes[-2]) if len(scopes) > 1 else ""
    parts = [p for p in proto.name.split("/") if p]
    return ".".join(parts[:-1]) if proto.name.startswith("/") else ""
