"""Types of a model's inputs, with a symbol for every open dim."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onnx import GraphProto, TypeProto, ValueInfoProto

from tersor.frontends.onnx.walk import all_graphs
from tersor.ir import Dim, Sym, TensorType, ValueType, symbol
from tersor.ir.dims import parse_dim, symbols
from tersor.ops.onnx_schema import type_from_proto

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


class InputDims:
    """Types of the inputs of a model's graphs, with a symbol for each open dim.

    Equal names become equal symbols, different names different ones, and a dim without a name a new symbol,
    so that sizes computed from it are distinguishable from others. Some names carry no information, and
    runtimes accept different sizes for them: numbers ("-1", "0", "3"), and one name for all open dims of the
    inputs if it occurs twice in one input. Such dims count as unnamed.
    """

    def __init__(self, graph: GraphProto) -> None:
        # Identifiers are used as they are; new symbols must differ from them.
        self.taken = {p for p in _dim_params(graph) if _IDENTIFIER.match(p)}
        self.plain: set[str] = set()
        self.named: dict[str, Sym] = {}
        self.placeholder = _placeholder(graph)

    def types(self, inputs: Sequence[ValueInfoProto]) -> list[ValueType]:
        """The types of one graph's inputs."""
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
        param: str = proto.dim_param
        if isinstance(dim, int) and not param:
            return dim
        if not param or self._is_uninformative(param):
            return self._fresh(fallback)
        if param in self.plain or self._is_expression(param):
            return dim
        if param not in self.named:
            self.named[param] = self._fresh(param)
        return self.named[param]

    def declared(self, proto: TypeProto) -> ValueType:
        """The type of a value that is not an input; dims with uninformative names are unknown."""
        type = type_from_proto(proto)
        if not isinstance(type, TensorType) or type.dims is None:
            return type
        pairs = zip(type.dims, proto.tensor_type.shape.dim, strict=True)
        return type.with_dims(
            tuple(
                None if p.dim_param and self._is_uninformative(p.dim_param) else d for d, p in pairs
            )
        )

    def _is_uninformative(self, param: str) -> bool:
        try:
            return param == self.placeholder or isinstance(parse_dim(param), int)
        except ValueError:
            return False

    def _is_expression(self, param: str) -> bool:
        """Whether a name is an expression of other dims (torch writes ``2*batch``), and not a name that
        contains a dash."""
        try:
            return bool(param) and symbols(parse_dim(param)) <= self.plain
        except ValueError:
            return False

    def _fresh(self, base: str) -> Sym:
        (name,) = symbols(symbol(base))
        number = 0
        while name in self.taken:
            number += 1
            (name,) = symbols(symbol(f"{base}_{number}"))
        self.taken.add(name)
        return symbol(name)


def _placeholder(graph: GraphProto) -> str | None:
    """The name of all open dims of the inputs, if one input has it twice: images of shape [N, 3, N, N] need
    not be square, nor as wide as their number."""
    named = [
        [d.dim_param for d in i.type.tensor_type.shape.dim if d.dim_param] for i in graph.input
    ]
    names = {name for dims in named for name in dims}
    return names.pop() if len(names) == 1 and max(map(len, named)) > 1 else None


def _dim_params(graph: GraphProto) -> set[str]:
    """All names of dims in a graph and its subgraphs."""
    infos = (i for g in all_graphs(graph) for i in (*g.input, *g.output, *g.value_info))
    return {d.dim_param for i in infos for d in i.type.tensor_type.shape.dim if d.dim_param}
