"""ONNX protobuf to IR, with onnx-graphsurgeon.

Names, element types and symbolic dims are kept, and ops are updated to ``IR_OPSET`` (:mod:`normalize`). Types
are inferred by the op table, whose symbolic dims are more precise than the file's value_info; that only fills
in what the table cannot infer (opaque ops).

Graphsurgeon reads nodes, operands, plain attributes and subgraphs. What it would lose is read from the
protobuf: tensors (2- to 8-bit floats, sparse and external ones), types other than tensors, lists of graphs
and tensors, byte strings, metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx_graphsurgeon as gs
from onnx import AttributeProto, GraphProto, NodeProto
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.logger import G_LOGGER

from tersor.errors import (
    LONGEST,
    InvalidGraph,
    InvalidModel,
    TersorError,
    Unsupported,
    one_line,
)
from tersor.frontends.naming import unique
from tersor.frontends.onnx.check import (
    check_depth,
    check_interface,
    check_node,
    check_versions,
    domain_of,
)
from tersor.frontends.onnx.contrib import DOMAIN as CONTRIB
from tersor.frontends.onnx.contrib import decomposed
from tersor.frontends.onnx.declared import DeclaredTypes, check_initializer, merged
from tersor.frontends.onnx.external_data import Files
from tersor.frontends.onnx.functions import inlined
from tersor.frontends.onnx.inputs import InputDims
from tersor.frontends.onnx.legacy import LegacyNode
from tersor.frontends.onnx.load import read_model
from tersor.frontends.onnx.loop_inputs import body_input_types
from tersor.frontends.onnx.normalize import normalize
from tersor.frontends.onnx.order import check_names, node_label, sorted_nodes
from tersor.frontends.onnx.scopes import module_path
from tersor.frontends.onnx.tensors import Tensors, element_type
from tersor.frontends.onnx.walk import all_graphs, all_nodes
from tersor.ir import Attribute, Dense, Graph, UnknownType, Value, ValueType
from tersor.ops import IR_OPSET, TABLE
from tersor.ops.onnx_schema import TO_ONNX, schema, type_from_proto

OWN_DOMAIN = "tersor"  # Of ops that only passes emit.


def import_model(
    source: str | Path | bytes | onnx.ModelProto,
    *,
    allow_hf_cache: bool = False,
    remarks: list[str] | None = None,
) -> Graph:
    """The graph of an ONNX model, given as a path, bytes or protobuf.

    ``allow_hf_cache``: follow links of the Hugging Face cache to external data.
    ``remarks``: gets a line for each defect of the model that does not matter.

    Raises:
        InvalidModel: not a model, or an inconsistent one; names the tensor or node.
        Unsupported: an opset or a form of an op that cannot be updated.
    """
    try:
        return _import(*read_model(source, allow_hf_cache=allow_hf_cache), remarks)
    except TersorError as error:
        # Names in a model are untrusted text, and may be as long as the file.
        message = one_line(error, LONGEST)
        kind = InvalidModel if isinstance(error, InvalidGraph) else type(error)
        if kind is type(error) and message == str(error):
            raise
        raise kind(message) from None
    except RecursionError:
        raise InvalidModel("the model exceeds Python's recursion limit: flatten it") from None
    except MemoryError:
        raise InvalidModel("the model needs more memory than is available") from None


def _import(model: onnx.ModelProto, files: Files | None, remarks: list[str] | None = None) -> Graph:
    check_depth(model)
    check_versions(model)
    model = inlined(model)
    opsets = check_versions(model)
    dims = InputDims(model.graph)
    scope = _Scope(TABLE.graph(model.graph.name or "main"), Tensors(files), opsets, dims)
    scope.graph.metadata = {entry.key: entry.value for entry in model.metadata_props}
    scope.graph.domains = {domain: opsets[domain] for domain in opsets if domain}
    surgeon = _surgeon(model)
    _import_graph(surgeon, model.graph, scope)
    if remarks is not None:
        remarks += [*_default_remarks(model), *scope.declared.remarks()]
    return scope.graph


def _default_remarks(model: onnx.ModelProto) -> list[str]:
    """A remark if inputs have defaults, which become constants."""
    inputs = {i.name for i in model.graph.input}
    names = [t.name for t in model.graph.initializer if t.name in inputs]
    if not names or model.ir_version < 4:  # Before, all initializers had to be inputs.
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [
        f"the default of input {names[0]!r}{more} became a constant: callers cannot override it"
    ]


def _surgeon(model: onnx.ModelProto) -> gs.Graph:
    for tensor in _tensors(model.graph):
        element_type(tensor)
    try:
        with G_LOGGER.suppress():
            return gs.import_onnx(_without_binary(model))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InvalidModel(f"the model cannot be read ({reason}): run onnx.checker on it") from None


def _tensors(graph: GraphProto) -> Iterator[onnx.TensorProto]:
    """All tensors that graphsurgeon converts."""
    for inner in all_graphs(graph):
        yield from inner.initializer
        for attribute in (a for node in inner.node for a in node.attribute):
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def _without_binary(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` without byte strings in attributes, because graphsurgeon decodes all of them as text."""
    nodes = all_nodes(model.graph.node)
    if not any(_is_binary(a) for node in nodes for a in node.attribute):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in all_nodes(copy.graph.node):
        kept = [a for a in node.attribute if not _is_binary(a)]
        del node.attribute[:]
        node.attribute.extend(kept)
    return copy


def _is_binary(attribute: AttributeProto) -> bool:
    return any(isinstance(_text(s), bytes) for s in (attribute.s, *attribute.strings))


@dataclass
class _Scope:
    """A graph under construction, and its values by name in the file."""

    graph: Graph
    tensors: Tensors
    opsets: dict[str, int]
    dims: InputDims
    outer: _Scope | None = None
    values: dict[str, Value] = field(default_factory=dict)
    declared: DeclaredTypes = field(default_factory=DeclaredTypes)

    def value(self, name: str) -> Value | None:
        """The value named ``name``, here or in an outer graph; None for an empty name.

        Raises:
            InvalidModel: there is none.
        """
        if not name:
            return None
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        raise InvalidModel(f"{name!r} is not defined")


def _import_graph(
    surgeon: gs.Graph, proto: GraphProto, scope: _Scope, inputs: Sequence[ValueType] = ()
) -> None:
    """``inputs``: types of the graph's inputs, for those that the file does not declare."""
    graph = scope.graph
    check_interface(proto, inner=scope.outer is not None)
    check_names(proto)
    _add_inputs_and_constants(proto, scope, inputs)
    for info in (*proto.value_info, *proto.output):
        scope.declared.types[info.name] = scope.dims.declared(info.type)
    for name, value in scope.values.items():
        scope.declared.reconcile(name, value.type)
    for i in sorted_nodes(proto.node):
        _import_node(surgeon.nodes[i], proto.node[i], scope)
    try:
        outputs = [scope.value(o.name) for o in proto.output]
    except InvalidModel as error:
        raise InvalidModel(f"graph output {error}") from None
    graph.set_outputs([v for v in outputs if v is not None], unique([o.name for o in proto.output]))


def _add_inputs_and_constants(
    proto: GraphProto, scope: _Scope, inputs: Sequence[ValueType]
) -> None:
    graph = scope.graph
    initializers = {t.name for t in proto.initializer}
    initializers |= {s.values.name for s in proto.sparse_initializer}
    # Inputs come first, so that they get their names. An input that is also an initializer, as IR version 3
    # requires, is a constant.
    interface = [info for info in proto.input if info.name not in initializers]
    for i, (info, type) in enumerate(zip(interface, scope.dims.types(interface), strict=True)):
        if i < len(inputs):
            type = merged(type, inputs[i])
        scope.values[info.name] = graph.add_input(info.name, type)
    for tensor in proto.initializer:
        array = scope.tensors.array(tensor)
        scope.values[tensor.name] = graph.constant(Dense(array), tensor.name)
    for sparse in proto.sparse_initializer:
        name = sparse.values.name
        scope.values[name] = graph.constant(scope.tensors.dense(sparse), name)
    for info in proto.input:
        if info.name in initializers:
            check_initializer(info.name, scope.values[info.name].type, type_from_proto(info.type))


def _import_node(surgeon: gs.Node, proto: NodeProto, scope: _Scope) -> None:
    label = node_label(proto)
    check_node(proto, label, scope.opsets)
    domain = domain_of(surgeon.domain or "")
    if not domain and surgeon.op == "Constant":
        name = proto.output[0]
        scope.values[name] = scope.graph.constant(_constant(proto, scope), name)
        return
    if "." in proto.op_type or domain == OWN_DOMAIN:
        raise InvalidModel(f"{label}: not an op of ONNX models")
    op = f"{domain}.{surgeon.op}" if domain else str(surgeon.op)
    names = _output_names(op, [t.name for t in surgeon.outputs])
    try:
        inputs = [scope.value(t.name) for t in surgeon.inputs]
    except InvalidModel as error:
        raise InvalidModel(f"{label}: its operand {error}") from None
    node = LegacyNode(scope.graph, op, inputs, {}, len(names), module_path(proto))
    try:
        node.attrs = _attributes(surgeon, proto, scope, inputs)
        if not domain:
            normalize(node, scope.opsets[""])
        results = _results(node, names, proto.name, domain)
    except (InvalidGraph, TypeError) as error:
        # Type inference has already named the node.
        named = str(error).startswith(f"{node.op} %")
        raise InvalidModel(str(error) if named else f"{label}: {error}") from None
    except Unsupported as error:
        raise Unsupported(f"{label}: {error}") from None
    for name, value in zip(names, results, strict=True):
        if value is None:
            continue
        value.type = scope.declared.reconcile(name, value.type, label)
        if name:
            scope.values[name] = value


def _results(
    node: LegacyNode, names: list[str], node_name: str, domain: str
) -> Sequence[Value | None]:
    """Adds ``node`` to its graph, or the nodes that it fuses; returns its results."""
    apart = decomposed(node, [bool(n) for n in names]) if domain == CONTRIB else None
    return _emit(node, names, node_name) if apart is None else apart


def _emit(node: LegacyNode, names: list[str], node_name: str) -> list[Value]:
    """Adds ``node`` to its graph; returns its results."""
    while node.inputs and node.inputs[-1] is None:
        node.inputs.pop()
    emitted = node.graph.emit_node(
        node.op,
        node.inputs,
        node.attrs,
        names=[n if n else "unused" for n in names],
        types=[UnknownType() for _ in names] if TABLE.is_opaque(node.op) else None,
        scope=node.scope,
        node_name=node_name,
    )
    return [
        node.graph.emit("Cast", [v], {"to": TO_ONNX[node.casts[i]]}) if i in node.casts else v
        for i, v in enumerate(emitted.outputs)
    ]


def _output_names(op: str, names: list[str]) -> list[str]:
    """``names`` without empty ones at the end. Variadic results are kept, because Split counts them."""
    at = schema(op)
    formal = list(at.outputs) if at is not None else []
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    while len(names) > 1 and not names[-1]:
        if formal and formal[min(len(names), len(formal)) - 1].option == variadic:
            break
        names.pop()
    return names


def _constant(proto: NodeProto, scope: _Scope) -> np.ndarray:
    """The value of a Constant node, in any of its forms."""
    if len(proto.attribute) != 1:
        raise InvalidModel(f"{node_label(proto)}: must have exactly one attribute, its value")
    attribute = proto.attribute[0]
    match attribute.name:
        case "value":
            return scope.tensors.array(attribute.t)
        case "sparse_value":
            return scope.tensors.dense(attribute.sparse_tensor)
        case "value_int" | "value_ints":
            return np.array(onnx.helper.get_attribute_value(attribute), np.int64)
        case "value_float" | "value_floats":
            return np.array(onnx.helper.get_attribute_value(attribute), np.float32)
        case "value_string":
            return np.array(_text(attribute.s), object)
        case "value_strings":
            return np.array([_text(s) for s in attribute.strings], object)
        case _:
            raise InvalidModel(f"{node_label(proto)}: unknown attribute {attribute.name!r}")


def _attributes(
    surgeon: gs.Node, proto: NodeProto, scope: _Scope, inputs: list[Value | None]
) -> dict[str, Attribute]:
    """The attributes of a node, from graphsurgeon or, if it does not read them, from the protobuf."""
    protos = {a.name: a for a in proto.attribute}
    scans, axes = protos.get("num_scan_inputs"), protos.get("scan_input_axes")
    standard = proto.op_type if not domain_of(proto.domain) else ""
    if scope.opsets.get("", IR_OPSET) < 9:
        standard = ""  # Scan-8 had other operands.
    types = body_input_types(
        standard,
        inputs,
        int(scans.i) if scans is not None else 0,
        tuple(axes.ints) if axes is not None else (),
    )
    attributes: dict[str, Attribute] = {}
    for name, attribute in protos.items():
        value = surgeon.attrs.get(name)
        if isinstance(value, gs.Graph):
            attributes[name] = _subgraph(value, attribute.g, scope, types)
        elif isinstance(value, (int, float, str)):
            attributes[name] = value
        elif isinstance(value, list):
            attributes[name] = tuple(value)
        else:
            attributes[name] = _attribute(attribute, scope)
    return attributes


def _attribute(proto: AttributeProto, scope: _Scope) -> Attribute:
    """An attribute that graphsurgeon does not read."""
    match proto.type:
        case AttributeProto.GRAPHS:
            opset = scope.opsets.get("", IR_OPSET)
            surgeons = [OnnxImporter.import_graph(g, opset=opset) for g in proto.graphs]
            pairs = zip(surgeons, proto.graphs, strict=True)
            return tuple(_subgraph(g, p, scope, ()) for g, p in pairs)
        case AttributeProto.TENSOR:
            return Dense(scope.tensors.array(proto.t))
        case AttributeProto.TENSORS:
            return tuple(Dense(scope.tensors.array(t)) for t in proto.tensors)
        case AttributeProto.TYPE_PROTO:
            return type_from_proto(proto.tp)
        case AttributeProto.STRING:
            return _text(proto.s)
        case AttributeProto.STRINGS:
            return tuple(_text(s) for s in proto.strings)  # type: ignore[return-value]
    kind = AttributeProto.AttributeType.Name(proto.type)
    raise Unsupported(f"attribute {proto.name!r} is of the unsupported kind {kind}")


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _subgraph(
    surgeon: gs.Graph, proto: GraphProto, outer: _Scope, types: Sequence[ValueType]
) -> Graph:
    graph = Graph(proto.name or "body", None, outer.graph)
    declared = DeclaredTypes(conflicts=outer.declared.conflicts)
    scope = _Scope(graph, outer.tensors, outer.opsets, outer.dims, outer, declared=declared)
    _import_graph(surgeon, proto, scope, types)
    return graph
