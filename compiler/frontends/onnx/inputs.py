"""Types of a graph's inputs, with every dim named."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onnx import TypeProto, ValueInfoProto

from tersor.ir import Dim, Sym, TensorType, ValueType, symbol
from tersor.ir.dims import parse_dim, symbols
from tersor.ops.onnx_schema import type_from_proto

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


def input_types(inputs: Sequence[ValueInfoProto]) -> list[ValueType]:
    """Types of graph inputs. A dim that the file leaves open becomes a symbol of its own, so that
    what is computed from it can be told apart; equal names stay equal, different ones different."""
    namer = _Namer(inputs)
    types = []
    for info in inputs:
        type = type_from_proto(info.type)
        if isinstance(type, TensorType) and type.dims is not None:
            dims = enumerate(zip(type.dims, info.type.tensor_type.shape.dim, strict=True))
            type = type.with_dims(
                tuple(namer.dim(d, p, f"{info.name}_dim{i}") for i, (d, p) in dims)
            )
        types.append(type)
    return types


class _Namer:
    """Symbols for the dims of all inputs of one graph."""

    def __init__(self, inputs: Sequence[ValueInfoProto]) -> None:
        params = (d.dim_param for i in inputs for d in i.type.tensor_type.shape.dim)
        # Names that are identifiers keep themselves; the others must not fall on one of them.
        self.plain = {p for p in params if _IDENTIFIER.match(p)}
        self.taken = set(self.plain)
        self.named: dict[str, Sym] = {}

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
