"""ONNX protobuf to IR, by way of onnx-graphsurgeon.

Names, dtypes and symbolic dims are kept; ops are brought to what they mean at ``IR_OPSET``
(:mod:`normalize`); types are inferred by the op table, whose symbolic dims are sharper than the
file's own value_info, which fills in only what the table does not know (opaque ops).

Graphsurgeon carries nodes, operands, plain attributes and subgraphs. Around it goes what it would
lose: tensors (2- to 8-bit floats, sparse and external ones), types other than tensors, lists of
graphs and tensors, byte strings, metadata.
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
from tersor.frontends.onnx.beside import Files
from tersor.frontends.onnx.check import (
    check_depth,
    check_interface,
    check_node,
    check_versions,
    domain_of,
    graphs_in,
)
from tersor.frontends.onnx.control import body_input_types
from tersor.frontends.onnx.functions import inlined
from tersor.frontends.onnx.inputs import InputDims
from tersor.frontends.onnx.load import read_model
from tersor.frontends.onnx.normalize import normalize
from tersor.frontends.onnx.old import Old
from tersor.frontends.onnx.order import check_names, node_label, sorted_nodes
from tersor.frontends.onnx.scopes import module_path
from tersor.frontends.onnx.tensors import Tensors, element_type
from tersor.frontends.onnx.written import Written, check_initializer, merged
from tersor.ir import Attribute, Dense, Graph, UnknownType, Value, ValueType
from tersor.ops import IR_OPSET, TABLE
from tersor.ops.onnx_schema import TO_ONNX, schema, type_from_proto

OWN_DOMAIN = "tersor"  # of ops that passes make; no file has them.


def import_model(
    source: str | Path | bytes | onnx.ModelProto,
    *,
    allow_hf_cache: bool = False,
    remarks: list[str] | None = None,
) -> Graph:
    """The graph of an ONNX model: a path, its bytes, or the protobuf.

    ``allow_hf_cache``: follow the links of the Hugging Face cache to external data.
    ``remarks``: gains a line for what is wrong with the model and does not matter.

    Raises:
        InvalidModel: not a model, or one that contradicts itself; names the tensor or node.
        Unsupported: an opset or op form that cannot be brought to the newest.
    """
    try:
        return _import(*read_model(source, allow_hf_cache=allow_hf_cache), remarks)
    except TersorError as error:
        # Names are anyone's text, and may be as long as the file.
        told = one_line(error, LONGEST)
        kind = InvalidModel if isinstance(error, InvalidGraph) else type(error)
        if kind is type(error) and told == str(error):
            raise
        raise kind(told) from None
    except RecursionError:
        raise InvalidModel("the model nests deeper than Python can follow: flatten it") from None
    except MemoryError:
        raise InvalidModel("the model takes more memory than there is") from None


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
        remarks += [*_defaults(model), *scope.written.remarks()]
    return scope.graph


def _defaults(model: onnx.ModelProto) -> list[str]:
    """A line where callers could have given inputs that are constants from here on."""
    inputs = {i.name for i in model.graph.input}
    held = [t.name for t in model.graph.initializer if t.name in inputs]
    if not held or model.ir_version < 4:  # Before, all initializers had to be inputs.
        return []
    more = f" and {len(held) - 1} more" if len(held) > 1 else ""
    return [
        f"the default of input {held[0]!r}{more} is taken as a constant: no caller can give another"
    ]


def _surgeon(model: onnx.ModelProto) -> gs.Graph:
    for tensor in _tensors(model.graph):
        element_type(tensor)
    try:
        with G_LOGGER.suppress():
            return gs.import_onnx(_carried(model))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InvalidModel(f"the model cannot be read ({reason}): run onnx.checker on it") from None


def _tensors(graph: GraphProto) -> Iterator[onnx.TensorProto]:
    """All tensors that graphsurgeon will look at, subgraphs' too."""
    graphs = [graph]
    while graphs:
        at = graphs.pop()
        yield from at.initializer
        for node in at.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors
                graphs += graphs_in(attribute)


def _carried(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, without attributes that graphsurgeon cannot read: it decodes all strings as text."""
    graphs, found = [model.graph], False
    while graphs and not found:
        for node in graphs.pop().node:
            found = found or any(_is_binary(a) for a in node.attribute)
            graphs += [g for a in node.attribute for g in graphs_in(a)]
    if not found:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graphs = [copy.graph]
    while graphs:
        for node in graphs.pop().node:
            kept = [a for a in node.attribute if not _is_binary(a)]
            del node.attribute[:]
            node.attribute.extend(kept)
            graphs += [g for a in node.attribute for g in graphs_in(a)]
    return copy


def _is_binary(attribute: AttributeProto) -> bool:
    return any(isinstance(_text(s), bytes) for s in (attribute.s, *attribute.strings))


@dataclass
class _Scope:
    """A graph under construction, and its values by their names in the file."""

    graph: Graph
    tensors: Tensors
    opsets: dict[str, int]
    dims: InputDims
    outer: _Scope | None = None
    values: dict[str, Value] = field(default_factory=dict)
    written: Written = field(default_factory=Written)

    def value(self, name: str, reader: str) -> Value | None:
        """The value called ``name``, here or in an outer graph; None for an empty name."""
        if not name:
            return None
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        raise InvalidModel(f"{reader} reads {name!r}, which nothing makes")


def _import_graph(
    surgeon: gs.Graph, proto: GraphProto, scope: _Scope, inputs: Sequence[ValueType] = ()
) -> None:
    """``inputs``: types of the graph's inputs, where the file does not write them."""
    graph = scope.graph
    check_interface(proto, inner=scope.outer is not None)
    check_names(proto)
    initializers = {t.name for t in proto.initializer}
    initializers |= {s.values.name for s in proto.sparse_initializer}
    # Inputs name the interface, so their names are taken before any other. What is an initializer
    # as well (IR version 3 asked for that) is a constant.
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
    for info in (*proto.value_info, *proto.output):
        scope.written.types[info.name] = scope.dims.written(info.type)
    for name, value in scope.values.items():
        scope.written.agreed("graph", name, value.type)
    for info in proto.input:
        if info.name in initializers:
            check_initializer(info.name, scope.values[info.name].type, type_from_proto(info.type))
    for i in sorted_nodes(proto.node):
        _import_node(surgeon.nodes[i], proto.node[i], scope)
    outputs = [scope.value(o.name, f"graph output {o.name!r}") for o in proto.output]
    graph.set_outputs([v for v in outputs if v is not None], _names_of_outputs(proto))


def _names_of_outputs(proto: GraphProto) -> list[str]:
    """Names of a graph's outputs. An inner one may return a value twice, and nobody asks for its
    names, so they need only differ."""
    names: dict[str, None] = {}
    for name in (o.name for o in proto.output):
        unique, i = name, 0
        while unique in names:
            i += 1
            unique = f"{name}_{i}"
        names[unique] = None
    return list(names)


def _import_node(surgeon: gs.Node, proto: NodeProto, scope: _Scope) -> None:
    graph, label = scope.graph, node_label(proto)
    check_node(proto, scope.opsets)
    domain = domain_of(surgeon.domain or "")
    if not domain and surgeon.op == "Constant":
        made = graph.constant(_constant(proto, scope), proto.output[0])
        scope.values[proto.output[0]] = made
        return
    if "." in proto.op_type or domain == OWN_DOMAIN:
        raise InvalidModel(
            f"{label}: {f'{domain}.' if domain else ''}{proto.op_type} is no op of an ONNX model"
        )
    op = f"{domain}.{surgeon.op}" if domain else str(surgeon.op)
    names = _output_names(op, [t.name for t in surgeon.outputs])
    try:
        inputs = [scope.value(t.name, label) for t in surgeon.inputs]
        old = Old(graph, op, inputs, {}, len(names), module_path(proto))
        old.attrs = _attributes(surgeon, proto, scope, inputs)
        if not domain:
            normalize(old, scope.opsets[""])
        while old.inputs and old.inputs[-1] is None:
            old.inputs.pop()
        opaque = TABLE.is_opaque(old.op)
        node = graph.emit_node(
            old.op,
            old.inputs,
            old.attrs,
            names=[n if n else "unused" for n in names],
            types=[UnknownType() for _ in names] if opaque else None,
            scope=old.scope,
            node_name=proto.name,
        )
    except (InvalidGraph, TypeError) as error:
        raise InvalidModel(f"{label}: {error}") from None
    except Unsupported as error:
        raise Unsupported(f"{label}: {error}") from None
    results = [
        graph.emit("Cast", [v], {"to": TO_ONNX[old.casts[i]]}) if i in old.casts else v
        for i, v in enumerate(node.outputs)
    ]
    for name, value in zip(names, results, strict=True):
        value.type = scope.written.agreed(label, name, value.type)
        if name:
            scope.values[name] = value


def _output_names(op: str, names: list[str]) -> list[str]:
    """Names of results, without those at the end that the node leaves out. A variadic result keeps
    its place: Split counts them."""
    at = schema(op)
    formal = list(at.outputs) if at is not None else []
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    while len(names) > 1 and not names[-1]:
        if formal and formal[min(len(names), len(formal)) - 1].option == variadic:
            break
        names.pop()
    return names


def _constant(proto: NodeProto, scope: _Scope) -> np.ndarray:
    """A Constant node's numbers, in any of the forms it can give them."""
    if len(proto.attribute) != 1:
        raise InvalidModel(f"{node_label(proto)}: needs exactly one attribute, the value")
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
            raise InvalidModel(f"{node_label(proto)}: has no attribute {attribute.name!r}")


def _attributes(
    surgeon: gs.Node, proto: NodeProto, scope: _Scope, inputs: list[Value | None]
) -> dict[str, Attribute]:
    """All attributes of a node: those that graphsurgeon carries, and the rest from the protobuf."""
    numbers = {a.name: a for a in proto.attribute}
    scans, axes = numbers.get("num_scan_inputs"), numbers.get("scan_input_axes")
    standard = proto.op_type if not domain_of(proto.domain) else ""
    if scope.opsets.get("", IR_OPSET) < 9:
        standard = ""  # Scan-8 had other operands.
    types = body_input_types(
        standard,
        inputs,
        int(scans.i) if scans is not None else 0,
        tuple(axes.ints) if axes is not None else (),
    )
    found: dict[str, Attribute] = {}
    for attribute in proto.attribute:
        carried = surgeon.attrs.get(attribute.name)
        if isinstance(carried, gs.Graph):
            found[attribute.name] = _subgraph(carried, attribute.g, scope, types)
        elif isinstance(carried, (int, float, str)):
            found[attribute.name] = carried
        elif isinstance(carried, list):
            found[attribute.name] = tuple(carried)
        else:
            found[attribute.name] = _attribute(attribute, scope)
    return found


def _attribute(proto: AttributeProto, scope: _Scope) -> Attribute:
    """An attribute of a kind that goes around graphsurgeon."""
    match proto.type:
        case AttributeProto.GRAPHS:
            opset = scope.opsets.get("", IR_OPSET)
            carried = [OnnxImporter.import_graph(g, opset=opset) for g in proto.graphs]
            pairs = zip(carried, proto.graphs, strict=True)
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
    raise Unsupported(f"its attribute {proto.name!r} is of kind {kind}, which is not carried here")


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _subgraph(
    surgeon: gs.Graph, proto: GraphProto, outer: _Scope, types: Sequence[ValueType]
) -> Graph:
    graph = Graph(proto.name or "body", None, outer.graph)
    written = Written(contradicted=outer.written.contradicted)
    scope = _Scope(graph, outer.tensors, outer.opsets, outer.dims, outer, written=written)
    _import_graph(surgeon, proto, scope, types)
    return graph
