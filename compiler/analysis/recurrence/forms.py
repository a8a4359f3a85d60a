"""What a gate sums before its activation, as products of vectors with constant matrices, and a bias.

    Split(Linear(Concat(x[:, 3], h), @W[7, 32], @b) + @c)[1]   with x[b, t, 5], h[b, 2]

    = {x at 3 of axis 1: W[0:5, 8:16],  h: W[5:7, 8:16]} + b[8:16] + c[8:16]

The search walks back from the gate with the columns of the last axis that it reads, through sums, slices
and concatenations of that axis, views that add or drop dims of 1, and the selection of one step of a
sequence: a product computed once for all steps counts as one product per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tersor.analysis.match import dims, has_trait, operand, producer_if, scalar
from tersor.ir import Dim, Node, Value

Columns = tuple[int, int]
MAX_STEPS = 64  # Nodes visited from one gate: no exporter writes as many.


@dataclass(frozen=True)
class Source:
    """What a product reads at one step: ``value``, or the position ``at`` of its axis ``axis``."""

    value: Value
    axis: int | None = None
    at: int = 0


@dataclass(frozen=True)
class Block:
    """Rows and columns of a constant matrix."""

    constant: Value
    rows: Columns
    columns: Columns

    def numpy(self) -> np.ndarray:
        return self.constant.numpy()[slice(*self.rows), slice(*self.columns)]


@dataclass
class Form:
    """``sum(source @ sum(blocks)) + sum(bias)``; ``others`` are summands that are not products, each
    with the columns read of it."""

    terms: dict[Source, tuple[Block, ...]] = field(default_factory=dict)
    bias: list[tuple[Value, Columns]] = field(default_factory=list)
    others: list[tuple[Value, Columns]] = field(default_factory=list)

    def row(self, width: int) -> np.ndarray:
        """The bias of each of ``width`` columns."""
        total = np.zeros(width, np.float32)
        for constant, (start, end) in self.bias:
            numbers = constant.numpy()
            last = numbers.reshape(-1, numbers.shape[-1] if numbers.ndim else 1)[0]
            total = total + (last if last.size == 1 else last[start:end])
        return np.asarray(total, np.float32)


def form(value: Value, columns: Columns) -> Form | None:
    """The form of some columns of ``value``; None if rows of a constant summand differ."""
    total = Form()
    work: list[tuple[Value, Columns, _Pick | None]] = [(value, columns, None)]
    for _ in range(MAX_STEPS):
        if not work:
            return total
        value, columns, pick = work.pop()
        if value.is_constant:
            if not _rows_agree(value):
                return None
            total.bias.append((value, columns))
        elif (parts := _summands(value, pick)) is not None:
            work += [(part, columns, pick) for part in reversed(parts)]
        elif (linear := _product(value)) is not None:
            _add_product(total, linear, columns, pick)
        elif (pick is None or _view(value) is None) and (part := narrower(value, columns)):
            work.append((*part, pick))
        elif (step := _picked(value, pick)) is not None:
            work.append((step[0], columns, step[1]))
        else:
            total.others.append((value, columns))
    return None


def source(value: Value) -> Source:
    """The sequence and step that ``value`` is, up to dims of 1, or ``value`` itself."""
    return _source(value, None)


def without_units(shape: Sequence[Dim]) -> list[Dim]:
    """Dims that are not 1."""
    return [d for d in shape if d != 1]


def viewed(value: Value) -> Value:
    """``value`` before views that only add or drop dims of 1, except the last dim."""
    for _ in range(MAX_STEPS):
        inner = _view(value)
        if inner is None:
            break
        value = inner
    return value


def narrower(value: Value, columns: Columns) -> tuple[Value, Columns] | None:
    """(Value, columns) that ``columns`` of ``value`` are a slice, a concatenation or a view of."""
    node, shape = value.producer, dims(value)
    if node is None or not shape:
        return None
    if (inner := _view(value)) is not None:
        return inner, columns
    start = _start(node, value, len(shape) - 1)
    if start is not None:
        return operand(node, 0), (start + columns[0], start + columns[1])
    if node.op == "Concat" and _axis(node, len(shape)) == len(shape) - 1:
        for part, (first, end) in _concatenated(node):
            if first <= columns[0] and columns[1] <= end:
                return part, (columns[0] - first, columns[1] - first)
    return None


# -- products --------------------------------------------------------------------------------------


def _summands(value: Value, pick: _Pick | None) -> list[Value] | None:
    """Operands of an Add of two tensors of one shape (dims of 1 aside), or of one and a constant."""
    node, shape = producer_if(value, "Add"), dims(value)
    if node is None or not shape:
        return None
    for v in (operand(node, 0), operand(node, 1)):
        have = dims(v) or ()
        same = have == shape or (pick is None and without_units(have) == without_units(shape))
        if not v.is_constant and not (same and have[-1] == shape[-1]):
            return None
    return [operand(node, 0), operand(node, 1)]


def _product(value: Value) -> Node | None:
    node = value.producer
    if node is None or node.op not in ("tersor.Linear", "MatMul"):
        return None
    weight, bias = operand(node, 1), node.input(2)
    plain = node.attrs.get("activation", "none") == "none"
    if not plain or not weight.is_constant or (bias is not None and not bias.is_constant):
        return None
    return node if weight.tensor.rank == 2 and (dims(operand(node, 0)) or ())[1:] else None


def _add_product(total: Form, node: Node, columns: Columns, pick: _Pick | None) -> None:
    x, weight, bias = operand(node, 0), operand(node, 1), node.input(2)
    for part, rows in _parts(x):
        read = _source(part, pick)
        total.terms[read] = (*total.terms.get(read, ()), Block(weight, rows, columns))
    if bias is not None:
        total.bias.append((bias, columns))


def _parts(x: Value) -> Iterator[tuple[Value, Columns]]:
    """The values concatenated along the last axis of ``x``, with the rows of a matrix that multiply them."""
    node, shape = producer_if(x, "Concat"), dims(x) or ()
    if node is not None and _axis(node, len(shape)) == len(shape) - 1:
        yield from _concatenated(node)
    else:
        yield x, (0, int(shape[-1]) if isinstance(shape[-1], int) else -1)


def _concatenated(node: Node) -> Iterator[tuple[Value, Columns]]:
    """(Operand, (start, end)) of a Concat along the last axis."""
    start = 0
    for part in node.inputs:
        size = (dims(part) or (None,))[-1] if part is not None else None
        if part is None or not isinstance(size, int):
            return
        yield part, (start, start + size)
        start += size


def _rows_agree(constant: Value) -> bool:
    numbers = constant.numpy()
    if numbers.ndim < 2 or numbers.size == numbers.shape[-1]:
        return numbers.size > 0
    rows = numbers.reshape(-1, numbers.shape[-1])
    return rows.size > 0 and bool((rows == rows[0]).all())


# -- steps of a sequence, and views ----------------------------------------------------------------


@dataclass(frozen=True)
class _Pick:
    axis: int
    at: int


def _source(value: Value, pick: _Pick | None) -> Source:
    for _ in range(MAX_STEPS):
        if pick is None and (inner := _view(value)) is not None:
            value = inner
        elif (step := _picked(value, pick)) is not None:
            value, pick = step
        else:
            break
    return Source(value) if pick is None else Source(value, pick.axis, pick.at)


def _picked(value: Value, pick: _Pick | None) -> tuple[Value, _Pick] | None:
    """``value`` at ``pick`` as a step of the operand of its producer."""
    node, shape = value.producer, dims(value)
    if node is None or not shape:
        return None
    if pick is not None:
        return _picked_before(node, shape, pick)
    x = node.inputs[0] if node.inputs else None
    have = (dims(x) if x is not None else None) or ()
    if x is None or x.is_constant:
        return None
    if node.op == "Gather":
        axis, at = _axis(node, len(have)), scalar(node.input(1))
        length = have[axis] if axis < len(have) - 1 else None
        if at is None or axis >= len(have) - 1:
            return None
        at = at + length if at < 0 and isinstance(length, int) else at
        return (x, _Pick(axis, int(at))) if at >= 0 else None
    if len(have) != len(shape):
        return None
    for axis in range(len(shape) - 1):
        start = _start(node, value, axis) if shape[axis] == 1 else None
        if start is not None and have[axis] != 1:
            return x, _Pick(axis, start)
    return None


def _picked_before(node: Node, shape: tuple[Dim, ...], pick: _Pick) -> tuple[Value, _Pick] | None:
    """A step of the tensor before a Transpose, or before a view that adds or drops dims of 1."""
    if node.op == "Transpose":
        perm = node.attrs.get("perm")
        if isinstance(perm, tuple) and perm[-1] == len(perm) - 1:
            return operand(node, 0), _Pick(int(perm[pick.axis]), pick.at)
    inner = _view(node.output)
    have = dims(inner) if inner is not None else None
    if inner is None or have is None or shape[pick.axis] == 1:
        return None
    place = len(without_units(shape[: pick.axis]))
    axes = [i for i, d in enumerate(have[:-1]) if d != 1]
    return (inner, _Pick(axes[place], pick.at)) if place < len(axes) else None


def _view(value: Value) -> Value | None:
    """The operand that ``value`` is a view of, with other dims of 1 before the last dim; None if it is
    none."""
    node = value.producer
    if node is None or not has_trait(node, "view"):
        return None
    x = operand(node, 0)
    before, after = dims(x), dims(value)
    if not before or not after or None in (*before, *after) or before[-1] != after[-1]:
        return None
    return x if without_units(before[:-1]) == without_units(after[:-1]) else None


def _start(node: Node, value: Value, axis: int) -> int | None:
    """The start of ``value`` on ``axis`` of what it is a Split or a Slice of along this axis alone, else
    None."""
    have, shape = dims(operand(node, 0)) if node.inputs else None, dims(value)
    if not have or not shape or len(have) != len(shape) or None in shape:
        return None
    if node.op == "Split":
        sizes = [(dims(v) or (None,) * len(have))[axis] for v in node.outputs[: value.index]]
        same = _axis(node, len(have)) == axis
        whole = [s for s in sizes if isinstance(s, int)]
        return sum(whole) if same and len(whole) == len(sizes) else None
    if node.op != "Slice":
        return None
    cuts = [v.numpy().reshape(-1) if v is not None and v.is_constant else None
            for v in (node.input(1), node.input(3), node.input(4))]  # fmt: skip
    starts, axes, steps = cuts
    if starts is None or starts.size != 1 or (axes is None and node.input(3) is not None):
        return None
    on = 0 if axes is None else int(axes[0]) % len(have)
    by_one = shape[axis] == 1 or node.input(4) is None or (steps is not None and steps[0] == 1)
    start, size = int(starts[0]), have[axis]
    if on != axis or not by_one or not isinstance(shape[axis], int):
        return None
    if start < 0:
        return start + size if isinstance(size, int) and start + size >= 0 else None
    return min(start, size - 1) if isinstance(size, int) else start


def _axis(node: Node, rank: int) -> int:
    axis = node.attrs.get("axis", 0)
    return int(axis) % rank if isinstance(axis, int) and rank else -1
