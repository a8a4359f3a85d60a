"""Types of a graph's inputs, with every dim named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from onnx import GraphProto, TypeProto, ValueInfoProto

from tersor.frontends.onnx.check import graphs_in
from tersor.ir import Dim, Sym, TensorType, ValueType, symbol
from tersor.ir.dims import parse_dim, symbols
from tersor.ops.onnx_schema import type_from_proto

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


class InputDims:
    """Types of the inputs of a model's graphs, with a symbol for each of their dims.

    A dim that the file leaves open becomes a symbol of its own, so that what is computed from it can be
    told apart from all others; equal names stay equal, different ones different.
    """

    def __init__(self, graph: GraphProto) -> None:
        # Names that are identifiers keep themselves; the others must not fall on one of them.
        self.taken = {p for p in _written(graph) if _IDENTIFIER.match(p)}
        self.plain: set[str] = set()
        self.named: dict[str, Sym] = {}

    def types(self, inputs: Sequence[ValueInfoProto]) -> list[ValueType]:
        """Types of the inputs of one graph."""
        params = (d.dim_param for i in inputs for d in i.type.tensor_type.shape.dim)
        self.plain = {p for p in params if _IDENTIFIER.match(p)}
        types = []
        for info in inputs:
            type = type_from_proto(info.type)
            if isinstance(type, TensorType) and type.dims is not None:
                dims = enumerate(zip(type.dims, info.type.tensor_type.shape.dim, strict=True))
                type = type.with_dims(
                    tuple(self.dim(d, p, f"{info.name}_dim{i}") for i, (d, p) in dims)
                )
            types.append(type)
        return types

    def dim(self, dim: Dim, proto: TypeProto.Tensor, fallback: str) -> Dim:
        if isinstance(dim, int):
            return dim
        param: str = proto.dim_param
        if param in self.plain or self._follows(param):
            return dim
        if not param:
            return self._fresh(fallback)
        if param not in self.named:
            self.named[param] = self._fresh(param)
        return self.named[param]

    def _follows(self, param: str) -> bool:
        """Whether the name is an expression of other inputs' dims (torch writes ``2*batch``), and not
        just a name with a dash in it."""
        try:
            return bool(param) and symbols(parse_dim(param)) <= self.plain
        except ValueError:
            return False

    def _fresh(self, base: str) -> Sym:
        wanted = symbol(base)
        (name,) = symbols(wanted)
        number = 0
        while name in self.taken:
            number += 1
            (name,) = symbols(symbol(f"{base}_{number}"))
        self.taken.add(name)
        return symbol(name)


def _written(graph: GraphProto) -> Iterator[str]:
    """Names of all dims that a graph and its subgraphs write, at whatever value."""
    graphs = [graph]
    while graphs:
        at = graphs.pop()
        for info in (*at.input, *at.output, *at.value_info):
            yield from (d.dim_param for d in info.type.tensor_type.shape.dim if d.dim_param)
        graphs += [g for node in at.node for a in node.attribute for g in graphs_in(a)]
