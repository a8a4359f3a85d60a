"""Einsum: products and sums along labelled axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.ir import Dim, Node, ValueType
from tersor.ir.dims import product
from tersor.ops.families._symbolic import broadcast_dim, refuse, tensor
from tersor.ops.families._ties import dims, plain
from tersor.ops.opdef import Cost, OpDef, Quantizer, Sample, Tie, with_traits

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Equation:
    """Labels of each operand's axes and of the result's. An ellipsis is expanded: its axes are
    ``.0``, ``.1`` … counted from the last."""

    operands: tuple[Labels, ...]
    result: Labels

    def size(self, label: str, shapes: list[tuple[Dim, ...]]) -> Dim:
        """What the label's axes have in common; 1 gives way."""
        size: Dim = 1
        for labels, shape in zip(self.operands, shapes, strict=True):
            for own, dim in zip(labels, shape, strict=True):
                size = broadcast_dim(size, dim) if own == label else size
        return size


def equation_of(node: Node) -> Equation | None:
    """The equation over the operands' axes; None if a rank is unknown.

    Raises:
        InvalidGraph: it does not fit the operands.
    """
    text = str(node.attrs["equation"]).replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(node.inputs):
        refuse(
            node, f"the equation {text!r} has {len(terms)} terms for {len(node.inputs)} operands"
        )
    operands = []
    for i, term in enumerate(terms):
        have = tensor(node, i).dims
        if have is None:
            return None
        operands.append(_spelled(node, term, len(have) - len(term.replace("...", ""))))
        if len(operands[-1]) != len(have):
            refuse(node, f"{term!r} does not fit {tensor(node, i)}")
    free = max((sum(label[0] == "." for label in o) for o in operands), default=0)
    if not arrow:
        joined = left.replace(",", "").replace("...", "")
        right = "..." + "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    return Equation(tuple(operands), _spelled(node, right, free))


def _spelled(node: Node, term: str, free: int) -> Labels:
    before, dots, after = term.partition("...")
    if not dots:
        return tuple(before)
    if free < 0:
        refuse(node, f"{term!r} has more labels than its operand has axes")
    return (*before, *(f".{i}" for i in reversed(range(free))), *after)


def _infer(node: Node) -> list[ValueType]:
    equation, x = equation_of(node), tensor(node)
    if equation is None:
        return [x.with_dims(None)]
    shapes = [dims(v) for v in node.inputs]
    return [x.with_dims(tuple(equation.size(label, shapes) for label in equation.result))]


def _cost(node: Node) -> Cost:
    """One multiply-add per combination of all labels: the cost without intermediate products."""
    equation = equation_of(node)
    if equation is None:
        return Cost(None, None)
    shapes = [dims(v) for v in node.inputs]
    labels = dict.fromkeys(label for operand in equation.operands for label in operand)
    return Cost(product(equation.size(label, shapes) for label in labels))


def _ties(node: Node) -> list[Tie]:
    """All axes of a label that are not stretched; a label missing from the result is summed."""
    equation = equation_of(node)
    if equation is None:
        return []
    shapes = [dims(v) for v in node.inputs]
    ties = []
    for label in dict.fromkeys(label for operand in equation.operands for label in operand):
        size = equation.size(label, shapes)
        members = [
            plain("in", i, axis)
            for i, labels in enumerate(equation.operands)
            for axis, own in enumerate(labels)
            if own == label and shapes[i][axis] == size
        ]
        if label in equation.result:
            members.append(plain("out", 0, equation.result.index(label)))
        if size is not None and size != 1:
            ties.append(Tie(size, tuple(members), "same" if label in equation.result else "sum"))
    return ties


def _quantizers(node: Node) -> list[Quantizer]:
    found = equation_of(node)
    if found is None:
        return []
    kept = found.result
    return [
        Quantizer(i, tuple(axis for axis, label in enumerate(labels) if label not in kept))
        for i, labels in enumerate(found.operands)
    ]


def _einsum(*operands: Any, equation: str) -> Any:
    import torch

    return torch.einsum(equation, *operands)


def _samples(rng: np.random.Generator) -> list[Sample]:
    def case(equation: str, *shapes: tuple[int, ...]) -> Sample:
        operands = [rng.standard_normal(s).astype(np.float32) for s in shapes]
        return Sample(operands, {"equation": equation})

    return [
        case("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
        case("ij, jk", (2, 3), (3, 4)),
        case("...ij,...jk->...ik", (1, 5, 2, 3), (4, 1, 3, 2)),
        case("ii->i", (3, 3)),
        case("ij->j", (2, 3)),
        case("i,j,k->ikj", (2,), (3,), (4,)),
        case("blk,ko->blo", (2, 3, 4), (4, 5)),
    ]


ROWS = with_traits("product", [
    OpDef("Einsum", since=12, infer=_infer, torch=_einsum, cost=_cost, ties=_ties,
          quantizers=_quantizers, samples=_samples),
])  # fmt: skip
