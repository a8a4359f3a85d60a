"""What a model says of itself, checked before any of it is built: versions, names, arity, attributes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx.defs
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto

from tersor.errors import InvalidModel, Unsupported, suggest
from tersor.frontends.onnx.order import node_label
from tersor.ops import IR_OPSET
from tersor.ops.onnx_schema import ML_OPSET, schema

MAX_SUBGRAPHS = 33  # Graphs in graphs: three of protobuf's hundred messages each.
_MAX_TYPES = 32  # Sequences of sequences.

# Domains whose opset a runtime fills in where the model does not.
_ASSUMED = ("com.microsoft", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")
# Ops that ONNX Runtime knows in ONNX's own domain, at opsets at which ONNX does not.
_RUNTIMES_OWN = ("LayerNormalization", "SimplifiedLayerNormalization")
_KINDS = {v: k.lower() for k, v in AttributeProto.AttributeType.items()}


def domain_of(domain: str) -> str:
    """ONNX's own domain has two spellings."""
    return "" if domain == "ai.onnx" else domain


def check_versions(model: ModelProto) -> dict[str, int]:
    """Opset versions by domain.

    Raises:
        InvalidModel: an IR version or opset that is none, two for one domain, none for ONNX's own.
        Unsupported: versions of the future.
    """
    if model.ir_version < 1:
        raise InvalidModel(f"the model's IR version is {model.ir_version}; they begin at 1")
    if model.ir_version > onnx.IR_VERSION:
        raise Unsupported(
            f"IR version {model.ir_version} is newer than {onnx.IR_VERSION}: export the model at that "
            "or below"
        )
    opsets: dict[str, int] = {}
    for entry in model.opset_import:
        domain, version = domain_of(entry.domain), int(entry.version)
        if version < 1:
            raise InvalidModel(f"opset {version} of {domain or 'ai.onnx'!r}; they begin at 1")
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
    """Nothing nests deeper than a file could hold; models in memory are bounded by nothing else.

    Raises:
        InvalidModel: subgraphs or types that do.
    """
    level: list[Iterable[NodeProto]] = [model.graph.node, *(f.node for f in model.functions)]
    depth = 0
    types: list[TypeProto] = [i.type for i in _infos(model.graph)]
    while level:
        if depth > MAX_SUBGRAPHS:
            raise InvalidModel(
                f"subgraphs nest deeper than {MAX_SUBGRAPHS}, which no file can hold: flatten them"
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


def graphs_in(attribute: AttributeProto) -> list[GraphProto]:
    """The subgraphs that an attribute holds."""
    if attribute.type == AttributeProto.GRAPH:
        return [attribute.g]
    return list(attribute.graphs) if attribute.type == AttributeProto.GRAPHS else []


def check_interface(graph: GraphProto, *, inner: bool) -> None:
    """Inputs, initializers and outputs are named, each once; an outermost graph returns something.

    Raises:
        InvalidModel: which one is not.
    """
    if not graph.output and not inner:
        raise InvalidModel("the graph has no outputs: nothing of it would be left")
    sparse = [s.values.name for s in graph.sparse_initializer]
    for kind, names in (
        ("graph input", [i.name for i in graph.input]),
        ("graph output", [o.name for o in graph.output]),
        ("initializer", [t.name for t in graph.initializer] + sparse),
    ):
        if "" in names:
            raise InvalidModel(f"{kind} {names.index('')} has no name")
        twice = _twice(names)
        # A branch may return one value twice.
        if twice and not (inner and kind == "graph output"):
            raise InvalidModel(f"{kind} {twice!r} is there twice")


def check_node(node: NodeProto, opsets: Mapping[str, int]) -> None:
    """A node has an op that exists, and operands, results and attributes as its schema says.

    Raises:
        InvalidModel: what it has instead.
    """
    label, domain = node_label(node), domain_of(node.domain)
    if domain not in opsets and domain not in _ASSUMED:
        named = f"of {domain!r}" if domain else "of ONNX's own ops"
        raise InvalidModel(f"{label}: the model imports no opset {named}")
    _check_attributes(node, label)
    if domain:
        return
    found = schema(node.op_type, opsets[""])
    if found is None:
        _check_known(node, label, opsets[""])
        return
    if found.deprecated:
        return
    for kind, have, least, most in (
        ("inputs", len(node.input), found.min_input, found.max_input),
        ("outputs", len(node.output), found.min_output, found.max_output),
    ):
        if not least <= have <= most:
            takes = f"{least}" if least == most else f"{least} to {most}"
            takes = f"{least} or more" if most > have and most > 1000 else takes
            raise InvalidModel(f"{label}: has {have} {kind}, and {node.op_type} {takes}")
    formal = list(found.inputs)
    for i, (name, given) in enumerate(zip(node.input, formal, strict=False)):
        if not name and given.option == onnx.defs.OpSchema.FormalParameterOption.Single:
            raise InvalidModel(f"{label}: lacks operand {i}, {given.name!r}")
    _check_against(node, label, found)


def _check_attributes(node: NodeProto, label: str) -> None:
    if twice := _twice([a.name for a in node.attribute]):
        raise InvalidModel(f"{label}: has the attribute {twice!r} twice")
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise InvalidModel(
                f"{label}: its attribute {attribute.name!r} refers to {attribute.ref_attr_name!r} of a "
                "function, and is in none"
            )
        if attribute.type == AttributeProto.UNDEFINED:
            raise InvalidModel(f"{label}: its attribute {attribute.name!r} has no type")


def _check_known(node: NodeProto, label: str, opset: int) -> None:
    """A standard op that the opset does not have."""
    op = node.op_type
    if op in _RUNTIMES_OWN:
        return
    newest = schema(op)
    if newest is not None:
        raise InvalidModel(
            f"{label}: {op} exists since opset {_first_opset(op)}, the model imports {opset}"
        )
    names = {s.name for s in onnx.defs.get_all_schemas() if not s.domain}
    raise InvalidModel(f"{label}: ONNX has no op {op!r}{suggest(op, sorted(names))}")


def _first_opset(op: str) -> int:
    return min(
        s.since_version
        for s in onnx.defs.get_all_schemas_with_history()
        if s.name == op and not s.domain
    )


def _check_against(node: NodeProto, label: str, found: onnx.defs.OpSchema) -> None:
    for attribute in node.attribute:
        known = found.attributes.get(attribute.name)
        if known is None:
            there = sorted(found.attributes)
            raise InvalidModel(
                f"{label}: {node.op_type} has no attribute {attribute.name!r}"
                f"{suggest(attribute.name, there)} (it has: {', '.join(there) or 'none'})"
            )
        wanted = int(known.type.value)  # type: ignore[attr-defined]
        if attribute.type != wanted:
            raise InvalidModel(
                f"{label}: its attribute {attribute.name!r} is of type {_KINDS[attribute.type]}, not "
                f"{_KINDS[wanted]}"
            )
    given = {a.name for a in node.attribute}
    for name, known in found.attributes.items():
        if known.required and name not in given:
            raise InvalidModel(f"{label}: {node.op_type} needs the attribute {name!r}")


def check_functions(functions: Iterable[FunctionProto]) -> None:
    """Functions are there once, and read only what they are given or make.

    Raises:
        InvalidModel: one that is not so.
    """
    seen = set()
    for function in functions:
        where = f"function {function.domain}.{function.name}"
        key = (function.domain, function.name, function.overload)
        if key in seen:
            raise InvalidModel(f"{where} is there twice")
        seen.add(key)
        _check_function(function, where)


def _check_function(function: FunctionProto, where: str) -> None:
    if twice := _twice(function.input) or _twice(function.output):
        raise InvalidModel(f"{where}: {twice!r} is there twice in its inputs or outputs")
    made = set(function.input)
    domains = {domain_of(o.domain) for o in function.opset_import}
    for node in function.node:
        if domain_of(node.domain) not in domains and domain_of(node.domain) not in _ASSUMED:
            raise InvalidModel(
                f"{where}: {node_label(node)}: the function imports no opset of "
                f"{domain_of(node.domain) or 'ai.onnx'!r}"
            )
        if twice := next((n for n in node.output if n and n in made), ""):
            raise InvalidModel(f"{where}: {node_label(node)} makes {twice!r}, which is made before")
        made.update(node.output)
    for node in function.node:
        if missing := next((n for n in node.input if n and n not in made), ""):
            raise InvalidModel(
                f"{where}: {node_label(node)} reads {missing!r}, which nothing makes"
            )
    if missing := next((n for n in function.output if n not in made), ""):
        raise InvalidModel(f"{where} returns {missing!r}, which nothing makes")


def check_call(node: NodeProto, function: FunctionProto) -> None:
    """A call gives no more operands and takes no more results than the function has.

    Raises:
        InvalidModel: it does.
    """
    for kind, have, most in (
        ("inputs", len(node.input), len(function.input)),
        ("outputs", len(node.output), len(function.output)),
    ):
        if have > most:
            raise InvalidModel(
                f"{node_label(node)}: has {have} {kind}, and the function {function.domain}."
                f"{function.name} {most}"
            )


def _twice(names: Iterable[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""
