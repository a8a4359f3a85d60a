"""Checks of a model before it is imported: versions, names, arity, attributes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx.defs
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto

from tersor.errors import InvalidModel, Unsupported, suggest
from tersor.frontends.onnx.order import node_label
from tersor.frontends.onnx.walk import graphs_in
from tersor.ops import IR_OPSET
from tersor.ops.onnx_schema import ML_OPSET, schema

MAX_SUBGRAPHS = (
    33  # Nested graphs: each takes three of the hundred nested messages that protobuf allows.
)
_MAX_TYPES = 32  # Nested sequences.

# Domains whose opset a model may omit, because runtimes assume one.
_ASSUMED = ("com.microsoft", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")
# Ops that ONNX Runtime defines in the standard domain also at opsets where ONNX does not.
_ONLY_ORT = ("LayerNormalization", "SimplifiedLayerNormalization")
_KINDS = {v: k.lower() for k, v in AttributeProto.AttributeType.items()}


def domain_of(domain: str) -> str:
    """``domain``, with the standard domain, which has two names, as an empty string."""
    return "" if domain == "ai.onnx" else domain


def check_versions(model: ModelProto) -> dict[str, int]:
    """Opset versions by domain.

    Raises:
        InvalidModel: an IR version or opset below 1, or two opsets of one domain.
        Unsupported: a version newer than this package knows.
    """
    if model.ir_version < 1:
        raise InvalidModel(f"the model's IR version is {model.ir_version}, not 1 or above")
    if model.ir_version > onnx.IR_VERSION:
        raise Unsupported(
            f"IR version {model.ir_version} is newer than {onnx.IR_VERSION}: export the model at that "
            "or below"
        )
    opsets: dict[str, int] = {}
    for entry in model.opset_import:
        domain, version = domain_of(entry.domain), int(entry.version)
        if version < 1:
            raise InvalidModel(f"opset of {domain or 'ai.onnx'!r} is {version}, not 1 or above")
        if opsets.setdefault(domain, version) != version:
            raise InvalidModel(
                f"two opsets of {domain or 'ai.onnx'!r}: {opsets[domain]} and {version}"
            )
    for domain, newest in (("", IR_OPSET), ("ai.onnx.ml", ML_OPSET)):
        if opsets.get(domain, 0) > newest:
            raise Unsupported(
                f"opset {opsets[domain]}{f' of {domain}' if domain else ''} is newer than {newest}: "
                "export the model at that or below"
            )
    return opsets


def check_depth(model: ModelProto) -> None:
    """Checks that nothing nests deeper than a file allows: nothing else limits models in memory.

    Raises:
        InvalidModel: subgraphs or types do.
    """
    level: list[Iterable[NodeProto]] = [model.graph.node, *(f.node for f in model.functions)]
    depth = 0
    types: list[TypeProto] = [i.type for i in _infos(model.graph)]
    while level:
        if depth > MAX_SUBGRAPHS:
            raise InvalidModel(
                f"subgraphs nest deeper than {MAX_SUBGRAPHS}, the most that a file can contain: flatten "
                "them"
            )
        graphs = [g for nodes in level for n in nodes for a in n.attribute for g in graphs_in(a)]
        types += [i.type for g in graphs for i in _infos(g)]
        level = [g.node for g in graphs]
        depth += 1
    for _ in range(_MAX_TYPES):
        types = [inner for t in types if (inner := _element(t)) is not None]
    if types:
        raise InvalidModel(f"a type nests deeper than {_MAX_TYPES}")


def _infos(graph: GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.output
    yield from graph.value_info


def _element(type: TypeProto) -> TypeProto | None:
    kind = type.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return getattr(type, kind).elem_type  # type: ignore[no-any-return]
    return type.map_type.value_type if kind == "map_type" else None


def check_interface(graph: GraphProto, *, inner: bool) -> None:
    """Checks that inputs, initializers and outputs have distinct names, and that there are outputs.

    Raises:
        InvalidModel: one has no name or a duplicate one, or an outermost graph has no outputs.
    """
    if not graph.output and not inner:
        raise InvalidModel("the graph has no outputs, so there is nothing to compile")
    sparse = [s.values.name for s in graph.sparse_initializer]
    for kind, names in (
        ("graph input", [i.name for i in graph.input]),
        ("graph output", [o.name for o in graph.output]),
        ("initializer", [t.name for t in graph.initializer] + sparse),
    ):
        if "" in names:
            raise InvalidModel(f"{kind} {names.index('')} has no name")
        duplicate = _duplicate(names)
        # A branch may return the same value twice.
        if duplicate and not (inner and kind == "graph output"):
            raise InvalidModel(f"duplicate {kind} {duplicate!r}")


def check_node(node: NodeProto, label: str, opsets: Mapping[str, int]) -> None:
    """Checks that a node's op exists, and its operands, results and attributes against the op's schema.
    ``label`` names the node in messages.

    Raises:
        InvalidModel: one of them is wrong.
    """
    domain = domain_of(node.domain)
    if domain not in opsets and domain not in _ASSUMED:
        raise InvalidModel(f"{label}: the model imports no opset of {domain or 'ai.onnx'!r}")
    _check_attributes(node, label)
    if domain:
        return
    op = schema(node.op_type, opsets[""])
    if op is None:
        _check_known(node, label, opsets[""])
        return
    if op.deprecated:
        return
    for kind, count, least, most in (
        ("inputs", len(node.input), op.min_input, op.max_input),
        ("outputs", len(node.output), op.min_output, op.max_output),
    ):
        if not least <= count <= most:
            takes = f"{least}" if least == most else f"{least} to {most}"
            takes = f"{least} or more" if most > count and most > 1000 else takes
            raise InvalidModel(f"{label}: has {count} {kind}, must have {takes}")
    for i, (name, formal) in enumerate(zip(node.input, op.inputs, strict=False)):
        if not name and formal.option == onnx.defs.OpSchema.FormalParameterOption.Single:
            raise InvalidModel(f"{label}: operand {i}, {formal.name!r}, is missing")
    _check_schema_attributes(node, label, op)


def _check_attributes(node: NodeProto, label: str) -> None:
    if duplicate := _duplicate([a.name for a in node.attribute]):
        raise InvalidModel(f"{label}: duplicate attribute {duplicate!r}")
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise InvalidModel(
                f"{label}: attribute {attribute.name!r} refers to a function's attribute "
                f"{attribute.ref_attr_name!r}, but the node is not in a function"
            )
        if attribute.type == AttributeProto.UNDEFINED:
            raise InvalidModel(f"{label}: attribute {attribute.name!r} has no type")


def _check_known(node: NodeProto, label: str, opset: int) -> None:
    """Accepts an op that ``opset`` does not have only if ONNX Runtime defines it."""
    op = node.op_type
    if op in _ONLY_ORT:
        return
    if schema(op) is not None:
        raise InvalidModel(
            f"{label}: the op exists since opset {_first_opset(op)}, but the model imports {opset}"
        )
    names = {s.name for s in onnx.defs.get_all_schemas() if not s.domain}
    raise InvalidModel(f"{label}: ONNX has no op {op!r}{suggest(op, sorted(names))}")


def _first_opset(op: str) -> int:
    return min(
        s.since_version
        for s in onnx.defs.get_all_schemas_with_history()
        if s.name == op and not s.domain
    )


def _check_schema_attributes(node: NodeProto, label: str, op: onnx.defs.OpSchema) -> None:
    for attribute in node.attribute:
        known = op.attributes.get(attribute.name)
        if known is None:
            names = sorted(op.attributes)
            raise InvalidModel(
                f"{label}: unknown attribute {attribute.name!r}{suggest(attribute.name, names)} "
                f"(known: {', '.join(names) or 'none'})"
            )
        kind = int(known.type.value)  # type: ignore[attr-defined]
        if attribute.type != kind:
            raise InvalidModel(
                f"{label}: attribute {attribute.name!r} is of type {_KINDS[attribute.type]}, not "
                f"{_KINDS[kind]}"
            )
    given = {a.name for a in node.attribute}
    for name, known in op.attributes.items():
        if known.required and name not in given:
            raise InvalidModel(f"{label}: attribute {name!r} is missing")


def check_functions(functions: Iterable[FunctionProto]) -> None:
    """Checks that functions have distinct names, and read only their inputs and results of their nodes.

    Raises:
        InvalidModel: one does not.
    """
    seen = set()
    for function in functions:
        where = f"function {function.domain}.{function.name}"
        key = (function.domain, function.name, function.overload)
        if key in seen:
            raise InvalidModel(f"{where} is defined twice")
        seen.add(key)
        _check_function(function, where)


def _check_function(function: FunctionProto, where: str) -> None:
    if duplicate := _duplicate(function.input) or _duplicate(function.output):
        raise InvalidModel(f"{where}: duplicate input or output {duplicate!r}")
    defined = set(function.input)
    domains = {domain_of(o.domain) for o in function.opset_import}
    for node in function.node:
        if domain_of(node.domain) not in domains and domain_of(node.domain) not in _ASSUMED:
            raise InvalidModel(
                f"{where}: {node_label(node)}: the function imports no opset of "
                f"{domain_of(node.domain) or 'ai.onnx'!r}"
            )
        if duplicate := next((n for n in node.output if n and n in defined), ""):
            raise InvalidModel(
                f"{where}: {node_label(node)}: its result {duplicate!r} is already defined"
            )
        defined.update(node.output)
    for node in function.node:
        if missing := next((n for n in node.input if n and n not in defined), ""):
            raise InvalidModel(
                f"{where}: {node_label(node)}: its operand {missing!r} is not defined"
            )
    if missing := next((n for n in function.output if n not in defined), ""):
        raise InvalidModel(f"{where}: its output {missing!r} is not defined")


def check_call(node: NodeProto, function: FunctionProto) -> None:
    """Checks that a call has no more operands or results than the function.

    Raises:
        InvalidModel: it has.
    """
    for kind, count, most in (
        ("inputs", len(node.input), len(function.input)),
        ("outputs", len(node.output), len(function.output)),
    ):
        if count > most:
            raise InvalidModel(f"{node_label(node)}: has {count} {kind}, its function has {most}")


def _duplicate(names: Iterable[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""
