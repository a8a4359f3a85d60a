"""Sizes that only a run tells get names before a graph is lowered.

    %i: i64[2, ?] = NonZero(%x)             ->  %i: i64[2, size_0]
    %y: f32[?, 3] = GatherND(%t, %where)    ->  %y: f32[size_0, 3], inferred anew

The node that makes a value of such a size defines the name, wherever it stands; what is computed of it
follows.  So is a name that only the file has for a size, which may be wrong for what it is.  What the same
dims broadcast to has one name:

    %a: f32[?] = Add(%x, %y)     x: f32[n], y: f32[m]     ->  %a: f32[size_0]
    %b: f32[?] = Mul(%a, %y)                              ->  %b: f32[size_0]
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from tersor.analysis.ranks import RankProofs
from tersor.errors import InvalidGraph, Unsupported
from tersor.ir import Dim, Graph, Node, Sym, TensorType, Value, ValueType, symbol
from tersor.ir.dims import symbols
from tersor.ops import TABLE

Dims = tuple[Dim, ...] | None


def name_sizes(graph: Graph) -> Graph:
    """A copy of ``graph`` whose values have ranks and named sizes, as far as can be told.

    Raises:
        Unsupported: an input of a rank that nothing tells.
    """
    result = graph.copy()
    types = [v.type for g in result.all_graphs() for v in g.values()]
    taken = {name for type in types for name in _names(type)}
    naming = _Naming(taken, RankProofs())
    for value in result.inputs:
        naming.input(value)
    naming.graph(result, {name for value in result.inputs for name in _names(value.type)})
    return result


@dataclass
class _Naming:
    """
    Attributes:
        taken: names that are not new.
        joins: by name, the dims that broadcast to it.
    """

    taken: set[str]
    ranks: RankProofs
    joins: dict[Dim, frozenset[Dim]] = field(default_factory=dict)
    count: int = field(default=0)

    def new(self) -> Sym:
        while (name := f"size_{self.count}") in self.taken:
            self.count += 1
        self.taken.add(name)
        return symbol(name)

    def input(self, value: Value) -> None:
        """A name for each size of an input that has none."""
        if not isinstance(value.type, TensorType):
            return
        rank = value.type.rank
        if rank is None:
            needed = self.ranks.needed(value)
            if needed is None or len(needed) != 1:
                raise Unsupported(
                    f"input {value.name!r}: TVM needs its rank, which neither the model nor what reads it "
                    "tells: declare the input's shape in the model, with names for the sizes that vary"
                )
            (rank,) = needed
        dims = value.type.dims or (None,) * rank
        value.type = value.type.with_dims(tuple(self.new() if d is None else d for d in dims))

    def graph(self, graph: Graph, defined: set[str]) -> None:
        """Types what a graph makes, whose outer values and inputs define sizes already."""
        for node in graph.nodes:
            for body in node.subgraphs:
                self.body(node, body, set(defined))
            for value, (new, contents) in zip(node.outputs, _inferred(node), strict=True):
                if isinstance(value.type, TensorType):
                    joined = _joined(node) if value.index == 0 else {}
                    value.type = value.type.with_dims(self.dims(value, new, defined, joined))
                    defined |= _names(value.type)
                if value.contents is None or None in value.contents:
                    value.contents = contents if contents is not None else value.contents

    def body(self, node: Node, body: Graph, defined: set[str]) -> None:
        """What a Loop or a Scan carries may change its sizes from turn to turn."""
        for value, told in zip(body.inputs, _operand_dims(node, body), strict=True):
            if isinstance(value.type, TensorType):
                if told is not None:  # The body's own word may hold for one turn.
                    value.type = value.type.with_dims(told)
                nothing = value.type.with_dims(None)
                value.type = value.type.with_dims(self.dims(value, nothing, defined))
                defined |= _names(value.type)
        self.graph(body, defined)

    def dims(
        self,
        value: Value,
        new: ValueType,
        defined: set[str],
        joined: Mapping[int, Collection[Dim]] = MappingProxyType({}),
    ) -> Dims:
        """Dims whose names are defined, new ones else; ``joined`` has those of the operands by axis."""
        old, made = value.tensor.dims, new.dims if isinstance(new, TensorType) else None
        rank = len(made) if made is not None else value.tensor.rank
        if rank is None:
            needed = self.ranks.needed(value)
            if needed is None or len(needed) != 1:
                return None
            (rank,) = needed
        old = old if old is not None and len(old) == rank else (None,) * rank
        made = made if made is not None else (None,) * rank
        return tuple(
            self.dim(a, b, defined, joined.get(axis - rank, ()))
            for axis, (a, b) in enumerate(zip(old, made, strict=True))
        )

    def dim(self, old: Dim, new: Dim, defined: set[str], joined: Collection[Dim]) -> Dim:
        for dim in (old, new):
            if dim is not None and symbols(dim) <= defined:
                return dim
        parts = frozenset[Dim]().union(*(self.joins.get(dim, {dim}) for dim in joined))
        for made, others in self.joins.items():
            if parts == others and symbols(made) <= defined:
                return made
        names = symbols(old)
        is_name = len(names) == 1 and old == symbol(next(iter(names)))
        made = old if is_name else self.new()
        if len(parts) > 1 and None not in parts:
            self.joins[made] = parts
        return made


def _joined(node: Node) -> dict[int, list[Dim]]:
    """The dims other than 1 of operands that broadcast, by axis of the first result from the end."""
    operands, columns, looked_up = [v for v in node.inputs if v is not None], 0, 0
    if node.op == "tersor.EmbeddingLayerNormalization":
        operands, looked_up = operands[2::2], 1  # A row for each id.
    elif node.op in ("MatMul", "MatMulInteger"):
        operands, columns = operands[:2], 2
    elif node.op in ("tersor.AddLayerNormalization", "tersor.AddRMSNormalization"):
        operands = operands[:2]
    elif not TABLE.has(node.op, "elementwise"):
        return {}
    shapes = [v.tensor.dims or () for v in operands]
    if columns and min(map(len, shapes)) < columns:
        return {}
    joined: dict[int, list[Dim]] = {}
    for dims in shapes:
        for axis in range(-len(dims), -columns):
            if dims[axis] != 1:
                joined.setdefault(axis - looked_up, []).append(dims[axis])
    return joined


def _operand_dims(node: Node, body: Graph) -> Sequence[Dims]:
    """What is known outside of the dims of a body's inputs."""
    made = [v.tensor.dims if isinstance(v.type, TensorType) else None for v in node.outputs]
    count, scans = len(body.inputs), node.attrs.get("num_scan_inputs", 0)
    assert isinstance(scans, int)
    before = [None, None] if node.op == "Loop" else []
    carried = made[: max(0, count - len(before) - scans)]
    told = [*before, *carried]
    return [*told, *[None] * (count - len(told))]  # Results that nobody reads may be left out.


def _inferred(node: Node) -> Sequence[tuple[ValueType, np.ndarray | None]]:
    if TABLE.get(node.op) is not None:
        try:
            return TABLE.infer(node)
        except (InvalidGraph, TypeError):
            pass  # What the model claims of its values does not fit: its own word is taken.
    return [(v.type, None) for v in node.outputs]


def _names(type: ValueType) -> set[str]:
    dims = (type.dims or ()) if isinstance(type, TensorType) else ()
    return set().union(*map(symbols, dims))
