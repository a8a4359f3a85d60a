"""The intermediate representation. numpy only: knows nothing of onnx, torch or tvm."""

from tersor.ir.dims import Dim, Sym, symbol
from tersor.ir.disk import load, save
from tersor.ir.encodings import Affine, Cast, Dense, Encoding, Masked, Packed, concat
from tersor.ir.extract import extract
from tersor.ir.graph import Graph, OpTable
from tersor.ir.node import Attribute, Node, NotATensor, Use, Value
from tersor.ir.text import parse, print_graph, print_node, weights_of
from tersor.ir.types import (
    DType,
    MapType,
    OptionalType,
    SequenceType,
    TensorType,
    UnknownType,
    ValueType,
    parse_type,
)
from tersor.ir.verify import verify

__all__ = [
    "Affine", "Attribute", "Cast", "DType", "Dense", "Dim", "Encoding", "Graph", "MapType",
    "Masked", "Node", "NotATensor", "OpTable", "OptionalType", "Packed", "SequenceType", "Sym", "TensorType",
    "UnknownType", "Use", "Value", "ValueType",
    "concat", "extract", "load", "parse", "parse_type", "print_graph", "print_node", "save", "symbol",
    "verify", "weights_of",
]  # fmt: skip
