"""Ties and what follows a cut, by brute force: units are sliced out of a sample's operands, the op runs
again, and its results must be what the tie's kind says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tersor.ir import Dim, Node, symbol
from tersor.ir.dims import evaluate as dim_at
from tersor.ir.dims import symbols
from tersor.ops import TABLE, Cut, Member, OpDef, Sample, Tie
from tersor.ops.evaluate import evaluate
from tersor.ops.samples import Case, cases, feeds, one_node

# Rows whose ties are never any, and why.
UNTIED = {
    **dict.fromkeys(("Shape", "Size", "ConstantOfShape", "Range", "EyeLike"),
                    "numbers come from sizes, not along axes"),
    **dict.fromkeys(("SequenceConstruct", "SequenceEmpty", "SequenceAt", "SequenceInsert",
                     "SequenceErase", "SequenceLength", "ConcatFromSequence", "SplitToSequence",
                     "Optional", "OptionalGetElement", "OptionalHasElement"),
                    "sequences have no axes"),
    "NonZero": "which positions are taken only the numbers tell",
    "Unique": "which positions are taken only the numbers tell",
}  # fmt: skip
CASES = cases()


def run(op: str, sample: Sample) -> list[np.ndarray]:
    return list(evaluate(one_node(op, sample), feeds(sample)).values())


def cut_of(tie: Tie, gone: Sequence[int]) -> dict[tuple[str, int, int], list[int]]:
    """Positions that units ``gone`` own, by operand or result and axis."""
    assert isinstance(tie.size, int)
    cut: dict[tuple[str, int, int], list[int]] = {}
    for m in tie.members:
        cut.setdefault((m.side, m.index, m.axis), []).extend(m.positions(gone, tie.size))
    return cut


def cut_of_summed(tie: Tie, gone: Sequence[int]) -> dict[tuple[str, int, int], list[int]]:
    """Where a tie of kind ``shape`` has to be zero, so that other units do not change."""
    return cut_of(replace(tie, members=tuple(m for m in tie.members if m.summed)), gone)


def without(arrays: Sequence[np.ndarray | None], side: str, cut: Cut) -> list[np.ndarray | None]:
    left = list(arrays)
    for (where, index, axis), places in cut.items():
        if where == side:
            array = left[index]
            assert array is not None
            left[index] = np.delete(array, list(places), axis)
    return left


def zeroed(arrays: Sequence[np.ndarray | None], cut: Cut) -> list[np.ndarray | None]:
    left = [None if a is None else a.copy() for a in arrays]
    for (side, index, axis), places in cut.items():
        if side == "out":
            continue
        array = left[index]
        assert array is not None
        array[(slice(None),) * axis + (list(places),)] = 0
    return left


def sliced(node: Node, row: OpDef, sample: Sample, cut: Cut) -> Sample:
    """The sample with ``cut`` gone from its operands, and what follows from that."""
    inputs = without(sample.inputs, "in", cut)
    attrs = dict(sample.attrs)
    if row.follow is not None:
        follow = row.follow(node, cut)
        for name, attr in follow.attrs.items():
            if attr is None:
                attrs.pop(name, None)
            else:
                attrs[name] = attr
        for index, array in follow.operands.items():
            inputs += [None] * (index + 1 - len(inputs))
            inputs[index] = array
    constant = sample.constant | frozenset(
        i for i, a in enumerate(inputs) if i >= len(sample.inputs)
    )
    return replace(sample, inputs=inputs, attrs=attrs, constant=constant)


def every_tie(case: Case) -> tuple[Node, list[Tie]]:
    node = next(one_node(case.row.op, case.sample).nodes)
    return node, TABLE.ties(node) or []


def choices(size: int) -> Iterator[list[int]]:
    """Units to remove: the first, the last, and every other one."""
    yield from ([0], [size - 1])
    if size > 3:
        yield list(range(1, size, 2))


@pytest.mark.parametrize("case", [c for c in CASES if c.row.ties], ids=lambda c: c.name)
def test_ties_hold(case: Case) -> None:
    node, ties = every_tie(case)
    whole = run(case.row.op, case.sample)
    for tie in ties:
        assert isinstance(tie.size, int)
        for gone in choices(tie.size) if tie.size > 1 else ():
            check(node, case, tie, gone, whole)


def check(node: Node, case: Case, tie: Tie, gone: Sequence[int], whole: list[np.ndarray]) -> None:
    cut = cut_of(tie, gone)
    assert all(len(set(places)) == len(places) for places in cut.values())
    got = run(case.row.op, sliced(node, case.row, case.sample, cut))
    summed = tie.kind == "sum" or any(m.summed for m in tie.members)
    if summed:
        inputs = zeroed(case.sample.inputs, cut if tie.kind == "sum" else cut_of_summed(tie, gone))
        whole = run(case.row.op, replace(case.sample, inputs=inputs))
    want = [a for a in without(whole, "out", cut) if a is not None]
    assert [g.shape for g in got] == [w.shape for w in want], tie
    if tie.kind != "shape" or summed:
        for mine, theirs in zip(got, want, strict=True):
            # Sums over fewer terms, or in another order, round differently.
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5, err_msg=str(tie))


@pytest.mark.parametrize(
    "row", [r for r in TABLE if r.ties and r.op not in UNTIED], ids=lambda r: r.op
)
def test_samples_exercise_the_ties(row: OpDef) -> None:
    found = [tie for c in CASES if c.row is row for tie in every_tie(c)[1]]
    assert any(isinstance(tie.size, int) and tie.size > 1 for tie in found)


def test_rows_listed_as_untied_are_rows() -> None:
    assert [op for op in UNTIED if op not in TABLE] == []


def _by_size(index: int, shape: tuple[int, ...]) -> tuple[Dim, ...]:
    return tuple(symbol(f"n{d}") if d > 1 else d for d in shape)


@pytest.mark.parametrize("case", [c for c in CASES if c.row.ties], ids=lambda c: c.name)
def test_ties_of_symbolic_operands_are_ties_of_static_ones(case: Case) -> None:
    """What is tied while sizes are unknown must hold of every size, so of the sample's."""
    node = next(one_node(case.row.op, case.sample, _by_size).nodes)
    whole, static = run(case.row.op, case.sample), every_tie(case)[0]
    for tie in TABLE.ties(node) or []:
        if tie.size is None:
            continue  # Of units that nobody can count none is cut.
        size = _number(tie.size)
        for gone in choices(size) if size > 1 else ():
            check(static, case, replace(tie, size=size), gone, whole)


def _number(dim: Dim) -> int:
    assert dim is not None
    return dim_at(dim, {name: int(name.lstrip("n")) for name in symbols(dim)})


# -- members ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "unit", "positions"),
    [
        (Member("in", 0, 0), 1, [1]),
        (Member("in", 0, 0, inner=2), 1, [2, 3]),  # a head of 3, each of two lanes
        (Member("in", 0, 0, outer=2), 1, [1, 4]),  # a lane in each of two heads
        (Member("in", 0, 0, outer=2, inner=2), 1, [2, 3, 8, 9]),
        (Member("in", 0, 0, offset=5), 1, [6]),  # the second operand of a Concat
    ],
)
def test_positions_of_a_unit_of_three(member: Member, unit: int, positions: list[int]) -> None:
    assert member.positions([unit], 3) == positions
