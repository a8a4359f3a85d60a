"""Weighted layers: a constant that nodes read as their weight, and these nodes.

    %y = tersor.Linear(%x, @w, @b)    layer @w multiplies rows of %x, and @b is added
    %z = LSTM(%x, @w, @r, @c)         layer @w multiplies rows of %x, layer @r rows of the states
    %e = Gather(@t, %ids)             rows of layer @t are looked up

Which operands of a node are its weights, and how, is what the op table says (:class:`tersor.ops.Weight`).
Passes choose among layers in one way (:class:`tersor.analysis.selection.LayerPass`), and calibration shows
what they multiply (:mod:`tersor.statistics.layers`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tersor.ir import Encoding, Graph, Node, TensorType, Value
from tersor.ops import TABLE, Weight
from tersor.structure.ties import tied_to


@dataclass(frozen=True)
class Reader:
    """A node that reads ``weight`` in the way that ``form`` says."""

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
    def ids(self) -> Value:
        """The rows that are asked for, of a table."""
        assert self.form.ids is not None
        ids = self.node.inputs[self.form.ids]
        assert ids is not None
        return ids

    @property
    def is_float_constant(self) -> bool:
        """In whatever encoding."""
        return self.weight.is_constant and self.weight.tensor.dtype.is_float


@dataclass(eq=False)
class WeightedLayer:
    """A weight with its readers, several where they share it. Reasons against what a pass would do with it
    are empty where there is nothing against it.

    Attributes:
        readers: in the order of the graph; all see the same matrix. What else reads the weight is
            neither here nor to be changed.
        index: its place among the layers that were chosen.
    """

    weight: Value
    readers: list[Reader] = field(default_factory=list)
    index: int = 0

    @property
    def name(self) -> str:
        """Of its weight, and no other layer's."""
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
        """What messages call it."""
        return self.node.scope or self.node.output.name

    @property
    def encoding(self) -> Encoding:
        assert self.weight.encoding is not None
        return self.weight.encoding

    def matrix(self) -> np.ndarray:
        """f64[outputs, inputs]"""
        return np.asarray(self.form.matrix(self.weight.numpy()).astype(np.float64))

    # -- reasons against -----------------------------------------------------------------------------

    def fewer_than(self, elements: int) -> str:
        size = self.weight.tensor.numel
        few = isinstance(size, int) and size < elements
        return f"@{self.name} has fewer than {elements} elements" if few else ""

    @property
    def empty(self) -> str:
        return f"@{self.name} is empty" if self.weight.tensor.numel == 0 else ""

    @property
    def encoded(self) -> str:
        """No constant, or one that is not stored as an array as it is."""
        return "" if self.weight.is_dense else self._form_of_weight

    @property
    def quantized(self) -> str:
        """No constant, or one of other than floats; they may be pruned, or of half the width."""
        return "" if self.weight.stores_floats else self._form_of_weight

    @property
    def _form_of_weight(self) -> str:
        held = self.weight.encoding
        return f"@{self.name} is {held.describe()}" if held else f"%{self.name} is no constant"

    @property
    def narrow(self) -> str:
        """Not f32, which is what has other forms at run time."""
        dtype = self.weight.tensor.dtype.value
        return "" if dtype == "f32" else f"@{self.name} is {dtype}, and not f32"

    @property
    def not_finite(self) -> str:
        numbers = self.weight.numpy()
        if numbers.dtype.kind != "f":
            numbers = numbers.astype(
                np.float64
            )  # bfloat16 and its like, which numpy does not know.
        return "" if np.isfinite(numbers).all() else f"@{self.name} holds NaN or infinity"

    @property
    def zero(self) -> str:
        return "" if self.weight.numpy().any() else f"@{self.name} is zero"

    @cached_property
    def tied(self) -> str:
        """Other constants are views of it, and would be left as they are."""
        others = tied_to(self.weight)
        return f"@{self.name} is tied to @{others[0].name}, which would stay" if others else ""

    @property
    def in_subgraph(self) -> str:
        """Some reader is in a subgraph."""
        inner = any(node.graph is None or node.graph.parent is not None for node in self.nodes)
        return "it is in a subgraph, where calibration sees nothing" if inner else ""

    @property
    def shared(self) -> str:
        """Something else reads it."""
        others = len(self.weight.uses) - len(self.readers)
        return f"@{self.name} is also read by what stays as it is" if others else ""


def weight_readers(graph: Graph) -> Iterator[Reader]:
    """All nodes with weights, subgraphs included, in order. A weight need not be a constant."""
    for node in graph.walk():
        yield from _readings(node)


def readers_of(value: Value) -> list[Reader]:
    """The nodes that read ``value`` as their weight."""
    return [
        reader
        for use in value.uses
        if isinstance(use.user, Node)
        for reader in _readings(use.user)
        if reader.form.operand == use.operand
    ]


def is_table(value: Value) -> bool:
    """Whether all that is done with a constant is that rows of it are looked up."""
    lookups = [reader for reader in readers_of(value) if reader.form.looked_up]
    return len(lookups) == len(value.uses) > 0


def by_weight(readers: Sequence[Reader]) -> list[WeightedLayer]:
    """``readers`` in layers. One that sees another matrix in a weight than the first does is in none."""
    found: dict[Value, WeightedLayer] = {}
    for reader in readers:
        layer = found.setdefault(reader.weight, WeightedLayer(reader.weight, index=len(found)))
        if not layer.readers or layer.form.inputs == reader.form.inputs:
            layer.readers.append(reader)
    return list(found.values())


def _readings(node: Node) -> Iterator[Reader]:
    for form in TABLE.weights(node):
        value = node.input(form.operand)
        if value is not None and isinstance(value.type, TensorType):
            yield Reader(node, form, value)
