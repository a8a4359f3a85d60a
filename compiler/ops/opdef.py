"""Rows of the op table.

An op's meaning is in its row and nowhere else: canonicalization, cost, pruning, quantization, evaluation
and verification all read it.  To add an op, add a row to its family's file; the contract tests check its
evaluation, types and ties against ONNX Runtime on its samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tersor.ir import Attribute, Dim, Graph, Node, Value, ValueType

if TYPE_CHECKING:
    from tersor.ops.window import Window


@dataclass(frozen=True)
class Cost:
    """The work of a node: multiply-adds, other elementwise operations, and bytes read and written
    (:meth:`tersor.ops.Table.cost` counts the bytes, for all rows alike).

    All are dims, so a graph with symbolic sizes has a symbolic cost; None means unknown.
    """

    macs: Dim = 0
    elementwise: Dim = 0
    bytes: Dim = None


@dataclass(frozen=True)
class Member:
    """One axis of an operand or result in a :class:`Tie`.

    The positions ``offset + (o * size + u) * inner + i`` for all ``o < outer``, ``i < inner`` belong
    to unit ``u``:

        a plain axis                            outer=1 inner=1
        heads in a hidden axis of h*d           inner=d
        the d lanes in a hidden axis of h*d     outer=h
        the hidden units in an LSTM's gates     outer=4
        the second operand of a Concat          offset=size of the first

    ``summed``: the node sums over the units here, so that zeroing a unit's positions here removes it (the
    columns of an LSTM's recurrent weights). In a ``sum`` tie all operands are summed.
    """

    side: Literal["in", "out"]
    index: int
    axis: int
    outer: int = 1
    inner: int = 1
    offset: int = 0
    summed: bool = False

    def positions(self, units: Sequence[int], size: int) -> list[int]:
        """The positions of the ``units``, of ``size`` in total, in ascending order."""
        return sorted(
            self.offset + (o * size + u) * self.inner + i
            for o in range(self.outer)
            for u in units
            for i in range(self.inner)
        )


@dataclass(frozen=True)
class Tie:
    """Axes with the same units: a unit can only be removed from all of them.

    kind:
        same: slicing the operands' members slices the results' members, values unchanged.
        sum: the operands' units are summed over: slicing all members is equivalent to zeroing the
            operands' (and slicing results that have the units too, like an attention's key cache).
        shape: slicing keeps the shapes consistent, but changes the other units' values (the normalized
            axis of a LayerNormalization), unless the members that are ``summed`` are zero.
    """

    size: Dim
    members: tuple[Member, ...]
    kind: Literal["same", "sum", "shape"] = "same"


@dataclass(frozen=True)
class Bias:
    """The bias added to a weight's outputs: an operand, perhaps left out, whose last axis concatenates
    ``vectors`` biases, of which this is number ``which``."""

    operand: int
    vectors: int = 1
    which: int = 0


@dataclass(frozen=True)
class Weight:
    """An operand that is a layer's weight if constant, viewed as a matrix [outputs, inputs].

    operand: its index.
    inputs: the axes summed over, in the order of the matrix's columns, the last one the fastest; all other
        axes form the rows. A row of a lookup table is an output.
    activation: the operand whose rows are multiplied by the matrix: its last axis at every position, or
        every patch of a ``window``; None if there are none, or not one matrix for all (a convolution
        with several groups).
    window: over an activation [batch, channels, positions…]; channels are the fastest axis of a patch.
        None: rows are the activation's last axis.
    state: in place of an activation, the result [length, directions, …, k] whose last axis, one step
        earlier, is multiplied: each direction with its own matrix, stacked on the weight's axis 0.
    part: the index of the matrix in such a stack; None: all of them, concatenated by rows.
    bias: what is added to the outputs; None: no operand.
    ids: for a lookup table, the operand with the indices of rows.
    """

    operand: int
    inputs: tuple[int, ...]
    activation: int | None = None
    window: Window | None = None
    state: int | None = None
    part: int | None = None
    bias: Bias | None = None
    ids: int | None = None

    @property
    def looked_up(self) -> bool:
        """Whether it is a lookup table, not a factor."""
        return self.ids is not None

    @property
    def parts(self) -> slice:
        """The slice of the weight's axis 0 that is viewed."""
        return slice(None) if self.part is None else slice(self.part, self.part + 1)

    def matrix(self, tensor: np.ndarray) -> np.ndarray:
        """[outputs, inputs]"""
        tensor, order = tensor[self.parts], self._order(tensor.ndim)
        sizes = [tensor.shape[i] for i in order]
        rows = tensor.ndim - len(self.inputs)
        return tensor.transpose(order).reshape(math.prod(sizes[:rows]), math.prod(sizes[rows:]))

    def tensor(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of :meth:`matrix`, for the ``shape`` of the tensor or of its part."""
        order = self._order(len(shape))
        return matrix.reshape([shape[i] for i in order]).transpose(np.argsort(order))

    def outputs(self, rank: int) -> list[int]:
        """Axes of a tensor of this rank that form the matrix's rows."""
        return [i for i in range(rank) if i not in self.inputs]

    def _order(self, rank: int) -> list[int]:
        return [*self.outputs(rank), *self.inputs]


@dataclass(frozen=True)
class Quantizer:
    """An operand that may be quantized: every result is a sum of products with it, before what is added to
    the sum, an activation and the next step of a recurrence.

    operand: its index.
    summed: its axes that one sum runs over; negative ones count from the last. A scale that varies along
        the other axes alone factors out of each sum, which is then one of integers.
    """

    operand: int
    summed: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """Operands and attributes that exercise an op, for the contract tests.

    ``constant`` are the indices of operands that must be constants (shapes, axes, weights).
    ``tolerance``, relative and absolute, is for the comparison with ONNX Runtime.
    """

    inputs: Sequence[np.ndarray | None]
    attrs: dict[str, Attribute] = field(default_factory=dict)
    constant: frozenset[int] = frozenset()
    outputs: int = 1
    tolerance: float = 1e-5


Cut = Mapping[tuple[str, int, int], Collection[int]]
"""Positions to remove, by (side, index, axis) as in :class:`Member`."""


@dataclass(frozen=True)
class Follow:
    """What else changes when a node's operands are cut, because it states their sizes: attributes (head
    counts, a hidden size; None: remove it) and constant operands (a shape, split sizes)."""

    attrs: Mapping[str, Attribute | None] = field(default_factory=dict)
    operands: Mapping[int, np.ndarray] = field(default_factory=dict)


Trait = Literal[
    "view", "movement", "elementwise", "normalization", "reduction", "product", "shape", "rounding",
    "discrete", "loop", "sum", "decision", "rank",
]  # fmt: skip
"""What kind of op a row is, for passes; contract tests check each trait on the row's samples.

    view: the elements of operand 0, in order, in another shape; also a movement.
    movement: every element of the results is one of operand 0; the other operands select which.
    elementwise: an element of a result depends only on the elements at its position in the operands,
        which broadcast.
    normalization: operand 0 shifted and scaled by its own statistics, or by given ones.
    reduction: one number for all elements along ``axes``, which ``keepdims`` keeps as dims of 1.
    product: sums of products of two operands.
    shape: the results depend on the shape of the operands alone.
    rounding: the first result is operand 0 in steps; such a row has a ``straight_through``.
    discrete: the results say which or whether, and not how much: no gradient passes.
    loop: a subgraph of it runs several times.
    sum: the results depend on operands 0 and 1 by their sum alone.
    decision: elements of operand 0 are scores: the results select by their order, or map them to
        probabilities in the same order.
    rank: the first result has the rank of operand 0.
"""

Operands = Sequence[Value | None]
StraightThrough = Callable[[Node, Graph, Operands, Operands], Value | None]
"""Emits, into a graph, what stands in for the first result of a node where gradients are taken, of the
values there that are the node's operands and its results; None: the node's own gradient serves."""

Infer = Callable[[Node], Sequence[ValueType]]
Contents = Callable[[Node], Sequence[np.ndarray | None]]


@dataclass(frozen=True)
class OpDef:
    """One row of the op table.

    Attributes:
        op: ONNX's name; our own ops are ``tersor.Name``.
        doc: for our own ops: operands, attributes, result and the formula.
        since: the lowest ONNX opset with the semantics of this row (our own ops: 0).
        needs: the later opset required by a node's attribute values, which schemas do not express; 0 if
            ``since`` suffices.
        inputs: for our own ops: operand names; a trailing ``?`` marks an optional one, ``*`` a variadic
            one. ONNX's ops have theirs in the schema.
        attrs: for our own ops: attributes with defaults (a type in place of a default: required).
        outputs: for our own ops: the maximal number of results.
        infer: types of the results; None: onnx's own per-node inference.
        contents: symbolic contents of the results, for shape arithmetic.
        torch: ``torch(*operands, **attrs)`` -> tensor, or tuple of tensors. Missing operands are None.
            Imports torch inside.
        cost: the node's work; None: unknown.
        ties: axes tied together; None: unknown, all axes are pinned.
        follow: what else changes when positions are cut; None: no sizes are stated. Raises Unsupported if
            a size is stated by an operand that is not constant.
        bound: for ops with subgraphs: axes, as (value, axis), that are the same inside and outside (an
            operand and the subgraph's input); None: unknown, all axes are pinned.
        weights: the operands that are weights; None: none.
        quantizers: the operands besides the weights that may be quantized; None: none.
        deterministic: two nodes with equal operands and attributes give equal results.
        commutative: the first two operands may be exchanged.
        traits: what kind of op it is; see :data:`Trait`.
        straight_through: what stands in for the first result where gradients are taken; None: the gradient of
            ``torch`` serves, or none passes (traits ``discrete`` and ``shape``).
        samples: operands for the contract tests, made from a random generator.
    """

    op: str
    doc: str = ""
    since: int = 0
    needs: Callable[[Node], int] | None = None
    inputs: tuple[str, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    infer: Infer | None = None
    contents: Contents | None = None
    torch: Callable[..., Any] | None = None
    cost: Callable[[Node], Cost] | None = None
    ties: Callable[[Node], list[Tie]] | None = None
    follow: Callable[[Node, Cut], Follow] | None = None
    bound: Callable[[Node], list[tuple[tuple[Value, int], ...]]] | None = None
    weights: Callable[[Node], Sequence[Weight]] | None = None
    quantizers: Callable[[Node], Sequence[Quantizer]] | None = None
    deterministic: bool = True
    commutative: bool = False
    traits: frozenset[Trait] = frozenset()
    straight_through: StraightThrough | None = None
    samples: Callable[[np.random.Generator], list[Sample]] | None = None


def with_traits(traits: str, rows: Sequence[OpDef]) -> list[OpDef]:
    """``rows`` with ``traits`` (separated by spaces) added."""
    added: frozenset[Any] = frozenset(traits.split())
    return [replace(row, traits=row.traits | added) for row in rows]
