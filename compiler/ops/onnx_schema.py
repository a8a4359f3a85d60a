"""The op table's interface to onnx: element types, schemas with their defaults, per-node inference.

The IR has the semantics of ONNX at opset :data:`IR_OPSET`; frontends normalize to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import onnx
import onnx.defs
import onnx.shape_inference
from onnx import TypeProto

from tersor.errors import InvalidGraph, first_line
from tersor.ir import (
    Attribute,
    Dim,
    DType,
    Encoding,
    Graph,
    MapType,
    Node,
    OptionalType,
    SequenceType,
    TensorType,
    UnknownType,
    Value,
    ValueType,
)
from tersor.ir.dims import parse_dim, symbol

IR_OPSET = 28
ML_OPSET = 5
DATA_ELEMENTS = 1024  # Larger constants are not passed to onnx's inference (shapes, axes, pads).

_ONNX_TYPES = {
    DType.F32: "FLOAT", DType.F64: "DOUBLE", DType.F16: "FLOAT16", DType.BF16: "BFLOAT16",
    DType.F8E4M3FN: "FLOAT8E4M3FN", DType.F8E4M3FNUZ: "FLOAT8E4M3FNUZ",
    DType.F8E5M2: "FLOAT8E5M2", DType.F8E5M2FNUZ: "FLOAT8E5M2FNUZ", DType.F8E8M0: "FLOAT8E8M0",
    DType.F4E2M1: "FLOAT4E2M1", DType.I64: "INT64", DType.I32: "INT32", DType.I16: "INT16",
    DType.I8: "INT8", DType.I4: "INT4", DType.I2: "INT2", DType.U64: "UINT64", DType.U32: "UINT32",
    DType.U16: "UINT16", DType.U8: "UINT8", DType.U4: "UINT4", DType.U2: "UINT2",
    DType.BOOL: "BOOL", DType.STRING: "STRING", DType.C64: "COMPLEX64", DType.C128: "COMPLEX128",
}  # fmt: skip
TO_ONNX: dict[DType, int] = {d: onnx.TensorProto.DataType.Value(n) for d, n in _ONNX_TYPES.items()}
_TENSORS = {f"tensor({name.lower()})": dtype for dtype, name in _ONNX_TYPES.items()}
FROM_ONNX: dict[int, DType] = {number: dtype for dtype, number in TO_ONNX.items()}


def split_domain(op: str) -> tuple[str, str]:
    """``"com.microsoft.Gelu"`` -> ``("com.microsoft", "Gelu")``; ONNX's own domain is ``""``."""
    domain, _, name = op.rpartition(".")
    return domain, name


@cache
def schema(op: str, opset: int = IR_OPSET) -> onnx.defs.OpSchema | None:
    """The schema of a standard op; None for others."""
    domain, name = split_domain(op)
    if domain not in ("", "ai.onnx.ml"):
        return None
    version = opset if domain == "" else ML_OPSET
    try:
        return onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return None


@cache
def defaults(op: str) -> dict[str, Attribute]:
    """The default attributes of a standard op. Ops of ``ai.onnx.ml`` stay as written, in the domain version
    named by the graph's metadata."""
    known = schema(op)
    if known is None or known.domain:
        return {}
    return {
        name: as_written(_plain(onnx.helper.get_attribute_value(attr.default_value)))
        for name, attr in known.attributes.items()
        if attr.default_value.name
    }


def as_written(attribute: Attribute) -> Attribute:
    """Rounds float attributes to the shortest decimal of the same float32, because ONNX files store
    float32: an epsilon of 1e-12 is the same whether it comes from a file or from Python."""
    if isinstance(attribute, float) and abs(attribute) < float(np.finfo(np.float32).max):
        return float(str(np.float32(attribute)))
    if isinstance(attribute, tuple) and attribute and isinstance(attribute[0], float):
        return tuple(float(str(np.float32(a))) for a in attribute)
    return attribute


def _plain(value: object) -> Attribute:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)  # type: ignore[return-value]
    return value  # type: ignore[return-value]


def check_attributes(op: str, attrs: Mapping[str, Attribute]) -> None:
    """Checks attributes against the op's schema.

    Raises:
        InvalidGraph: an unknown or missing attribute, or one of the wrong type.
    """
    known = schema(op)
    if known is None or known.domain:
        return
    for name in attrs:
        if name not in known.attributes:
            names = ", ".join(sorted(known.attributes))
            raise InvalidGraph(f"{op} has no attribute {name!r} (it has: {names})")
    for name, attr in known.attributes.items():
        if attr.required and name not in attrs:
            raise InvalidGraph(f"{op} needs the attribute {name!r}")
    for name, given in attrs.items():
        kind = known.attributes[name].type.name  # type: ignore[attr-defined]
        if not _is_of_kind(given, kind):
            raise InvalidGraph(f"{op} takes {kind} as its attribute {name!r}, not {_short(given)}")


# Python types of ONNX's attribute types. Integers are accepted as floats.
_KINDS: dict[str, tuple[type, ...]] = {
    "INT": (int,), "FLOAT": (float, int), "STRING": (str, bytes), "GRAPH": (Graph,),
    "TENSOR": (Encoding,), "TYPE_PROTO": (TensorType, SequenceType, OptionalType, MapType, UnknownType),
}  # fmt: skip


def _is_of_kind(attr: Attribute, kind: str) -> bool:
    single = _KINDS.get(kind.removesuffix("S"))
    if single is None:
        return True
    if not kind.endswith("S"):
        return isinstance(attr, single)
    return isinstance(attr, tuple) and all(isinstance(a, single) for a in attr)


def _short(attr: Attribute) -> str:
    """An attribute in an error message."""
    if isinstance(attr, Graph):
        return "a graph"
    text = repr(attr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_operands(node: Node) -> None:
    """Checks operands and results against the schema of an ONNX op.

    Raises:
        InvalidGraph: too few or too many operands or results, a missing required operand, or element
            types that the schema does not allow.
    """
    if schema(node.op) is None:
        return
    least, most, fewest, results, required = _arity(node.op)
    if not least <= len(node.inputs) <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise InvalidGraph(f"{node.label}: {len(node.inputs)} operands, {node.op} takes {wanted}")
    if not fewest <= len(node.outputs) <= results:
        wanted = f"{fewest}" if fewest == results else f"{fewest} to {results}"
        raise InvalidGraph(f"{node.label}: {len(node.outputs)} results, {node.op} has {wanted}")
    for i in required:
        if i < len(node.inputs) and node.inputs[i] is None:
            raise InvalidGraph(f"{node.label}: {node.op} needs operand {i}, which is left out")
    _check_element_types(node)


def _check_element_types(node: Node) -> None:
    """Operands that share a type parameter of the schema have the same element type, and operands with a
    fixed type (a shape is int64) have that."""
    parameters, fixed = _type_parameters(node.op), _fixed_types(node.op)
    bound: dict[str, tuple[int, DType]] = {}
    for i, value in enumerate(node.inputs):
        if not parameters or value is None or not isinstance(value.type, TensorType):
            continue
        at = min(i, len(parameters) - 1)
        parameter, wanted = parameters[at], fixed[at]
        if wanted is not None and value.type.dtype is not wanted:
            raise InvalidGraph(
                f"{node.label}: operand {i} is {value.type.dtype.value}, {node.op} takes "
                f"{wanted.value} there"
            )
        if not parameter:
            continue
        first, dtype = bound.setdefault(parameter, (i, value.type.dtype))
        if value.type.dtype is not dtype:
            raise InvalidGraph(
                f"{node.label}: operand {i} is {value.type.dtype.value}, operand {first} is "
                f"{dtype.value}; {node.op} takes one type for both"
            )


@cache
def _fixed_types(op: str) -> list[DType | None]:
    """The element type that the schema requires of each formal operand; None if it leaves a choice."""
    known = schema(op)
    assert known is not None
    return [_TENSORS.get(formal.type_str) for formal in known.inputs]


@cache
def _type_parameters(op: str) -> list[str]:
    """The type parameter of each formal operand (a variadic one is the last); empty if it has none."""
    known = schema(op)
    assert known is not None
    names = {c.type_param_str for c in known.type_constraints}
    return [f.type_str if f.is_homogeneous and f.type_str in names else "" for f in known.inputs]


@cache
def _arity(op: str) -> tuple[int, int, int, int, list[int]]:
    """Fewest and most operands, fewest and most results, and the required operands."""
    known = schema(op)
    assert known is not None
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    required = [i for i, formal in enumerate(known.inputs) if formal.option == single]
    # Some schemas allow a node without results, which could not be read.
    return known.min_input, known.max_input, max(known.min_output, 1), known.max_output, required


# -- types ---------------------------------------------------------------------------------------


def type_to_proto(type: ValueType) -> TypeProto:
    """The protobuf of a type; an unknown type gives an empty one."""
    proto = TypeProto()
    if isinstance(type, TensorType):
        proto.tensor_type.elem_type = TO_ONNX[type.dtype]
        if type.dims is not None:
            proto.tensor_type.shape.SetInParent()
            for dim in type.dims:
                entry = proto.tensor_type.shape.dim.add()
                if isinstance(dim, int):
                    entry.dim_value = dim
                elif dim is not None:
                    entry.dim_param = str(dim)
    elif isinstance(type, SequenceType):
        proto.sequence_type.elem_type.CopyFrom(type_to_proto(type.element))
    elif isinstance(type, OptionalType):
        proto.optional_type.elem_type.CopyFrom(type_to_proto(type.element))
    elif isinstance(type, MapType):
        proto.map_type.key_type = TO_ONNX[type.key]
        proto.map_type.value_type.CopyFrom(type_to_proto(type.element))
    return proto


def type_from_proto(proto: TypeProto) -> ValueType:
    """The type of a protobuf; sparse tensors are unknown."""
    kind = proto.WhichOneof("value")
    if kind == "sequence_type":
        return SequenceType(type_from_proto(proto.sequence_type.elem_type))
    if kind == "optional_type":
        return OptionalType(type_from_proto(proto.optional_type.elem_type))
    if kind == "map_type" and proto.map_type.key_type in FROM_ONNX:
        key = FROM_ONNX[proto.map_type.key_type]
        return MapType(key, type_from_proto(proto.map_type.value_type))
    if kind != "tensor_type" or proto.tensor_type.elem_type not in FROM_ONNX:
        return UnknownType()
    dtype = FROM_ONNX[proto.tensor_type.elem_type]
    if not proto.tensor_type.HasField("shape"):
        return TensorType(dtype, None)
    return TensorType(dtype, tuple(_dim(d) for d in proto.tensor_type.shape.dim))


def _dim(proto: onnx.TensorShapeProto.Dimension) -> Dim:
    if proto.WhichOneof("value") == "dim_value":
        return int(proto.dim_value) if proto.dim_value >= 0 else None
    if not proto.dim_param:
        return None
    try:
        return parse_dim(proto.dim_param)
    except ValueError:
        return symbol(proto.dim_param)


# -- inference -----------------------------------------------------------------------------------


def infer(node: Node) -> list[ValueType]:
    """Types of the outputs by onnx's own inference for this one node.

    Ops without a schema and nodes with subgraphs give unknown types.

    Raises:
        InvalidGraph: onnx rejects the operands.
    """
    known = schema(node.op)
    # Control flow is typed by its row.
    if known is None or known.deprecated or node.subgraphs or node.attrs.keys() - known.attributes:
        return [UnknownType() for _ in node.outputs]
    proto = onnx.NodeProto(op_type=known.name, domain=known.domain)
    # Names by position: the values' own names might clash with those of the outputs.
    inputs = {v: f"x{i}" for i, v in enumerate(node.inputs) if v is not None}
    outputs = [f"y{i}" for i in range(len(node.outputs))]
    proto.input.extend("" if v is None else inputs[v] for v in node.inputs)
    proto.output.extend(outputs)
    proto.attribute.extend(attribute_to_proto(k, a, known) for k, a in node.attrs.items())
    if any(v.type == UnknownType() for v in inputs):
        return [UnknownType() for _ in node.outputs]
    types = {name: type_to_proto(v.type) for v, name in inputs.items()}
    data = {n: array_to_proto(v.numpy(), n) for v, n in inputs.items() if _is_small_constant(v)}
    try:
        inferred = onnx.shape_inference.infer_node_outputs(
            known, proto, types, data, opset_imports=[onnx.helper.make_opsetid("", IR_OPSET)]
        )
    except Exception as error:
        raise InvalidGraph(f"{node.label}: {first_line(error)}") from None
    return [type_from_proto(inferred[n]) if n in inferred else UnknownType() for n in outputs]


def _is_small_constant(value: Value) -> bool:
    return (
        value.encoding is not None
        and isinstance(value.type, TensorType)
        and value.type.is_static
        and math.prod(value.type.shape) <= DATA_ELEMENTS
        and value.type.dtype is not DType.STRING
    )


def array_to_proto(array: np.ndarray, name: str = "") -> onnx.TensorProto:
    """A TensorProto of any element type, 2- and 4-bit ones packed."""
    return onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def attribute_to_proto(
    name: str, attr: Attribute, schema: onnx.defs.OpSchema | None = None
) -> onnx.AttributeProto:
    """An attribute (not a graph) as protobuf; the schema gives the type of an empty list."""
    if isinstance(attr, Encoding):
        return onnx.helper.make_attribute(name, array_to_proto(attr.decode()))
    if isinstance(attr, (TensorType, SequenceType, OptionalType, MapType)):
        return onnx.helper.make_attribute(name, type_to_proto(attr))
    if isinstance(attr, tuple) and attr and isinstance(attr[0], Encoding):
        return onnx.helper.make_attribute(name, [array_to_proto(a.decode()) for a in attr])
    known = schema.attributes.get(name) if schema is not None else None
    kind = int(known.type.value) if known is not None else None  # type: ignore[attr-defined]
    if kind is None and isinstance(attr, tuple) and not attr:
        kind = onnx.AttributeProto.INTS
    return onnx.helper.make_attribute(name, attr, attr_type=kind)


# -- evaluation ----------------------------------------------------------------------------------


def evaluate(node: Node, operands: list[np.ndarray | None]) -> list[np.ndarray] | None:
    """The results of one standard op by onnx's reference implementation; None if that fails."""
    from onnx.reference import ReferenceEvaluator

    known = schema(node.op)
    if known is None:
        return None
    names = ["" if a is None else f"x{i}" for i, a in enumerate(operands)]
    proto = onnx.NodeProto(op_type=known.name, domain=known.domain, input=names)
    proto.output.extend(f"y{i}" for i in range(len(node.outputs)))
    proto.attribute.extend(attribute_to_proto(k, a, known) for k, a in node.attrs.items())
    given = [(n, a) for n, a in zip(names, operands, strict=True) if a is not None]
    graph = onnx.helper.make_graph(
        [proto],
        "fold",
        [onnx.helper.make_tensor_value_info(n, TO_ONNX[DType.of(a)], a.shape) for n, a in given],
        [onnx.ValueInfoProto(name=name) for name in proto.output],
    )
    opsets = [onnx.helper.make_opsetid("", IR_OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    try:
        results = ReferenceEvaluator(model).run(None, dict(given))
    except Exception:
        # The reference lacks some ops and some corner cases; the node is then not folded.
        return None
    return [np.asarray(r) for r in results]
