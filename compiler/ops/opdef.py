"""What a row of the op table says, and the small data it is made of.

An op's meaning lives in its row and nowhere else: canonicalization, cost, pruning, quantization,
evaluation and verification all read it.  To add an op, add a row to its family's file; the contract
tests find it there and hold its evaluation, types and ties against ONNX Runtime on its samples.
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
    """Work of a node: multiply-adds, other arithmetic operations one element at a time, and bytes of
    operands read and results written (:meth:`tersor.ops.Table.cost` counts them, the same for all rows).

    All are dims, so that a graph with symbolic sizes has a symbolic cost; None means unknown.
    """

    macs: Dim = 0
    elementwise: Dim = 0
    bytes: Dim = None


@dataclass(frozen=True)
class Member:
    """How one axis of an operand or result takes part in a :class:`Tie`.

    The positions ``offset + (o * size + u) * inner + i`` for all ``o < outer``, ``i < inner`` belong
    to unit ``u``:

        a plain axis                            outer=1 inner=1
        heads in a hidden axis of h*d           inner=d
        the d lanes in a hidden axis of h*d     outer=h
        the hidden units in an LSTM's gates     outer=4
        the second operand of a Concat          offset=size of the first

    ``summed``: the node sums over the units here, so that the others' values do not change with a unit
    whose positions here are zero; of a ``sum`` tie that is all of its operands. (The columns of an
    LSTM's recurrent weights.)
    """

    side: Literal["in", "out"]
    index: int
    axis: int
    outer: int = 1
    inner: int = 1
    offset: int = 0
    summed: bool = False

    def positions(self, units: Sequence[int], size: int) -> list[int]:
        """Positions on the axis that the ``units``, of ``size`` in all, own, in ascending order."""
        return sorted(
            self.offset + (o * size + u) * self.inner + i
            for o in range(self.outer)
            for u in units
            for i in range(self.inner)
        )


@dataclass(frozen=True)
class Tie:
    """Axes that hold the same units: who removes a unit from one must remove it from all.

    kind:
        same: slicing the operands' members slices the results' members, values unchanged.
        sum: the operands' units are summed over: slicing all members gives what zeroing the operands'
            gives, sliced where a result has them too (an attention's cache of keys).
        shape: slicing keeps the shapes consistent, but changes the other units' values (the
            normalized axis of a LayerNormalization), unless the members that are ``summed`` are zero.
    """

    size: Dim
    members: tuple[Member, ...]
    kind: Literal["same", "sum", "shape"] = "same"


@dataclass(frozen=True)
class Bias:
    """What is added to a weight's outputs: an operand, which may be missing, of their shape but for the
    last axis, on which ``vectors`` lie one after the other; the one that is meant is ``which``."""

    operand: int
    vectors: int = 1
    which: int = 0


@dataclass(frozen=True)
class Weight:
    """An operand that holds a layer's weight where it is a constant, seen as a matrix [outputs, inputs].

    operand: its index.
    inputs: its axes that one output sums over, in the order of the matrix's columns, the last one the
        fastest; all other axes make the rows. A table's row is an output.
    activation: the operand, rows of which are multiplied with the matrix: its last axis at every
        position, or what a ``window`` sees at every place of the result; None where there are no such
        rows, or not one matrix for all (a convolution of several groups).
    window: over an activation [batch, channels, positions…], the channels of one place side by side;
        None: its last axis.
    state: in place of an activation, the result [length, directions, …, k] whose last axis is multiplied,
        as it was a step before: each direction with a matrix of its own, of a stack on the weight's
        axis 0.
    part: of such a stack, the matrix that is meant; None: all, one below the other.
    bias: what is added to the outputs; None: nothing that an operand tells.
    ids: the operand that says which rows are picked, of a table that is not multiplied.
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
        """Whether rows are picked, not multiplied."""
        return self.ids is not None

    @property
    def parts(self) -> slice:
        """What is meant of the weight's axis 0."""
        return slice(None) if self.part is None else slice(self.part, self.part + 1)

    def matrix(self, tensor: np.ndarray) -> np.ndarray:
        """[outputs, inputs]"""
        tensor, order = tensor[self.parts], self._order(tensor.ndim)
        sizes = [tensor.shape[i] for i in order]
        rows = tensor.ndim - len(self.inputs)
        return tensor.transpose(order).reshape(math.prod(sizes[:rows]), math.prod(sizes[rows:]))

    def tensor(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor of ``shape``, or of its part, that ``matrix`` is made of."""
        order = self._order(len(shape))
        return matrix.reshape([shape[i] for i in order]).transpose(np.argsort(order))

    def outputs(self, rank: int) -> list[int]:
        """Axes of a tensor of this rank that make the matrix's rows."""
        return [i for i in range(rank) if i not in self.inputs]

    def _order(self, rank: int) -> list[int]:
        return [*self.outputs(rank), *self.inputs]


@dataclass(frozen=True)
class Sample:
    """Operands and attributes that exercise an op, for the contract tests.

    ``constant`` are the indices of operands that must be constants (shapes, axes, weights).
    ``tolerance`` is relative and absolute at once, for the comparison with ONNX Runtime.
    """

    inputs: Sequence[np.ndarray | None]
    attrs: dict[str, Attribute] = field(default_factory=dict)
    constant: frozenset[int] = frozenset()
    outputs: int = 1
    tolerance: float = 1e-5


Cut = Mapping[tuple[str, int, int], Collection[int]]
"""Positions that go, by (side, index, axis): what ties say of an operand's and a result's axes."""


@dataclass(frozen=True)
class Follow:
    """What else of a node states the sizes of its operands, and so changes when they are cut:
    attributes (head counts, a hidden size; None: leave it out) and operands that are constants (a
    shape, split sizes)."""

    attrs: Mapping[str, Attribute | None] = field(default_factory=dict)
    operands: Mapping[int, np.ndarray] = field(default_factory=dict)


Trait = Literal[
    "view", "movement", "elementwise", "normalization", "reduction", "product", "shape", "rounding",
    "discrete", "loop",
]  # fmt: skip
"""What kind of op a row is, as far as passes ask; the contract tests hold each on the row's samples.

    view: the elements of operand 0 in their order, in another shape; also a movement.
    movement: every element of the results is one of operand 0; the other operands say which, and where.
    elementwise: an element of a result depends on those at its own place in the operands, which broadcast.
    normalization: operand 0 shifted and scaled by its own statistics, or by those that it is given.
    reduction: one number for all elements along ``axes``, which ``keepdims`` keeps as dims of 1.
    product: sums of products of two operands.
    shape: the results depend on the shape of the operands alone.
    rounding: the first result is operand 0 in steps; such a row has a ``straight_through``.
    discrete: the results say which or whether, and not how much: no gradient passes.
    loop: a subgraph of it runs several times.
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
        op: ONNX's name; ops that we define ourselves are ``tersor.Name``.
        doc: for our own ops: operands, attributes, result and the formula.
        since: the lowest ONNX opset at which the op means what this row says (our own ops: 0).
        needs: a later opset that some nodes call for by the values of their attributes, which schemas
            do not tell; 0 for the others.
        inputs: for our own ops: operand names, a trailing ``?`` marks an optional one, ``*`` a
            variadic one. ONNX's ops take theirs from the schema.
        attrs: for our own ops: attributes with defaults (a type in place of a default: required).
        outputs: for our own ops: how many, at most.
        infer: types of the results; None: onnx's own per-node inference.
        contents: symbolic contents of the results, for shape arithmetic.
        torch: ``torch(*operands, **attrs)`` -> tensor, or tuple of tensors. Operands left out are
            None. Imports torch inside.
        cost: None: unknown.
        ties: axes tied together; None: nothing is known, all axes are pinned.
        follow: what else changes when positions are cut by the ties; None: nothing states a size.
            Raises Unsupported where a size is stated by an operand that is no constant.
        bound: for ops with subgraphs: axes, as (value, axis), of what is one thing inside and outside
            (an operand and what the body calls it); None: nothing is known, all axes are pinned.
        weights: the operands that hold its weights; None: it has none.
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
    deterministic: bool = True
    commutative: bool = False
    traits: frozenset[Trait] = frozenset()
    straight_through: StraightThrough | None = None
    samples: Callable[[np.random.Generator], list[Sample]] | None = None


def with_traits(traits: str, rows: Sequence[OpDef]) -> list[OpDef]:
    """``rows`` with all of ``traits``, words with spaces between, besides their own."""
    added: frozenset[Any] = frozenset(traits.split())
    return [replace(row, traits=row.traits | added) for row in rows]
