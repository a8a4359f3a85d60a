"""Consecutive steps of one recurrent layer: cells with equal weights, each reading the state of the previous
one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import uniform
from tersor.analysis.recurrence.cells import Blocks, Cell, cells_at
from tersor.analysis.recurrence.forms import Block, Form, Source, source, viewed
from tersor.ir import Graph, Node, Value


@dataclass
class Chain:
    """Cells in order. ``inputs``: what each reads besides its state; ``begins``: the state before the
    first (None: zero), an LSTM's cell state as well."""

    cells: list[Cell]
    inputs: list[list[Source]]
    state: Source  # of the last step
    begins: Source | None = None
    begins_cell: Value | None = None

    def split_at(self, steps: Sequence[int]) -> Iterator[Chain]:
        """Chains that each end after one of ``steps``, which include the last step."""
        start = 0
        for step in steps:
            before = self.cells[start - 1] if start else None
            yield Chain(
                self.cells[start : step + 1],
                self.inputs[start : step + 1],
                Source(self.cells[step - 1].h) if step > start else self.state,
                Source(before.h) if before is not None else self.begins,
                before.c if before is not None else self.begins_cell,
            )
            start = step + 1


def chains(graph: Graph) -> list[Chain]:
    """The unrolled recurrences of ``graph``, each of at least two steps."""
    cells = [cell for node in graph.nodes for cell in cells_at(node)]
    by_state: dict[Value, list[Cell]] = {}
    by_cell: dict[Value, list[Cell]] = {}
    for cell in cells:
        by_state.setdefault(cell.h, []).append(cell)
        if cell.c is not None:
            by_cell.setdefault(cell.c, []).append(cell)
    taken: set[Value] = set()
    started: list[Chain] = []
    ends: dict[Cell, Chain] = {}
    for cell in cells:
        if cell.h in taken:
            continue
        for before in _before(cell, by_state, by_cell):
            chain = ends.get(before)
            extended = _extended(chain, cell) if chain is not None else _begun(before, cell)
            if extended is None or (chain is None and before.h in taken):
                continue
            if chain is None:
                started.append(extended)
            ends.pop(before, None)
            ends[cell] = extended
            taken.update((before.h, cell.h))
            break
    return started


def _before(
    cell: Cell, by_state: dict[Value, list[Cell]], by_cell: dict[Value, list[Cell]]
) -> Iterator[Cell]:
    """Cells whose states ``cell`` may read."""
    if cell.op == "LSTM":
        candidates = by_cell.get(cell.c_before, []) if cell.c_before is not None else []
    elif cell.h_before is not None:
        candidates = by_state.get(cell.h_before, [])
    else:
        candidates = [c for s in cell.terms if s.axis is None for c in by_state.get(s.value, [])]
    for other in candidates:
        if other.op == cell.op and Source(other.h) in cell.terms and other is not cell:
            yield other


def _begun(first: Cell, second: Cell) -> Chain | None:
    """The chain of two steps, or None: ``first`` may read a state that was folded into its biases."""
    state = Source(first.h)
    if not _alike(first, second):
        return None
    matrices = second.terms[state]
    inputs = _inputs(second, state)
    own = [source(first.h_before)] if first.h_before is not None else list(first.terms)
    for begin in [*(s for s in own if s in first.terms), None]:
        rest = _inputs(first, begin)
        if begin is not None and not _equal(first.terms[begin], matrices, may_lack=True):
            continue
        if _same_inputs(first, rest, second, inputs):
            return _started(first, begin, [rest, inputs], second)
    return None


def _started(
    first: Cell, begin: Source | None, inputs: list[list[Source]], second: Cell
) -> Chain | None:
    cell = first.c_before
    state = begin
    if state is None and first.h_before is not None:
        state = source(first.h_before)
    zero_state = state is None or (state.axis is None and uniform(state.value) == 0)
    zero_cell = cell is None or uniform(cell) == 0
    if first.op == "LSTM" and cell is None and not zero_state:
        return None
    return Chain(
        [first, second],
        inputs,
        Source(first.h),
        None if zero_state else state,
        None if zero_cell else cell,
    )


def _extended(chain: Chain, cell: Cell) -> Chain | None:
    last, state = chain.cells[-1], Source(chain.cells[-1].h)
    inputs = _inputs(cell, state)
    fits = (
        _alike(last, cell)
        and _equal(last.terms[chain.state], cell.terms[state])
        and _same_inputs(last, chain.inputs[-1], cell, inputs)
    )
    if not fits:
        return None
    chain.cells.append(cell)
    chain.inputs.append(inputs)
    chain.state = state
    return chain


# -- what has to agree -----------------------------------------------------------------------------


def _inputs(cell: Cell, state: Source | None) -> list[Source]:
    return [s for s in cell.terms if s != state]


def _alike(a: Cell, b: Cell) -> bool:
    """Whether two steps agree except for their products; the very first may lack a gate."""
    if (a.op, a.activations, a.reset_first, a.negated, a.hidden) != (
        b.op, b.activations, b.reset_first, b.negated, b.hidden,
    ):  # fmt: skip
        return False
    pairs = [*zip(a.bias, b.bias, strict=True), (a.state_bias, b.state_bias)]
    lacks = a.op == "LSTM" and a.c_before is None
    return all((x is None and (lacks or y is None)) or _same_bias(x, y, a.hidden) for x, y in pairs)


def _same_bias(a: Form | None, b: Form | None, width: int) -> bool:
    if a is None or b is None:
        return False
    return a.bias == b.bias or bool(np.allclose(a.row(width), b.row(width), rtol=1e-6, atol=1e-7))


def _same_inputs(a: Cell, reads: list[Source], b: Cell, others: list[Source]) -> bool:
    if len(reads) != len(others) or not reads:
        return False
    lacks = a.op == "LSTM" and a.c_before is None
    return all(
        _equal(a.terms[x], b.terms[y], may_lack=lacks) for x, y in zip(reads, others, strict=True)
    )


def _equal(a: tuple[Blocks, ...], b: tuple[Blocks, ...], may_lack: bool = False) -> bool:
    return all((may_lack and x is None) or _same_blocks(x, y) for x, y in zip(a, b, strict=True))


def _same_blocks(a: Blocks, b: Blocks) -> bool:
    if a == b:
        return True
    if a is None or b is None:
        return False
    x, y = total(a), total(b)
    return x.shape == y.shape and np.array_equal(x, y)


def total(blocks: tuple[Block, ...]) -> np.ndarray:
    """The sum of blocks, usually a single one."""
    result = blocks[0].numpy()
    for block in blocks[1:]:
        result = result + block.numpy()
    return result


# -- who else reads --------------------------------------------------------------------------------


def last_read_cells(chain: Chain) -> list[int]:
    """Steps whose cell state is read outside of the chain, and the last one."""
    found = []
    for i, cell in enumerate(chain.cells[:-1]):
        own = {*cell.readers, *chain.cells[i + 1].readers}
        if cell.c is not None and not _readers(cell.c) <= own:
            found.append(i)
    return [*found, len(chain.cells) - 1]


def _readers(value: Value) -> set[object]:
    """Users of a value, or of a view of it that only adds or drops dims of 1."""
    found: set[object] = set()
    for use in value.uses:
        user = use.user
        if isinstance(user, Node) and user.outputs and viewed(user.output) is value:
            found |= _readers(user.output)
        else:
            found.add(user)
    return found
