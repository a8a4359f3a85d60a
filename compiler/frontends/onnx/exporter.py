"""IR to ONNX protobuf.

The file's opset is the lowest at which every op has the IR's meaning, so that as many runtimes as possible
accept it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from tersor.errors import Unsupported
from tersor.frontends.naming import Names
from tersor.frontends.onnx.normalize import form_since
from tersor.frontends.onnx.scopes import NAMESPACE
from tersor.ir import Attribute, DType, Encoding, Graph, Node, TensorType, Value
from tersor.ops import IR_OPSET, TABLE
from tersor.ops.onnx_schema import (
    ML_OPSET,
    TO_ONNX,
    array_to_proto,
    attribute_to_proto,
    defaults,
    schema,
    split_domain,
    type_to_proto,
)

MIN_OPSET = 17  # The first with LayerNormalization; all current runtimes support it.
IR_VERSION = 10


@dataclass(frozen=True)
class ExternalRange:
    """The range of an external file that stores a constant."""

    location: str
    offset: int
    length: int


def export_model(
    graph: Graph,
    *,
    opset: int | None = None,
    ir_version: int = IR_VERSION,
    external: Mapping[Encoding, ExternalRange] | None = None,
) -> ModelProto:
    """An ONNX model of ``graph``, whose ops are standard or opaque and whose constants are dense.

    Args:
        graph: the graph.
        opset: the opset of the model; None: the lowest possible.
        ir_version: the IR version of the model.
        external: constants that are stored in another file; the others are stored in the protobuf.

    Raises:
        Unsupported: a ``tersor.*`` op or an encoded constant, which a backend must lower first, or an op
            that ``opset`` does not have.
    """
    needed = required_opset(graph)
    if opset is not None and opset < needed:
        raise Unsupported(f"opset {opset} is too old: the graph needs {needed} or above")
    opset = opset or needed
    model = ModelProto(ir_version=ir_version, producer_name="tersor")
    model.opset_import.append(onnx.helper.make_opsetid("", opset))
    for domain in sorted({split_domain(n.op)[0] for n in graph.walk()} - {""}):
        newest = ML_OPSET if domain == "ai.onnx.ml" else 1
        version = graph.domains.get(domain, newest)
        model.opset_import.append(onnx.helper.make_opsetid(domain, version))
    model.graph.CopyFrom(_Exporter(graph, opset, external or {}).export())
    for key in sorted(graph.metadata):
        model.metadata_props.add(key=key, value=graph.metadata[key])
    return model


def required_opset(graph: Graph) -> int:
    """The lowest opset at which all of the graph's standard ops have the IR's meaning."""
    return max((MIN_OPSET, *(_node_opset(n) for n in graph.walk() if not split_domain(n.op)[0])))


def _node_opset(node: Node) -> int:
    """The lowest opset at which a node with its attributes and types has the IR's meaning."""
    row = TABLE.get(node.op)
    newest = schema(node.op)
    if newest is None:
        raise Unsupported(f"{node.label}: not an ONNX op; a backend must lower it first")
    start = row.since if row is not None and row.since else form_since(node.op)
    if row is not None and row.needs is not None:
        start = max(start, row.needs(node))
    for version in _versions(node.op):
        if version >= start and _fits(node, version):
            return version
    return int(newest.since_version)


@cache
def _versions(op: str) -> list[int]:
    """Opsets at which the op's schema changed, ascending."""
    versions = []
    at = schema(op, IR_OPSET)
    while at is not None:
        versions.append(int(at.since_version))
        at = schema(op, at.since_version - 1) if at.since_version > 1 else None
    return versions[::-1]


def _fits(node: Node, version: int) -> bool:
    """Whether the schema of ``version`` has the node's attributes and allows its types."""
    at = schema(node.op, version)
    assert at is not None
    known = defaults(node.op)
    if any(k not in at.attributes and known.get(k) != v for k, v in node.attrs.items()):
        return False
    if len(node.inputs) > at.max_input or len(node.outputs) > at.max_output:
        return False
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in at.type_constraints}
    for values, formal in ((node.inputs, list(at.inputs)), (node.outputs, list(at.outputs))):
        for i, value in enumerate(values):
            if value is None or not isinstance(value.type, TensorType) or not formal:
                continue
            parameter = formal[min(i, len(formal) - 1)].type_str
            # A schema may name a type in place of a type parameter.
            if _onnx_type(value.type.dtype) not in allowed.get(parameter, {parameter}):
                return False
    return True


def _onnx_type(dtype: DType) -> str:
    name = TensorProto.DataType.Name(TO_ONNX[dtype]).lower()
    return f"tensor({name})"


class _Exporter:
    """One export, with the names of values and nodes; names of inputs and outputs take precedence."""

    def __init__(
        self, graph: Graph, opset: int, external: Mapping[Encoding, ExternalRange]
    ) -> None:
        self.graph = graph
        self.opset = opset
        self.external = external
        self.names: dict[Value, str] = {}
        self.value_names = Names([*(v.name for v in graph.inputs), *graph.output_names])
        self.node_names = Names()

    def export(self) -> GraphProto:
        return self._graph(self.graph, outermost=True)

    def _graph(self, graph: Graph, outermost: bool) -> GraphProto:
        proto = GraphProto(name=graph.name)
        for value in graph.inputs:
            name = value.name if outermost else self.value_names.unique(value.name)
            self.names[value] = name
            proto.input.add(name=name).type.CopyFrom(type_to_proto(value.type))
        names, copies = self._name_outputs(graph, outermost)
        for value in graph.constants.values():
            proto.initializer.append(self._initializer(value))
        for node in graph.nodes:
            proto.node.append(self._node(node))
        for copy, value in copies:
            name = self.node_names.unique("Identity")
            proto.node.add(op_type="Identity", name=name, input=[self.names[value]], output=[copy])
        for name, value in zip(names, graph.outputs, strict=True):
            proto.output.add(name=name).type.CopyFrom(type_to_proto(value.type))
        return proto

    def _name_outputs(
        self, graph: Graph, outermost: bool
    ) -> tuple[list[str], list[tuple[str, Value]]]:
        """The names of a graph's outputs, and (name, value) of those that are copies because their value has
        another name: inputs, constants, outer values, values returned twice."""
        names, copies = [], []
        inputs = {v.name: v for v in graph.inputs} if outermost else {}
        for name, value in zip(graph.output_names, graph.outputs, strict=True):
            if inputs.get(name, value) is not value:
                raise Unsupported(
                    f"output {name!r} has the name of an input, which ONNX does not allow: rename one"
                )
            chosen = name if outermost else self.value_names.unique(value.name)
            own = value.producer is not None and value.producer.graph is graph
            if own and value not in self.names:
                self.names[value] = chosen
            elif self.names.get(value) != chosen:
                copies.append((chosen, value))
            names.append(chosen)
        return names, copies

    def _name(self, value: Value | None) -> str:
        if value is None:
            return ""
        if value not in self.names:
            self.names[value] = self.value_names.unique(value.name)
        return self.names[value]

    def _initializer(self, value: Value) -> TensorProto:
        if value.encoding is None or not value.encoding.is_dense:
            form = value.encoding.describe() if value.encoding else "nothing"
            raise Unsupported(f"{value!r} is encoded as {form}; a backend must lower it first")
        type, name = value.encoding.type, self._name(value)
        if (place := self.external.get(value.encoding)) is None:
            return array_to_proto(value.encoding.decode(), name)
        proto = TensorProto(name=name, data_type=TO_ONNX[type.dtype], dims=type.shape)
        refer(proto, place)
        return proto

    def _node(self, node: Node) -> NodeProto:
        domain, op = split_domain(node.op)
        proto = NodeProto(op_type=op, domain=domain)
        proto.input.extend(self._name(v) for v in node.inputs)
        # An empty name at the end is redundant, and some of ONNX Runtime's fusions fail on it.
        while proto.input and not proto.input[-1]:
            proto.input.pop()
        proto.output.extend(self._name(v) for v in node.outputs)
        self._trim(node, proto)
        at = schema(node.op, self.opset)
        known = defaults(node.op)
        for key in sorted(node.attrs):
            attr = node.attrs[key]
            if at is not None and key not in at.attributes and known.get(key) == attr:
                continue
            proto.attribute.append(self._attribute(key, attr, at))
        proto.name = self._node_name(node)
        if node.scope:
            proto.metadata_props.add(key=NAMESPACE, value=node.scope)
        return proto

    def _trim(self, node: Node, proto: NodeProto) -> None:
        """Leaves out unused outputs if the op allows it."""
        newest = schema(node.op)
        for i in range(1, len(node.outputs)):
            if not node.outputs[i].uses and (newest is None or _is_optional_output(newest, i)):
                proto.output[i] = ""
        while len(proto.output) > 1 and not proto.output[-1]:
            proto.output.pop()

    def _attribute(
        self, key: str, attr: Attribute, at: onnx.defs.OpSchema | None
    ) -> onnx.AttributeProto:
        if isinstance(attr, Graph):
            return onnx.helper.make_attribute(key, self._graph(attr, outermost=False))
        if isinstance(attr, tuple) and attr and isinstance(attr[0], Graph):
            graphs = [self._graph(g, outermost=False) for g in attr]
            return onnx.helper.make_attribute(key, graphs)
        return attribute_to_proto(key, attr, at)

    def _node_name(self, node: Node) -> str:
        base = node.name or "/".join([*node.scope.split("."), split_domain(node.op)[1]]).lstrip("/")
        return self.node_names.unique(base)


def _is_optional_output(at: onnx.defs.OpSchema, index: int) -> bool:
    outputs = list(at.outputs)
    if index >= len(outputs):
        return False
    return bool(outputs[index].option == onnx.defs.OpSchema.FormalParameterOption.Optional)


def refer(proto: TensorProto, place: ExternalRange) -> None:
    """Makes the data of ``proto`` external."""
    del proto.external_data[:]
    proto.data_location = TensorProto.EXTERNAL
    for key in ("location", "offset", "length"):
        proto.external_data.add(key=key, value=str(getattr(place, key)))
