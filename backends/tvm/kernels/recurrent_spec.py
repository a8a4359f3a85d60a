"""The specialization of a kernel of recurrent cells, and the packing of its weights.

    packed[direction][block of 16 hidden units][k][gate][16]          k: the unit of h[t - 1] that is read

so that the reduction over k reads R in order.  Hidden units are padded to whole blocks, with zero weights, so
that the padding's states, which are finite, have no effect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.backends.tvm.kernels.activations import Activation

LANES = 16

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Cell:
    """The specialization of a kernel. Its repr is hashed into the kernel's name.

    Attributes:
        op: ``LSTM``, ``GRU`` or ``RNN``.
        dtype: float32 or float64.
        hidden: the number of hidden units.
        activations: of each direction.
        backward: whether a single direction runs backwards (the second of two always does).
        batch_first: whether the batch precedes the length, and in states the direction.
        lengths: whether each sequence has its own length.
        peepholes: whether LSTM's gates read the cell state.
        input_forget: whether LSTM's forget gate is 1 minus its input gate.
        linear_before_reset: whether GRU resets after the product.
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
        """Hidden units, rounded up to whole blocks."""
        return -(-self.hidden // LANES) * LANES

    @property
    def phases(self) -> tuple[int, ...]:
        """The number of gates of each of a step's products."""
        return (2, 1) if self.op == "GRU" and not self.linear_before_reset else (GATES[self.op],)

    @property
    def states(self) -> int:
        return 2 if self.op == "LSTM" else 1


# -- packing ---------------------------------------------------------------------------------------


def pack_units(cell: Cell, array: np.ndarray) -> np.ndarray:
    """[directions, parts * hidden, ...] with each part's units padded to whole blocks."""
    parts = array.reshape(cell.directions, -1, cell.hidden, *array.shape[2:])
    widths = [(0, 0)] * parts.ndim
    widths[2] = (0, cell.padded - cell.hidden)
    return np.pad(parts, widths).reshape(cell.directions, -1, *array.shape[2:])


def pack_recurrence(cell: Cell, r: np.ndarray) -> list[np.ndarray]:
    """R [directions, gates * hidden, hidden], packed for each phase."""
    gates = np.pad(pack_units(cell, r), [(0, 0), (0, 0), (0, cell.padded - cell.hidden)])
    gates = gates.reshape(cell.directions, -1, cell.padded // LANES, LANES, cell.padded)
    packed, first = [], 0
    for count in cell.phases:
        phase = gates[:, first : first + count].transpose(0, 2, 4, 1, 3)
        packed.append(np.ascontiguousarray(phase).reshape(*phase.shape[:3], count * LANES))
        first += count
    return packed
