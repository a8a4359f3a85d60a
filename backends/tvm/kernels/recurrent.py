"""LSTM, GRU and RNN: all steps in one kernel, after X W^T + b of all steps, which is one product.

A task is a tile of the batch in one direction; it goes through all steps alone, so tasks never wait for
each other.  A step is, for each block of 16 hidden units,

    gates[g] = read[t, g] + h[t - 1] R[g]^T        rows x gates vectors of accumulators, in registers

followed by the activations and the new states of those units.  R is packed as

    packed[direction][block][k][gate][16]          k: the unit of h[t - 1] that is read

so that the loop over k reads it in order.  Hidden units are padded to whole blocks; the padding's
weights are zero, so what it holds, which is finite, changes nothing.

GRU that resets before the product has two phases a step, each with weights of its own: the update and
the reset gate of all units, then the hidden gate, which reads reset * h.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit
from tersor.backends.tvm.kernels.activations import Activation, held

LANES = 16
ROWS = 4  # of the batch, which share each vector of R that is loaded
_ACCUMULATORS = 8  # at least, so that multiply-adds need not wait for each other

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Cell:
    """What a kernel is made for.

    Attributes:
        op: ``LSTM``, ``GRU`` or ``RNN``.
        dtype: float32 or float64.
        hidden: units.
        activations: of each direction.
        backward: whether the only direction reads from the end (the second always does).
        batch_first: operands and results have the batch before the length, or before the direction.
        lengths: whether sequences have lengths of their own.
        peepholes: whether LSTM's gates see the cell.
        input_forget: LSTM forgets what it does not take in.
        linear_before_reset: GRU resets after the product.
    """

    op: str
    dtype: str
    hidden: int
    activations: tuple[tuple[Activation, ...], ...]
    backward: bool = False
    batch_first: bool = False
    lengths: bool = False
    peepholes: bool = False
    input_forget: bool = False
    linear_before_reset: bool = False

    @property
    def directions(self) -> int:
        return len(self.activations)

    @property
    def padded(self) -> int:
        """Hidden units in whole blocks."""
        return -(-self.hidden // LANES) * LANES

    @property
    def phases(self) -> tuple[int, ...]:
        """How many gates each product of a step makes."""
        return (2, 1) if self.op == "GRU" and not self.linear_before_reset else (GATES[self.op],)

    @property
    def states(self) -> int:
        return 2 if self.op == "LSTM" else 1


# -- packing ---------------------------------------------------------------------------------------


def pack_units(cell: Cell, array: np.ndarray) -> np.ndarray:
    """[directions, parts * hidden, ...] with the units of each part padded to whole blocks."""
    parts = array.reshape(cell.directions, -1, cell.hidden, *array.shape[2:])
    widths = [(0, 0)] * parts.ndim
    widths[2] = (0, cell.padded - cell.hidden)
    return np.pad(parts, widths).reshape(cell.directions, -1, *array.shape[2:])


def pack_recurrence(cell: Cell, r: np.ndarray) -> list[np.ndarray]:
    """R [directions, gates * hidden, hidden] as each phase reads it."""
    gates = np.pad(pack_units(cell, r), [(0, 0), (0, 0), (0, cell.padded - cell.hidden)])
    gates = gates.reshape(cell.directions, -1, cell.padded // LANES, LANES, cell.padded)
    packed, first = [], 0
    for count in cell.phases:
        phase = gates[:, first : first + count].transpose(0, 2, 4, 1, 3)
        packed.append(np.ascontiguousarray(phase).reshape(*phase.shape[:3], count * LANES))
        first += count
    return packed


# -- the kernel ------------------------------------------------------------------------------------


def kernel(cell: Cell, name: str) -> tirx.PrimFunc:
    """The kernel. Operands, then results, with sizes ``length`` and ``batch`` (batch first, where the
    cell says so):

        read [length, batch, directions * gates * padded]; R of each phase; the hidden gate's recurrent
        bias [directions, padded] where GRU resets after the product; peepholes [directions, 3 * padded];
        lengths i32[batch]; the initial states [directions, batch, hidden]

        Y [length, directions, batch, hidden], the last states as the initial ones
    """
    return emit.function(name, lambda: _body(cell))


@dataclass
class _Operands:
    """Buffers of a kernel."""

    read: Any
    weights: list[Any]
    bias: Any
    peepholes: Any
    lengths: Any
    initial: list[Any]
    y: Any
    last: list[Any]


def _declared(cell: Cell, length: Any, batch: Any) -> _Operands:
    def floats(name: str, *shape: Any) -> Any:
        return emit.parameter(name, shape, cell.dtype)

    def states(name: str) -> list[Any]:
        order = (batch, cell.directions) if cell.batch_first else (cell.directions, batch)
        return [floats(f"{name}{i}", *order, cell.hidden) for i in range(cell.states)]

    n, blocks = cell.directions, cell.padded // LANES
    steps = (batch, length) if cell.batch_first else (length, batch)
    results = (batch, length, n) if cell.batch_first else (length, n, batch)
    return _Operands(
        floats("read", *steps, n * GATES[cell.op] * cell.padded),
        [floats(f"r{i}", n, blocks, cell.padded, g * LANES) for i, g in enumerate(cell.phases)],
        floats("bias", n, cell.padded) if cell.linear_before_reset else None,
        floats("peepholes", n, 3 * cell.padded) if cell.peepholes else None,
        emit.parameter("lengths", (batch,), "int32") if cell.lengths else None,
        states("initial"),
        floats("y", *results, cell.hidden),
        states("last"),
    )


def _body(cell: Cell) -> None:
    length, batch = emit.size("length"), emit.size("batch")
    operands = _declared(cell, length, batch)
    tiles = (batch + (ROWS - 1)) // ROWS
    with T.parallel(0, tiles * cell.directions) as task:
        own = emit.bind(task // tiles)
        first = emit.bind((task - own * tiles) * ROWS)
        for direction, functions in _directions(cell, own):
            with T.If(first + ROWS <= batch):
                with T.Then():
                    _Tile(cell, operands, functions, length, direction, first, ROWS).run()
                with T.Else(), T.serial(0, batch - first) as row:
                    _Tile(cell, operands, functions, length, direction, first + row, 1).run()


def _directions(cell: Cell, own: Any) -> Iterator[tuple[Any, tuple[Activation, ...]]]:
    """Code for all directions at once, or for each where their activations differ."""
    if len(set(cell.activations)) == 1:
        yield own, cell.activations[0]
        return
    for direction, functions in enumerate(cell.activations):
        with T.If(own == direction), T.Then():
            yield T.int64(direction), functions


@dataclass
class _Tile:
    """A task, or one row of it: what its code is emitted from."""

    cell: Cell
    operands: _Operands
    functions: tuple[Activation, ...]
    length: Any
    direction: Any
    first: Any  # of its rows of the batch
    rows: int
    hidden: Any = field(init=False)  # [2 * rows, padded]: the states of even and of odd steps
    held: list[Any] = field(init=False)  # [rows, padded]: LSTM's cell; GRU's update and reset * h
    old: Any = field(init=False)  # The first row of ``hidden`` that this step reads.

    def run(self) -> None:
        """Emits all steps."""
        held = {"LSTM": 1, "GRU": 2, "RNN": 0}[self.cell.op]
        self.hidden = emit.scratch((2 * self.rows, self.cell.padded), self.cell.dtype)
        self.held = [
            emit.scratch((self.rows, self.cell.padded), self.cell.dtype) for _ in range(held)
        ]
        for state, memory in enumerate((self.hidden, *self.held)[: self.cell.states]):
            self._begin(self.operands.initial[state], memory)
        with T.serial(0, self.length) as t:
            self.old = emit.bind((t & 1) * self.rows)
            self._step(t)
        for state, memory in enumerate((self.hidden, *self.held)[: self.cell.states]):
            first = (self.length & 1) * self.rows if state == 0 else 0
            self._end(memory, first, self.operands.last[state])

    # -- between steps -----------------------------------------------------------------------------

    def _of_state(self, row: int, unit: Any) -> list[Any]:
        place = [self.direction, self.first + row]
        return [*(place[::-1] if self.cell.batch_first else place), unit]

    def _begin(self, initial: Any, memory: Any) -> None:
        for row in range(self.rows):
            with T.serial(0, self.cell.hidden) as unit:
                T.buffer_store(memory, initial[tuple(self._of_state(row, unit))], [row, unit])
            with T.serial(self.cell.hidden, self.cell.padded) as unit:
                T.buffer_store(memory, tirx.const(0, self.cell.dtype), [row, unit])

    def _end(self, memory: Any, first: Any, last: Any) -> None:
        for row in range(self.rows):
            with T.serial(0, self.cell.hidden) as unit:
                T.buffer_store(last, memory[first + row, unit], self._of_state(row, unit))

    def _ends(self, row: int) -> Any:
        """The length of a row's sequence; nothing outside of memory may be read for a wrong one."""
        if self.operands.lengths is None:
            return self.length
        stated = emit.cast(self.operands.lengths[self.first + row], "int64")
        return T.max(T.min(stated, self.length), T.int64(0))

    def _position(self, t: Any, row: int) -> Any:
        """Where a row reads and writes at step ``t``: backwards, a sequence begins at its own end."""
        ends = self._ends(row)
        back = ends - 1 - t
        if self.operands.lengths is not None:
            back = T.Select(t < ends, back, t)
        if self.cell.directions == 2:
            return T.Select(self.direction == 1, back, t)
        return back if self.cell.backward else t

    # -- one step ----------------------------------------------------------------------------------

    def _step(self, t: Any) -> None:
        at = [emit.bind(self._position(t, row)) for row in range(self.rows)]
        on = [emit.bind(t < self._ends(row)) for row in range(self.rows)]
        make = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.cell.op]
        make(at, on)
        new = self.rows - self.old
        for row in range(self.rows):
            with T.serial(0, self.cell.hidden) as unit:
                value = self.hidden[new + row, unit]
                if self.operands.lengths is not None:
                    value = T.Select(on[row], value, tirx.const(0, self.cell.dtype))
                b, d = self.first + row, self.direction
                place = [b, at[row], d] if self.cell.batch_first else [at[row], d, b]
                T.buffer_store(self.operands.y, value, [*place, unit])

    def _number(self, value: float) -> Any:
        """In every lane."""
        return emit.splat(tirx.const(value, self.cell.dtype), LANES)

    def _blocks(self) -> Any:
        return T.serial(0, self.cell.padded // LANES)

    def _read(self, at: Sequence[Any], row: int, gate: int, unit: Any) -> Any:
        """What a gate got from the step's operand."""
        b, count = self.first + row, GATES[self.cell.op]
        place = (b, at[row]) if self.cell.batch_first else (at[row], b)
        column = (self.direction * count + gate) * self.cell.padded + unit
        return emit.load(self.operands.read, *place, column, lanes=LANES)

    def _products(
        self, phase: int, block: Any, source: Any, first: Any, starts: list[list[Any]]
    ) -> list[list[Any]]:
        """[gate][row]: ``starts`` plus the rows of ``source`` from ``first`` on times R."""
        weights, count = self.operands.weights[phase], self.cell.phases[phase]
        chains = max(1, _ACCUMULATORS // (self.rows * count))
        zero = self._number(0.0)
        sums = [
            [
                [emit.registers(LANES, self.cell.dtype) for _ in range(chains)]
                for _ in range(self.rows)
            ]
            for _ in range(count)
        ]
        for gate in range(count):
            for row in range(self.rows):
                for chain in range(chains):
                    emit.put(sums[gate][row][chain], zero if chain else starts[gate][row], LANES)
        with T.serial(0, self.cell.padded // chains) as group:
            for chain in range(chains):
                k = group * chains + chain
                vectors = [
                    emit.bind(
                        emit.load(weights, self.direction, block, k, gate * LANES, lanes=LANES)
                    )
                    for gate in range(count)
                ]
                for row in range(self.rows):
                    spread = emit.bind(emit.splat(source[first + row, k], LANES))
                    for gate in range(count):
                        register = sums[gate][row][chain]
                        emit.put(
                            register, emit.get(register, LANES) + spread * vectors[gate], LANES
                        )
        return [
            [emit.bind(sum(emit.get(s, LANES) for s in chained[1:]) + emit.get(chained[0], LANES))
             if chains > 1 else emit.get(chained[0], LANES) for chained in gate]
            for gate in sums
        ]  # fmt: skip

    def _keep(self, memory: Any, row: Any, unit: Any, new: Any, old: Any, on: Any) -> None:
        """Writes a state; behind the end of a sequence it stays as it was."""
        if self.operands.lengths is not None:
            new = T.Select(emit.splat(on, LANES), new, old)
        emit.store(memory, new, row, unit, lanes=LANES)

    def _state(self, row: int, unit: Any) -> Any:
        return emit.bind(emit.load(self.hidden, self.old + row, unit, lanes=LANES))

    def _rnn(self, at: Sequence[Any], on: Sequence[Any]) -> None:
        (function,) = self.functions
        with self._blocks() as block:
            unit = emit.bind(block * LANES)
            starts = [[self._read(at, row, 0, unit) for row in range(self.rows)]]
            (sums,) = self._products(0, block, self.hidden, self.old, starts)
            for row in range(self.rows):
                new, old = function(sums[row]), self._state(row, unit)
                self._keep(self.hidden, self.rows - self.old + row, unit, new, old, on[row])

    def _lstm(self, at: Sequence[Any], on: Sequence[Any]) -> None:
        """Gates are stacked as input, output, forget, cell."""
        f, g, h = self.functions
        one = self._number(1.0)
        with self._blocks() as block:
            unit = emit.bind(block * LANES)
            starts = [
                [self._read(at, r, gate, unit) for r in range(self.rows)] for gate in range(4)
            ]
            sums = self._products(0, block, self.hidden, self.old, starts)
            for row in range(self.rows):
                before = emit.bind(emit.load(self.held[0], row, unit, lanes=LANES))
                i = f(sums[0][row] + self._peephole(0, unit, before))
                if self.cell.input_forget:
                    forget = one - i
                else:
                    forget = f(sums[2][row] + self._peephole(2, unit, before))
                cell = held(forget * before + i * g(sums[3][row]))
                o = f(sums[1][row] + self._peephole(1, unit, cell))
                new, old = o * h(cell), self._state(row, unit)
                self._keep(self.hidden, self.rows - self.old + row, unit, new, old, on[row])
                self._keep(self.held[0], row, unit, cell, before, on[row])

    def _peephole(self, part: int, unit: Any, cell: Any) -> Any:
        if self.operands.peepholes is None:
            return self._number(0.0)
        column = part * self.cell.padded + unit
        return cell * emit.load(self.operands.peepholes, self.direction, column, lanes=LANES)

    def _gru(self, at: Sequence[Any], on: Sequence[Any]) -> None:
        """Gates are stacked as update, reset, hidden."""
        f, g = self.functions
        rows, update, reset = range(self.rows), self.held[0], self.held[1]
        with self._blocks() as block:
            unit = emit.bind(block * LANES)
            starts = [[self._read(at, row, gate, unit) for row in rows] for gate in range(2)]
            if self.cell.linear_before_reset:
                bias = emit.load(self.operands.bias, self.direction, unit, lanes=LANES)
                starts.append([bias] * self.rows)
            sums = self._products(0, block, self.hidden, self.old, starts)
            for row in rows:
                z, r, state = f(sums[0][row]), f(sums[1][row]), self._state(row, unit)
                if self.cell.linear_before_reset:
                    n = g(self._read(at, row, 2, unit) + r * sums[2][row])
                    self._mix(row, unit, z, n, state, on[row])
                else:
                    emit.store(update, z, row, unit, lanes=LANES)
                    emit.store(reset, r * state, row, unit, lanes=LANES)
        if self.cell.linear_before_reset:
            return
        with self._blocks() as block:
            unit = emit.bind(block * LANES)
            starts = [[self._read(at, row, 2, unit) for row in rows]]
            (sums,) = self._products(1, block, reset, 0, starts)
            for row in rows:
                z = emit.bind(emit.load(update, row, unit, lanes=LANES))
                n, state = g(sums[row]), self._state(row, unit)
                self._mix(row, unit, z, n, state, on[row])

    def _mix(self, row: int, unit: Any, z: Any, n: Any, state: Any, on: Any) -> None:
        """h = (1 - z) n + z h."""
        new = (self._number(1.0) - z) * n + z * state
        self._keep(self.hidden, self.rows - self.old + row, unit, new, state, on)
