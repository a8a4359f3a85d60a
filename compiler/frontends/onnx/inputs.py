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
    told apart from all others; equal names stay equal, different ones different. Names that only say
    "open" leave a dim open: numbers ("-1", "0", "3"), and a name that all open dims of the inputs have,
    two of one input among them. Runtimes take such models at any sizes.
    """

    def __init__(self, graph: GraphProto) -> None:
        # Names that are identifiers keep themselves; the others must not fall on one of them.
        self.taken = {p for p in _written(graph) if _IDENTIFIER.match(p)}
        self.plain: set[str] = set()
        self.named: dict[str, Sym] = {}
        self.only = _only_name(graph)

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
        param: str = proto.dim_param
        if isinstance(dim, int) and not param:
            return dim
        if not param or self._says_nothing(param):
            return self._fresh(fallback)
        if param in self.plain or self._follows(param):
            return dim
        if param not in self.named:
            self.named[param] = self._fresh(param)
        return self.named[param]

    def written(self, proto: TypeProto) -> ValueType:
        """The type that the file writes for what is no input; dims whose names say nothing are unknown."""
        type = type_from_proto(proto)
        if not isinstance(type, TensorType) or type.dims is None:
            return type
        pairs = zip(type.dims, proto.tensor_type.shape.dim, strict=True)
        return type.with_dims(
            tuple(None if p.dim_param and self._says_nothing(p.dim_param) else d for d, p in pairs)
        )

    def _says_nothing(self, param: str) -> bool:
        try:
            return param == self.only or isinstance(parse_dim(param), int)
        except ValueError:
            return False

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


def _only_name(graph: GraphProto) -> str | None:
    """The name that all open dims of the inputs have, where one input has it twice: an image of
    [N, 3, N, N] need not be square, nor as wide as there are of them."""
    named = [
        [d.dim_param for d in i.type.tensor_type.shape.dim if d.dim_param] for i in graph.input
    ]
    names = {name for dims in named for name in dims}
    return names.pop() if len(names) == 1 and max(map(len, named)) > 1 else None


def _written(graph: GraphProto) -> Iterator[str]:
    """Names of all dims that a graph and its subgraphs write, at whatever value."""
    graphs = [graph]
    while graphs:
        at = graphs.pop()
        for info in (*at.input, *at.output, *at.value_info):
            yield from (d.dim_param for d in info.type.tensor_type.shape.dim if d.dim_param)
        graphs += [g for node in at.node for a in node.attribute for g in graphs_in(a)]
