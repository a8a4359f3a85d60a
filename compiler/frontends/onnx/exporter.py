"""IR to ONNX protobuf.

The opset that is stamped is the lowest at which every op means what the IR says, so that as many
runtimes as possible take the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from tersor.errors import Unsupported
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

MIN_OPSET = 17  # LayerNormalization; every runtime of today takes it.
IR_VERSION = 10


@dataclass(frozen=True)
class Outside:
    """Where a constant lies that is not in the model's own file: a name beside it, and bytes there."""

    location: str
    offset: int
    length: int


def export_model(
    graph: Graph,
    *,
    opset: int | None = None,
    ir_version: int = IR_VERSION,
    outside: Mapping[Encoding, Outside] | None = None,
) -> ModelProto:
    """An ONNX model of ``graph``: standard and foreign ops with dense constants.

    Args:
        graph: what to export.
        opset: to stamp; None: the lowest that fits.
        ir_version: to stamp.
        outside: where some of the constants are written; the others are in the protobuf itself.

    Raises:
        Unsupported: a ``tersor.*`` op or an encoded constant, which a backend must lower first, or an
            op that the wanted opset does not have.
    """
    needed = required_opset(graph)
    if opset is not None and opset < needed:
        raise Unsupported(f"opset {opset} is too old for this graph, which needs {needed}")
    opset = opset or needed
    model = ModelProto(ir_version=ir_version, producer_name="tersor")
    model.opset_import.append(onnx.helper.make_opsetid("", opset))
    for domain in sorted({split_domain(n.op)[0] for n in graph.walk()} - {""}):
        newest = ML_OPSET if domain == "ai.onnx.ml" else 1
        version = graph.domains.get(domain, newest)
        model.opset_import.append(onnx.helper.make_opsetid(domain, version))
    model.graph.CopyFrom(_Exporter(graph, opset, outside or {}).export())
    for key in sorted(graph.metadata):
        model.metadata_props.add(key=key, value=graph.metadata[key])
    return model


def required_opset(graph: Graph) -> int:
    """The lowest opset at which all of the graph's standard ops have the IR's meaning."""
    return max((MIN_OPSET, *(_node_opset(n) for n in graph.walk() if not split_domain(n.op)[0])))


def _node_opset(node: Node) -> int:
    """Where a node's op with these attributes and operand types begins to be what it is."""
    row = TABLE.get(node.op)
    newest = schema(node.op)
    if newest is None:
        raise Unsupported(f"{node.label}: {node.op} is no ONNX op; a backend must lower it first")
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
    found = set()
    version = IR_OPSET
    while version >= 1:
        at = schema(op, version)
        if at is None:
            break
        found.add(int(at.since_version))
        version = at.since_version - 1
    return sorted(found)


def _fits(node: Node, version: int) -> bool:
    """Whether the schema of ``version`` has the node's attributes and takes its operands' types."""
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
            written = formal[min(i, len(formal) - 1)].type_str
            # A type in place of a parameter's name is the only one allowed.
            if _onnx_type(value.type.dtype) not in allowed.get(written, {written}):
                return False
    return True


def _onnx_type(dtype: DType) -> str:
    name = TensorProto.DataType.Name(TO_ONNX[dtype]).lower()
    return f"tensor({name})"


class _Exporter:
    """One export: names of values, chosen so that the interface's come first."""

    def __init__(self, graph: Graph, opset: int, outside: Mapping[Encoding, Outside]) -> None:
        self.graph = graph
        self.opset = opset
        self.outside = outside
        self.names: dict[Value, str] = {}
        self.taken: set[str] = {v.name for v in graph.inputs} | set(graph.output_names)
        self.tried: dict[str, int] = {}
        self.node_names: set[str] = set()
        self.tried_nodes: dict[str, int] = {}

    def export(self) -> GraphProto:
        return self._graph(self.graph, outermost=True)

    def _graph(self, graph: Graph, outermost: bool) -> GraphProto:
        proto = GraphProto(name=graph.name)
        for value in graph.inputs:
            self.names[value] = value.name if outermost else self._fresh(value.name)
            proto.input.add(name=self.names[value]).type.CopyFrom(type_to_proto(value.type))
        copies = self._name_outputs(graph, outermost)
        for value in graph.constants.values():
            proto.initializer.append(self._initializer(value))
        for node in graph.nodes:
            proto.node.append(self._node(node))
        for name, value in copies:
            label = _unlike("Identity", self.node_names, self.tried_nodes)
            proto.node.add(op_type="Identity", name=label, input=[self.names[value]], output=[name])
        outputs = graph.output_names if outermost else self._inner_outputs(graph, copies)
        for name, value in zip(outputs, graph.outputs, strict=True):
            proto.output.add(name=name).type.CopyFrom(type_to_proto(value.type))
        return proto

    def _name_outputs(self, graph: Graph, outermost: bool) -> list[tuple[str, Value]]:
        """Names results that the graph returns; what cannot carry the name itself (an input, a
        constant, an outer value, something returned twice) is copied under it at the end."""
        copies = []
        inputs = {v.name: v for v in graph.inputs} if outermost else {}
        for name, value in zip(graph.output_names, graph.outputs, strict=True):
            if inputs.get(name, value) is not value:
                raise Unsupported(
                    f"output {name!r} has the name of an input, which ONNX cannot say: rename one"
                )
            own = value.producer is not None and value.producer.graph is graph
            wanted = name if outermost else self._fresh(value.name)
            if own and value not in self.names:
                self.names[value] = wanted
            elif self.names.get(value) != wanted:
                copies.append((wanted, value))
        return copies

    def _inner_outputs(self, graph: Graph, copies: Sequence[tuple[str, Value]]) -> list[str]:
        waiting: dict[Value, deque[str]] = {}
        for name, value in copies:
            waiting.setdefault(value, deque()).append(name)
        seen: set[Value] = set()
        names = []
        for value in graph.outputs:
            first = value not in seen
            seen.add(value)
            if waiting.get(value) and not (first and self._is_named_output(graph, value)):
                names.append(waiting[value].popleft())
            else:
                names.append(self.names[value])
        return names

    def _is_named_output(self, graph: Graph, value: Value) -> bool:
        return value.producer is not None and value.producer.graph is graph

    def _fresh(self, base: str) -> str:
        return _unlike(base, self.taken, self.tried)

    def _name(self, value: Value | None) -> str:
        if value is None:
            return ""
        if value not in self.names:
            self.names[value] = self._fresh(value.name)
        return self.names[value]

    def _initializer(self, value: Value) -> TensorProto:
        if value.encoding is None or not value.encoding.is_dense:
            described = value.encoding.describe() if value.encoding else "nothing"
            raise Unsupported(f"{value!r} is held as {described}; a backend must lower it first")
        if (place := self.outside.get(value.encoding)) is not None:
            return _reference(value.encoding.type, place, self._name(value))
        return _tensor(value.encoding.decode(), self._name(value))

    def _node(self, node: Node) -> NodeProto:
        domain, op = split_domain(node.op)
        proto = NodeProto(op_type=op, domain=domain)
        proto.input.extend(self._name(v) for v in node.inputs)
        # An empty name at the end says nothing, and ONNX Runtime's fusions read what it stands for.
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
        """Outputs nobody reads are left out where the op allows it."""
        newest = schema(node.op)
        for i in reversed(range(1, len(node.outputs))):
            optional = newest is None or _is_optional_output(newest, i)
            if node.outputs[i].uses or not optional:
                continue
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
        return _unlike(base, self.node_names, self.tried_nodes)


def _unlike(base: str, taken: set[str], tried: dict[str, int]) -> str:
    """``base``, or ``base_1`` … that is not in ``taken``, to which it is added. ``tried`` keeps how
    far each base has come, since thousands may have the same."""
    name, i = base, tried.get(base, 0)
    while name in taken:
        i += 1
        name = f"{base}_{i}"
    tried[base] = i
    taken.add(name)
    return name


def _is_optional_output(at: onnx.defs.OpSchema, index: int) -> bool:
    outputs = list(at.outputs)
    if index >= len(outputs):
        return False
    return bool(outputs[index].option == onnx.defs.OpSchema.FormalParameterOption.Optional)


def _tensor(array: np.ndarray, name: str) -> TensorProto:
    return array_to_proto(array, name)


def _reference(type: TensorType, place: Outside, name: str) -> TensorProto:
    """A tensor whose numbers are in another file."""
    proto = TensorProto(name=name, data_type=TO_ONNX[type.dtype], dims=type.shape)
    refer(proto, place)
    return proto


def refer(proto: TensorProto, place: Outside) -> None:
    """Makes ``proto`` refer to numbers in another file."""
    del proto.external_data[:]
    proto.data_location = TensorProto.EXTERNAL
    for key in ("location", "offset", "length"):
        proto.external_data.add(key=key, value=str(getattr(place, key)))
