"""LSTM, GRU and RNN: one kernel runs all steps, after X W^T + b of all steps as one product.

A task is a tile of the batch in one direction and runs all of its steps, so that tasks need no
synchronization.  Each step computes, per block of 16 hidden units,

    gates[g] = projected[t, g] + h[t - 1] R[g]^T        rows x gates vectors of register accumulators

then the activations and the new states of those units.

A GRU that resets before the product has two phases per step, each with its own weights: the update and reset
gates of all units, then the hidden gate, whose operand is reset * h.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit
from tersor.backends.tvm.kernels.activations import Activation, in_register
from tersor.backends.tvm.kernels.recurrent_spec import GATES, LANES, Cell

ROWS = 4  # Rows of the batch in a tile, which share each loaded vector of R.
_ACCUMULATORS = 8  # At least this many, to hide the latency of multiply-adds.


def kernel(cell: Cell, name: str) -> tirx.PrimFunc:
    """The kernel. Operands, then results (with ``batch_first`` the batch leads):

    projected [length, batch, directions * gates * padded]; R of each phase; the hidden gate's recurrent
    bias [directions, padded] if GRU resets after the product; peepholes [directions, 3 * padded];
    lengths i32[batch]; the initial states [directions, batch, hidden]

    Y [length, directions, batch, hidden]; the last states, as the initial ones
    """
    return emit.function(name, lambda: _body(cell))


@dataclass
class _Operands:
    """The buffers of a kernel."""

    projected: Any
    weights: list[Any]
    bias: Any
    peepholes: Any
    lengths: Any
    initial: list[Any]
    y: Any
    last: list[Any]


def _declare(cell: Cell, length: Any, batch: Any) -> _Operands:
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
    operands = _declare(cell, length, batch)
    tiles = (batch + (ROWS - 1)) // ROWS
    with T.parallel(0, tiles * cell.directions) as task:
        index = emit.bind(task // tiles)
        first = emit.bind((task - index * tiles) * ROWS)
        for direction, functions in _directions(cell, index):
            with T.If(first + ROWS <= batch):
                with T.Then():
                    _Tile(cell, operands, functions, length, direction, first, ROWS).run()
                with T.Else(), T.serial(0, batch - first) as row:
                    _Tile(cell, operands, functions, length, direction, first + row, 1).run()


def _directions(cell: Cell, index: Any) -> Iterator[tuple[Any, tuple[Activation, ...]]]:
    """Yields (direction, activations): once for all directions where their activations agree, else per
    direction."""
    if len(set(cell.activations)) == 1:
        yield index, cell.activations[0]
        return
    for direction, functions in enumerate(cell.activations):
        with T.If(index == direction), T.Then():
            yield T.int64(direction), functions


@dataclass
class _Tile:
    """Emits the code of a task, or of one of its rows."""

    cell: Cell
    operands: _Operands
    functions: tuple[Activation, ...]
    length: Any
    direction: Any
    first: Any  # The first of its rows of the batch.
    rows: int
    hidden: Any = field(init=False)  # [2 * rows, padded]: h of even and of odd steps.
    scratch_rows: list[Any] = field(init=False)  # LSTM's cell; GRU's update and reset * h.
    old_row: Any = field(init=False)  # The row of ``hidden`` where h[t - 1] starts.

    def run(self) -> None:
        """Emits all steps."""
        count = {"LSTM": 1, "GRU": 2, "RNN": 0}[self.cell.op]
        self.hidden = emit.scratch((2 * self.rows, self.cell.padded), self.cell.dtype)
        self.scratch_rows = [
            emit.scratch((self.rows, self.cell.padded), self.cell.dtype) for _ in range(count)
        ]
        for state, memory in enumerate((self.hidden, *self.scratch_rows)[: self.cell.states]):
            self._load_states(self.operands.initial[state], memory)
        with T.serial(0, self.length) as t:
            self.old_row = emit.bind((t & 1) * self.rows)
            self._step(t)
        for state, memory in enumerate((self.hidden, *self.scratch_rows)[: self.cell.states]):
            first = (self.length & 1) * self.rows if state == 0 else 0
            self._store_states(memory, first, self.operands.last[state])

    # -- between steps -----------------------------------------------------------------------------

    def _of_state(self, row: int, unit: Any) -> list[Any]:
        place = [self.direction, self.first + row]
        return [*(place[::-1] if self.cell.batch_first else place), unit]

    def _load_states(self, initial: Any, memory: Any) -> None:
        for row in range(self.rows):
            with T.serial(0, self.cell.hidden) as unit:
                T.buffer_store(memory, initial[tuple(self._of_state(row, unit))], [row, unit])
            with T.serial(self.cell.hidden, self.cell.padded) as unit:
                T.buffer_store(memory, tirx.const(0, self.cell.dtype), [row, unit])

    def _store_states(self, memory: Any, first: Any, last: Any) -> None:
        for row in range(self.rows):
            with T.serial(0, self.cell.hidden) as unit:
                T.buffer_store(last, memory[first + row, unit], self._of_state(row, unit))

    def _sequence_length(self, row: int) -> Any:
        """The length of a row's sequence, clamped: a wrong one must not read out of bounds."""
        if self.operands.lengths is None:
            return self.length
        length = emit.cast(self.operands.lengths[self.first + row], "int64")
        return T.max(T.min(length, self.length), T.int64(0))

    def _position(self, t: Any, row: int) -> Any:
        """The position that a row reads and writes at step ``t``; backwards, counted from its sequence's
        end."""
        length = self._sequence_length(row)
        back = length - 1 - t
        if self.operands.lengths is not None:
            back = T.Select(t < length, back, t)
        if self.cell.directions == 2:
            return T.Select(self.direction == 1, back, t)
        return back if self.cell.backward else t

    # -- one step ----------------------------------------------------------------------------------

    def _step(self, t: Any) -> None:
        at = [emit.bind(self._position(t, row)) for row in range(self.rows)]
        active = [emit.bind(t < self._sequence_length(row)) for row in range(self.rows)]
        emit_step = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.cell.op]
        emit_step(at, active)
        new = self.rows - self.old_row
        for row in range(self.rows):
            with T.serial(0, self.cell.hidden) as unit:
                value = self.hidden[new + row, unit]
                if self.operands.lengths is not None:
                    value = T.Select(active[row], value, tirx.const(0, self.cell.dtype))
                b, d = self.first + row, self.direction
                place = [b, at[row], d] if self.cell.batch_first else [at[row], d, b]
                T.buffer_store(self.operands.y, value, [*place, unit])

    def _number(self, value: float) -> Any:
        """A constant in every lane."""
        return emit.splat(tirx.const(value, self.cell.dtype), LANES)

    def _blocks(self) -> Any:
        return T.serial(0, self.cell.padded // LANES)

    def _input(self, at: Sequence[Any], row: int, gate: int, unit: Any) -> Any:
        """The projected operand of a gate."""
        b, count = self.first + row, GATES[self.cell.op]
        place = (b, at[row]) if self.cell.batch_first else (at[row], b)
        column = (self.direction * count + gate) * self.cell.padded + unit
        return emit.load(self.operands.projected, *place, column, lanes=LANES)

    def _products(
        self, phase: int, block: Any, source: Any, first: Any, starts: list[list[Any]]
    ) -> list[list[Any]]:
        """[gate][row]: ``starts`` plus R times the rows of ``source`` from ``first`` on."""
        weights, count = self.operands.weights[phase], self.cell.phases[phase]
        chains = max(1, _ACCUMULATORS // (self.rows * count))
        zero = self._number(0.0)
        sums = [
            [
                [emit.register(LANES, self.cell.dtype) for _ in range(chains)]
                for _ in range(self.rows)
            ]
            for _ in range(count)
        ]
        for gate in range(count):
            for row in range(self.rows):
                for chain in range(chains):
                    emit.put(sums[gate][row][chain], zero if chain else starts[gate][row])
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
                    broadcast = emit.bind(emit.splat(source[first + row, k], LANES))
                    for gate in range(count):
                        register = sums[gate][row][chain]
                        emit.put(register, emit.get(register) + broadcast * vectors[gate])
        return [
            [emit.bind(sum(emit.get(s) for s in chained[1:]) + emit.get(chained[0]))
             if chains > 1 else emit.get(chained[0]) for chained in gate]
            for gate in sums
        ]  # fmt: skip

    def _write_state(
        self, memory: Any, row: Any, unit: Any, new: Any, old: Any, active: Any
    ) -> None:
        """Writes a state; beyond the end of a sequence it keeps its value."""
        if self.operands.lengths is not None:
            new = T.Select(emit.splat(active, LANES), new, old)
        emit.store(memory, new, row, unit, lanes=LANES)

    def _state(self, row: int, unit: Any) -> Any:
        return emit.bind(emit.load(self.hidden, self.old_row + row, unit, lanes=LANES))

    def _rnn(self, at: Sequence[Any], active: Sequence[Any]) -> None:
        (function,) = self.functions
        with self._blocks() as block:
            unit = emit.bind(block * LANES)
            starts = [[self._input(at, row, 0, unit) for row in range(self.rows)]]
            (sums,) = self._products(0, block, self.hidden, self.old_row, starts)
            for row in range(self.rows):
                new, old = function(sums[row]), self._state(row, unit)
                self._write_state(
                    self.hidden, self.rows - self.old_row + row, unit, new, old, active[row]
                )

    def _lstm(self, at: Sequence[Any], active: Sequence[Any]) -> None:
        """R stacks the gates as input, output, forget, cell."""
        f, g, h = self.functions
        one = self._number(1.0)
        with self._blocks() as block:
            unit = emit.bind(block * LANES)
            starts = [
                [self._input(at, r, gate, unit) for r in range(self.rows)] for gate in range(4)
            ]
            sums = self._products(0, block, self.hidden, self.old_row, starts)
            for row in range(self.rows):
                old_cell = emit.bind(emit.load(self.scratch_rows[0], row, unit, lanes=LANES))
                i = f(sums[0][row] + self._peephole(0, unit, old_cell))
                if self.cell.input_forget:
                    forget = one - i
                else:
                    forget = f(sums[2][row] + self._peephole(2, unit, old_cell))
                cell = in_register(forget * old_cell + i * g(sums[3][row]))
                o = f(sums[1][row] + self._peephole(1, unit, cell))
                new, old = o * h(cell), self._state(row, unit)
                self._write_state(
                    self.hidden, self.rows - self.old_row + row, unit, new, old, active[row]
                )
                self._write_state(self.scratch_rows[0], row, unit, cell, old_cell, active[row])

    def _peephole(self, part: int, unit: Any, cell: Any) -> Any:
        if self.operands.peepholes is None:
            return self._number(0.0)
        column = part * self.cell.padded + unit
        return cell * emit.load(self.operands.peepholes, self.direction, column, lanes=LANES)

    def _gru(self, at: Sequence[Any], active: Sequence[Any]) -> None:
        """R stacks the gates as update, reset, hidden."""
        f, g = self.functions
        rows, update, reset = range(self.rows), self.scratch_rows[0], self.scratch_rows[1]
        with self._blocks() as block:
            unit = emit.bind(block * LANES)
            starts = [[self._input(at, row, gate, unit) for row in rows] for gate in range(2)]
            if self.cell.linear_before_reset:
                bias = emit.load(self.operands.bias, self.direction, unit, lanes=LANES)
                starts.append([bias] * self.rows)
            sums = self._products(0, block, self.hidden, self.old_row, starts)
            for row in rows:
                z, r, state = f(sums[0][row]), f(sums[1][row]), self._state(row, unit)
                if self.cell.linear_before_reset:
                    n = g(self._input(at, row, 2, unit) + r * sums[2][row])
                    self._mix(row, unit, z, n, state, active[row])
                else:
                    emit.store(update, z, row, unit, lanes=LANES)
                    emit.store(reset, r * state, row, unit, lanes=LANES)
        if self.cell.linear_before_reset:
            return
        with self._blocks() as block:
            unit = emit.bind(block * LANES)
            starts = [[self._input(at, row, 2, unit) for row in rows]]
            (sums,) = self._products(1, block, reset, 0, starts)
            for row in rows:
                z = emit.bind(emit.load(update, row, unit, lanes=LANES))
                n, state = g(sums[row]), self._state(row, unit)
                self._mix(row, unit, z, n, state, active[row])

    def _mix(self, row: int, unit: Any, z: Any, n: Any, state: Any, active: Any) -> None:
        """h = (1 - z) n + z h."""
        new = (self._number(1.0) - z) * n + z * state
        self._write_state(self.hidden, self.rows - self.old_row + row, unit, new, state, active)
