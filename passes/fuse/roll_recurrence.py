"""Rolls a recurrence that an exporter unrolled back into one op.

x[b, 3, 5];  h1, c1 = cell(x[:, 0], h0, c0);  h2, c2 = cell(x[:, 1], h1, c1);  h3, c3 = cell(x[:, 2], h2, c2)
y = Concat(Unsqueeze(h1, 1), Unsqueeze(h2, 1), Unsqueeze(h3, 1))

  ->  Y, Y_h, Y_c = LSTM(Transpose(x, 1, 0, 2), W, R, B, _, Unsqueeze(h0, 0), Unsqueeze(c0, 0))
      y = Transpose(Squeeze(Y, 1), 1, 0, 2),   h3 = Squeeze(Y_h, 0),   h2 = Gather(Squeeze(Y, 1), 1)

``tersor.analysis.recurrence`` recognizes the steps.  Steps that read a sequence backwards become an op of
direction ``reverse``.  A cell state with another use ends an op, since an op returns only the last one.
Simple RNNs are rolled only for a batch of 1: on larger ones ONNX Runtime's RNN is slower than the single
steps (five times for a batch of 8, 20 steps and 256 units).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import dims
from tersor.analysis.recurrence.cells import Blocks
from tersor.analysis.recurrence.chains import Chain, chains, last_read_cells, total
from tersor.analysis.recurrence.forms import Source, viewed, without_units
from tersor.ir import Dense, Dim, Graph, Node, Value
from tersor.pipeline import ROUNDING, Context, Pass, Skip, erase_dead

LEAST = 2
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


@dataclass(frozen=True)
class RollRecurrence(Pass):
    """No options."""

    keeps = ROUNDING

    def run(self, graph: Graph, context: Context) -> None:
        for owner in list(graph.all_graphs()):
            refused: set[Value] = set()
            while context.may_rewrite() and self._roll_first(owner, refused, context):
                context.rewrote()

    def _roll_first(self, graph: Graph, refused: set[Value], context: Context) -> bool:
        """Rolls the first chain that can be rolled. Others may read its states, so chains are searched
        again."""
        for whole in chains(graph):
            parts = [p for p in whole.split_at(last_read_cells(whole)) if len(p.cells) >= LEAST]
            for chain in parts or [whole]:
                last = chain.cells[-1].h
                if last in refused:
                    continue
                refused.add(last)  # Unless it is rolled, and gone.
                assert last.producer is not None
                with context.trying(last.producer):
                    if not parts:
                        raise Skip(
                            "the cell state of each step is used, and the op returns only the last"
                        )
                    _roll(graph, chain)
                    return True
        return False


def _roll(graph: Graph, chain: Chain) -> None:
    batch = _batch(chain)
    states = _initial_states(chain)
    sequences, backward = _sequences(chain, batch)
    reads = [s.value for parts in sequences for s in parts]
    reads += [s.value for s in states if s is not None]
    anchor = _make_room(graph, chain, reads)
    cell, scope = chain.cells[-1], chain.cells[0].h.producer.scope  # type: ignore[union-attr]
    weights = _weights(chain)
    with graph.at(anchor):
        x = _joined(graph, [_stacked(graph, parts, batch, backward) for parts in sequences])
        initial = [_initial(graph, s, batch) for s in states]
        operands = [x, *(graph.constant(w, n) for w, n in zip(weights, "WRB", strict=True))]
        node = graph.emit_node(
            cell.op, [*operands, None, *initial], _attributes(chain, backward),
            names=[""] * (3 if cell.op == "LSTM" else 2), scope=scope,
        )  # fmt: skip
        # The anchor may be a node of a step, and is erased with it.
        end = graph.emit("Identity", [node.output]).producer
    with graph.at(end):
        _replace(graph, chain, node, batch, backward)
    assert end is not None
    graph.erase(end)


def _attributes(chain: Chain, backward: bool) -> dict[str, int | str | tuple[str, ...]]:
    cell = chain.cells[-1]
    attrs: dict[str, int | str | tuple[str, ...]] = {"hidden_size": cell.hidden}
    if backward:
        attrs["direction"] = "reverse"
    if cell.activations != _DEFAULTS[cell.op]:
        attrs["activations"] = cell.activations
    if cell.op == "GRU":
        attrs["linear_before_reset"] = int(not cell.reset_first)
    return attrs


# -- preconditions ---------------------------------------------------------------------------------


def _batch(chain: Chain) -> list[Dim]:
    """The dims of a state before the last one without those of 1: at most one."""
    shapes = [dims(cell.h) or () for cell in chain.cells]
    batch = without_units(shapes[0][:-1])
    if len(batch) > 1 or None in batch or any(without_units(s[:-1]) != batch for s in shapes):
        raise Skip("its state is not [batch, hidden]")
    if batch and chain.cells[0].op == "RNN":
        raise Skip("its batch is not known to be 1, and for others an RNN is slower than its steps")
    return batch


def _initial_states(chain: Chain) -> list[Source | None]:
    """States before the first step; None: zero."""
    states = [chain.begins]
    if chain.cells[0].op == "LSTM":
        states.append(Source(chain.begins_cell) if chain.begins_cell is not None else None)
    size = without_units(dims(chain.cells[0].h) or ())
    for state in states:
        if state is not None and without_units(_dims_of(state)) != size:
            raise Skip("its initial state differs in size from the others")
    return states


def _dims_of(read: Source) -> list[Dim]:
    shape = list(dims(read.value) or ())
    if read.axis is not None:
        del shape[read.axis]
    return shape


def _sequences(chain: Chain, batch: list[Dim]) -> tuple[list[list[Source]], bool]:
    """(for each input of the steps, what they read in sequence order; whether they read all sequences
    backwards)."""
    columns = [list(parts) for parts in zip(*chain.inputs, strict=True)]
    for read in (s for parts in columns for s in parts):
        if without_units(_dims_of(read)[:-1]) != batch:
            raise Skip("the inputs of a step have another batch than its state")
    backward = all(_is_consecutive(parts, -1) for parts in columns)
    return [parts[::-1] if backward else parts for parts in columns], backward


def _is_consecutive(parts: Sequence[Source], by: int) -> bool:
    """Whether they are successive positions, ``by`` apart, on one axis of one value."""
    first = parts[0]
    return first.axis is not None and all(
        (s.value, s.axis, s.at) == (first.value, first.axis, first.at + by * i)
        for i, s in enumerate(parts)
    )


def _make_room(graph: Graph, chain: Chain, reads: Sequence[Value]) -> Node | None:
    """The first node that uses a state of the chain; producers of ``reads`` are moved before it.

    Raises:
        Skip: the input of a step depends on the state of an earlier one.
    """
    states = {v for cell in chain.cells for v in (cell.h, cell.c) if v is not None}
    needed = _needed(graph, reads)
    if any(v.producer in needed for v in states):
        raise Skip("the input of a step depends on the state of an earlier one")
    readers = {_ancestor_in(graph, u) for v in states for u in v.users}
    anchor: Node | None = None
    late: list[Node] = []
    for node in graph.nodes:
        if anchor is None and node in readers:
            anchor = node
        elif anchor is not None and node in needed:
            late.append(node)
    for node in late if anchor is not None else ():
        assert anchor is not None
        graph.move_before(node, anchor)
    return anchor


def _needed(graph: Graph, reads: Sequence[Value]) -> set[Node]:
    """Nodes of ``graph`` on which ``reads`` depend."""
    work = [v.producer for v in reads]
    needed: set[Node] = set()
    while work:
        node = work.pop()
        if node is None or node in needed or node.graph is not graph:
            continue
        needed.add(node)
        inner = [n for sub in node.subgraphs for n in sub.walk()]
        outputs = [v for sub in node.subgraphs for g in sub.all_graphs() for v in g.outputs]
        work += [v.producer for n in (node, *inner) for v in n.inputs if v is not None]
        work += [v.producer for v in outputs]
    return needed


def _ancestor_in(graph: Graph, node: Node) -> Node | None:
    """The node of ``graph`` that is ``node`` or contains it."""
    while node.graph is not graph:
        parent = node.graph.parent if node.graph is not None else None
        if parent is None:
            return None
        node = parent
    return node


# -- operands --------------------------------------------------------------------------------------


def _stacked(graph: Graph, parts: list[Source], batch: list[Dim], backward: bool) -> Value:
    """[steps, batch, columns]: the sequence that the parts come from, or else a concatenation of them."""
    first = parts[0]
    shape: list[Dim] = [len(parts), *(batch or [1]), _dims_of(first)[-1]]
    if first.axis is None or any((s.value, s.axis) != (first.value, first.axis) for s in parts):
        rows = {s: _view(graph, _at(graph, s), [1, *shape[1:]]) for s in dict.fromkeys(parts)}
        return graph.emit("Concat", [rows[s] for s in parts], {"axis": 0})
    x = _positions(graph, first.value, first.axis, [s.at for s in parts])
    if first.axis:
        axes = [i for i in range(len(dims(x) or ())) if i != first.axis]
        x = graph.emit("Transpose", [x], {"perm": (first.axis, *axes)})
    return _view(graph, x, shape)


def _positions(graph: Graph, value: Value, axis: int, at: Sequence[int]) -> Value:
    """The positions ``at`` of an axis."""
    start, end = at[0], at[0] + len(at)
    if list(at) != list(range(start, end)):
        index = graph.constant(np.array(at, np.int64), "steps")
        return graph.emit("Gather", [value, index], {"axis": axis})
    if start == 0 and (dims(value) or ())[axis] == end:
        return value
    cut = [graph.constant(np.array([i], np.int64), "cut") for i in (start, end, axis)]
    return graph.emit("Slice", [value, *cut])


def _at(graph: Graph, read: Source) -> Value:
    if read.axis is None:
        return read.value
    index = graph.constant(np.array(read.at, np.int64), "step")
    return graph.emit("Gather", [read.value, index], {"axis": read.axis})


def _view(graph: Graph, value: Value, shape: Sequence[Dim]) -> Value:
    """``value`` viewed as ``shape``, which differs in dims of 1 only."""
    old = list(dims(value) or ())
    if old == list(shape):
        return value
    ones = [i for i, d in enumerate(old) if d == 1]
    if ones:
        value = graph.emit("Squeeze", [value, graph.constant(np.array(ones, np.int64), "axes")])
    new = [i for i, d in enumerate(shape) if d == 1]
    if new:
        value = graph.emit("Unsqueeze", [value, graph.constant(np.array(new, np.int64), "axes")])
    return value


def _joined(graph: Graph, parts: list[Value]) -> Value:
    return parts[0] if len(parts) == 1 else graph.emit("Concat", parts, {"axis": 2})


def _initial(graph: Graph, state: Source | None, batch: list[Dim]) -> Value | None:
    if state is None:
        return None
    value = viewed(_at(graph, state))
    return _view(graph, value, [1, *(batch or [1]), (dims(value) or ())[-1]])


def _weights(chain: Chain) -> tuple[Dense, Dense, Dense]:
    """W [1, gates * hidden, columns], R [1, gates * hidden, hidden], B [1, 2 * gates * hidden]."""
    cell = chain.cells[-1]
    size, gates = cell.hidden, len(cell.bias)
    signs = [-1 if cell.negated and i == 0 else 1 for i in range(gates)]
    reads = [(cell.terms[s], _dims_of(s)[-1]) for s in chain.inputs[-1]]

    def rows(blocks: tuple[Blocks, ...], columns: object) -> np.ndarray:
        assert isinstance(columns, int)
        empty = np.zeros((columns, size), np.float32)
        gates = [total(b) if b is not None else empty for b in blocks]
        return np.concatenate([(m * s).T for m, s in zip(gates, signs, strict=True)])

    w = np.concatenate([rows(blocks, columns) for blocks, columns in reads], 1)
    r = rows(cell.terms[chain.state], size)
    bias = [f.row(size) * s for f, s in zip(cell.bias, signs, strict=True) if f is not None]
    b = np.zeros(2 * gates * size, np.float32)
    b[: gates * size] = np.concatenate(bias)
    if cell.state_bias is not None:
        b[-size:] = cell.state_bias.row(size)
    _refuse_unpacking(chain)
    return Dense(w[None]), Dense(r[None]), Dense(b[None])


def _refuse_unpacking(chain: Chain) -> None:
    for blocks in chain.cells[-1].terms.values():
        for block in (block for gate in blocks for block in gate or ()):
            encoding = block.constant.encoding
            if encoding is not None and not encoding.storage.is_float:
                raise Skip("its weights are quantized, and those of the op would not be")


# -- results ---------------------------------------------------------------------------------------


def _replace(graph: Graph, chain: Chain, node: Node, batch: list[Dim], backward: bool) -> None:
    """Replaces the states of steps by results of the op, and erases the steps, the last one first, so that
    each only has users outside the chain left."""
    cells = chain.cells
    size = cells[0].hidden
    place = {c.h: len(cells) - 1 - i if backward else i for i, c in enumerate(cells)}
    y = _Sequence(graph, node.output, [len(cells), *batch, size])
    for concat in _stacks(graph, place):
        at = [place[viewed(v)] for v in concat.inputs if v is not None]
        stack = y.stacked(concat, at)
        if stack is not None:
            graph.replace(concat.output, stack)
            erase_dead([concat])
    last, c = cells[-1].h, cells[-1].c
    final = y.step(place[last], dims(last) or ()) if last.uses else None
    if final is not None:
        graph.replace(last, final)
    _erase(last)
    if c is not None and c.uses:
        graph.replace(c, _view(graph, node.outputs[2], dims(c) or ()))
        _erase(c)
    others = False
    for cell in reversed(cells[:-1]):
        if cell.h.uses:
            graph.replace(cell.h, y.step(place[cell.h], dims(cell.h) or ()))
            others = True
        _erase(cell.h)
    # Only if no other step is used: then Y itself is not needed. A next layer may read all steps.
    if final is not None and not others:
        graph.replace(final, _view(graph, node.outputs[1], dims(final) or ()))
        _erase(final)


def _erase(value: Value) -> None:
    if value.producer is not None:
        erase_dead([value.producer])


class _Sequence:
    """Y [steps, 1, batch, hidden], squeezed to [steps, batch, hidden] on first use."""

    def __init__(self, graph: Graph, y: Value, shape: list[Dim]) -> None:
        self.graph, self.y, self.shape = graph, y, shape
        self.plain: Value | None = None

    def values(self) -> Value:
        if self.plain is None:
            self.plain = _view(self.graph, self.y, self.shape)
        return self.plain

    def step(self, at: int, shape: Sequence[Dim]) -> Value:
        return _view(self.graph, _at(self.graph, Source(self.values(), 0, at)), shape)

    def stacked(self, concat: Node, at: Sequence[int]) -> Value | None:
        """The result of ``concat`` over the states of the steps ``at``; None if it is not a stack of them."""
        graph, shape = self.graph, list(dims(concat.output) or ())
        axis = concat.attrs["axis"]
        assert isinstance(axis, int)
        axis %= len(shape)
        part = dims(concat.inputs[0]) or ()  # type: ignore[arg-type]
        if axis < len(shape) - 1 and part[axis] != 1:
            return None
        x = _positions(graph, self.values(), 0, at)
        before = without_units(part[:axis])
        if axis == len(shape) - 1:
            if len(self.shape) == 3:
                x = graph.emit("Transpose", [x], {"perm": (1, 0, 2)})
            merged = [0] * (len(self.shape) - 2) + [shape[-1]]
            x = graph.emit("Reshape", [x, graph.constant(np.array(merged, np.int64), "shape")])
        elif before:
            x = graph.emit("Transpose", [x], {"perm": (1, 0, 2)})
        return _view(graph, x, shape)


def _stacks(graph: Graph, place: dict[Value, int]) -> list[Node]:
    """Concats of states of the chain and nothing else."""
    stacks: dict[Node, None] = {}
    work = list(place)
    while work:
        value = work.pop()
        for user in value.users:
            if user.op == "Concat" and all(
                v is not None and viewed(v) in place for v in user.inputs
            ):
                stacks[user] = None
            elif user.outputs and viewed(user.output) in place:
                work.append(user.output)
    return [node for node in stacks if node.graph is graph]
