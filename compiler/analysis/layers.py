"""Weighted layers: a weight together with the nodes that use it.

    %y = tersor.Linear(%x, @w, @b)    layer @w multiplies rows of %x, and @b is added
    %z = LSTM(%x, @w, @r, @c)         layer @w multiplies rows of %x, layer @r rows of the states
    %e = Gather(@t, %ids)             rows of layer @t are looked up

The op table says which operands of a node are weights (:class:`tersor.ops.Weight`). Passes select layers with
:class:`tersor.analysis.selection.LayerPass`; :mod:`tersor.statistics.layers` observes their inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tersor.analysis.match import operand
from tersor.ir import Encoding, Graph, Node, TensorType, Value
from tersor.ops import TABLE, Weight
from tersor.structure.ties import tied_to


@dataclass(frozen=True)
class Reader:
    """A node that uses ``weight`` as ``form`` describes."""

    node: Node
    form: Weight
    weight: Value

    @property
    def scope(self) -> str:
        return self.node.scope

    @property
    def label(self) -> str:
        return self.node.label

    @property
    def bias(self) -> Value | None:
        return None if self.form.bias is None else self.node.input(self.form.bias.operand)

    @property
    def activation(self) -> Value:
        """What rows of are multiplied with the matrix."""
        assert self.form.activation is not None
        return operand(self.node, self.form.activation)

    @property
    def ids(self) -> Value:
        """Of a lookup: the indices of the rows."""
        assert self.form.ids is not None
        return operand(self.node, self.form.ids)

    @property
    def is_float_constant(self) -> bool:
        return self.weight.is_constant and self.weight.tensor.dtype.is_float


@dataclass(eq=False)
class WeightedLayer:
    """A weight and its readers: more than one where nodes share it.

    Properties that return ``str`` are reasons why a pass may have to leave the layer alone; empty: none.

    Attributes:
        readers: in graph order; all see the same matrix. Other uses of the weight are not listed and must
            not change.
        index: its position among the selected layers.
    """

    weight: Value
    readers: list[Reader] = field(default_factory=list)
    index: int = 0

    @property
    def name(self) -> str:
        """The name of its weight, unique in the graph."""
        return self.weight.name

    @property
    def node(self) -> Node:
        """The first reader."""
        return self.readers[0].node

    @property
    def nodes(self) -> list[Node]:
        return list(dict.fromkeys(reader.node for reader in self.readers))

    @property
    def form(self) -> Weight:
        return self.readers[0].form

    @property
    def label(self) -> str:
        """Its name in messages."""
        return self.node.scope or self.node.output.name

    @property
    def encoding(self) -> Encoding:
        assert self.weight.encoding is not None
        return self.weight.encoding

    def matrix(self) -> np.ndarray:
        """f64[outputs, inputs]"""
        return np.asarray(self.form.matrix(self.weight.numpy()).astype(np.float64))

    # -- reasons to leave it alone -----------------------------------------------------------------

    def fewer_than(self, elements: int) -> str:
        size = self.weight.tensor.numel
        few = isinstance(size, int) and size < elements
        return f"@{self.name} has fewer than {elements} elements" if few else ""

    @property
    def empty(self) -> str:
        return f"@{self.name} is empty" if self.weight.tensor.numel == 0 else ""

    @property
    def encoded(self) -> str:
        """Not a dense constant."""
        return "" if self.weight.is_dense else self._form_of_weight

    @property
    def quantized(self) -> str:
        """Not a constant of floats, which may be pruned or 16 bits wide."""
        return "" if self.weight.stores_floats else self._form_of_weight

    @property
    def _form_of_weight(self) -> str:
        encoding = self.weight.encoding
        if encoding is None:
            return f"%{self.name} is not a constant"
        return f"@{self.name} is {encoding.describe()}"

    @property
    def narrow(self) -> str:
        """Not f32, the only type that backends have compressed kernels for."""
        dtype = self.weight.tensor.dtype.value
        return "" if dtype == "f32" else f"@{self.name} is {dtype}, not f32"

    @property
    def not_finite(self) -> str:
        numbers = self.weight.numpy()
        if numbers.dtype.kind != "f":
            numbers = numbers.astype(np.float64)  # bfloat16 and other types foreign to numpy.
        return "" if np.isfinite(numbers).all() else f"@{self.name} contains NaN or infinity"

    @property
    def zero(self) -> str:
        return "" if self.weight.numpy().any() else f"@{self.name} is zero"

    @cached_property
    def tied(self) -> str:
        """Other constants are views of the same memory and would not follow a change."""
        others = tied_to(self.weight)
        return (
            f"@{self.name} is tied to @{others[0].name}, which would not change" if others else ""
        )

    @property
    def in_subgraph(self) -> str:
        inner = any(node.graph is None or node.graph.parent is not None for node in self.nodes)
        return "it is in a subgraph, which calibration does not observe" if inner else ""

    @property
    def shared(self) -> str:
        """The weight has other uses."""
        others = len(self.weight.uses) - len(self.readers)
        return f"@{self.name} has other uses, which would not change" if others else ""


def weight_readers(graph: Graph) -> Iterator[Reader]:
    """All uses of weights in graph order, subgraphs included. A weight need not be a constant."""
    for node in graph.walk():
        yield from readings(node)


def readings(node: Node) -> Iterator[Reader]:
    """A node in each way that it reads a weight."""
    for form in TABLE.weights(node):
        value = node.input(form.operand)
        if value is not None and isinstance(value.type, TensorType):
            yield Reader(node, form, value)


def readers_of(value: Value) -> list[Reader]:
    """The nodes that use ``value`` as their weight."""
    return [
        reader
        for use in value.uses
        if isinstance(use.user, Node)
        for reader in readings(use.user)
        if reader.form.operand == use.operand
    ]


def is_table(value: Value) -> bool:
    """Whether every use of ``value`` looks up rows of it."""
    lookups = [reader for reader in readers_of(value) if reader.form.looked_up]
    return len(lookups) == len(value.uses) > 0


def by_weight(readers: Sequence[Reader]) -> list[WeightedLayer]:
    """``readers`` grouped into layers, without those that see a different matrix than the first one does."""
    layers: dict[Value, WeightedLayer] = {}
    for reader in readers:
        layer = layers.setdefault(reader.weight, WeightedLayer(reader.weight, index=len(layers)))
        if not layer.readers or layer.form.inputs == reader.form.inputs:
            layer.readers.append(reader)
    return list(layers.values())
