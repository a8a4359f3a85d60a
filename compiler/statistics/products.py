"""A layer as a product: rows of an activation, times a matrix, plus a bias.

    y = x W + b        x: f32[n, k], W: f32[k, m], b: f32[m]

    tersor.Linear      rows of the last axis                            W [k, m]
    Conv               patches of the window at the n positions         W [m, channels, kernel…] as
                       of the result: k = kernel… * channels            [kernel… * channels, m]
    LSTM, GRU, RNN     [length, batch, k], rows of the last axis        W [directions, gates * hidden, k],
                                                                        concatenated over directions
                       and the states, which are results: each          R [directions, gates * hidden, k],
                       direction's with a matrix of its own             one at a time

A Conv over one channel, [1, 2, 3], with a kernel of 2 and without padding, has the rows [1, 2] and
[2, 3]; with a stride of 2 only the first.  States are taken at the end of each step, where the next step
reads them (the last state is read by none).  Gates and activations inside the node do not matter here.
All of this is derived from the op table's :class:`tersor.ops.Weight`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from tersor.analysis.layers import Reader, WeightedLayer
from tersor.ir import Dense, Node, Value
from tersor.ops import TABLE, Weight
from tersor.statistics.observing import Rows

LARGEST = 4608  # Inputs of the largest window with moments, 512 channels of 3x3: 170 MB in f64.


def products(node: Node) -> Iterator[Weight]:
    """All weights of a node; a stack of recurrent matrices is yielded one matrix at a time."""
    for weight in TABLE.weights(node):
        value = node.inputs[weight.operand]
        if weight.state is None or value is None or not value.is_constant:
            yield weight
        else:
            yield from (replace(weight, part=i) for i in range(value.tensor.shape[0]))


def linear_weight(node: Node) -> Weight | None:
    """The first weight that can be refitted (see :func:`unfit`); None if there is none."""
    return next((w for w in products(node) if not unfit(node, w)), None)


def rows_of(node: Node, weight: Weight) -> Rows:
    """The rows that a weight multiplies, if :func:`no_rows` has no objection."""
    if weight.state is not None:
        return Rows(node.outputs[weight.state], part=weight.part)
    assert weight.activation is not None
    x = node.inputs[weight.activation]
    assert x is not None
    return Rows(x, weight.window)


def no_rows(node: Node, weight: Weight) -> str:
    """Why the moments of a weight's inputs cannot be taken; empty if they can."""
    value = node.inputs[weight.operand]
    assert value is not None
    if weight.activation is None and weight.state is None:
        return f"{node.op} does not multiply rows of an operand by @{value.name} as one matrix"
    inputs = math.prod(value.tensor.shape[axis] for axis in weight.inputs)
    if weight.window is not None and inputs > LARGEST:
        return (
            f"its window has {inputs:,} inputs, above the limit of {LARGEST:,} for second moments"
        )
    if node.graph is None or node.graph.parent is not None:
        return "it is in a subgraph, which calibration does not observe"
    return ""


def unfit(node: Node, weight: Weight) -> str:
    """Why a weight and its bias cannot be refitted; empty if they can."""
    value = node.inputs[weight.operand]
    if value is None:
        return "it has no weight"
    layer = WeightedLayer(value, [Reader(node, weight, value)])
    if reason := layer.encoded or layer.narrow or layer.tied or no_rows(node, weight):
        return reason
    bias = _bias(node, weight)
    if bias is not None and not bias.is_constant:
        return "its bias is not a constant"
    return "its weight is a stack of matrices" if _is_stacked(node, weight) else ""


def matrices(node: Node, weight: Weight) -> tuple[np.ndarray, np.ndarray | None]:
    """(W f64[k, m], b f64[m] or None)"""
    value, bias = node.inputs[weight.operand], _bias(node, weight)
    assert value is not None
    matrix = weight.matrix(value.numpy()).T.astype(np.float64)
    if bias is None:
        return matrix, None
    return matrix, bias.numpy()[_place(node, weight)].reshape(-1).astype(np.float64)


def set_matrices(node: Node, weight: Weight, matrix: np.ndarray, bias: np.ndarray) -> Value | None:
    """Replaces the weight and bias of a node that is the only reader of its weight.

    Returns:
        The new bias, if the node had none of its own.
    """
    value, graph = node.inputs[weight.operand], node.graph
    assert value is not None and graph is not None
    whole = value.numpy().astype(np.float32)
    whole[weight.parts] = weight.tensor(matrix.T, whole[weight.parts].shape)
    value.graph.set_encoding(value, Dense(whole))
    if weight.bias is None:
        return None
    old = _bias(node, weight)
    if old is None:
        *leading, width = (whole.shape[a] for a in weight.outputs(whole.ndim))
        numbers = np.zeros((*leading, weight.bias.vectors * width), np.float32)
    else:
        numbers = old.numpy().astype(np.float32)
    place = _place(node, weight)
    numbers[place] = bias.reshape(numbers[place].shape)
    if old is not None and old.only_user() is node:
        old.graph.set_encoding(old, Dense(numbers))
        return None
    new = graph.constant(numbers, old.name if old is not None else f"{value.name}.bias")
    graph.set_input(node, weight.bias.operand, new)
    return new


def output_axis(node: Node, weight: Weight) -> tuple[Value, int]:
    """The axis of the weight from which outputs, and their biases, may be cut."""
    value = node.inputs[weight.operand]
    assert value is not None
    return value, weight.outputs(len(value.tensor.shape))[-1]


def columns_at(node: Node, weight: Weight, positions: np.ndarray) -> np.ndarray:
    """i64, the columns of W at ``positions`` on :func:`output_axis`."""
    shape = _outputs(node, weight)
    return np.asarray(np.arange(math.prod(shape)).reshape(shape)[..., positions].reshape(-1))


def along_inputs(node: Node, weight: Weight, axis: int, per_position: np.ndarray) -> np.ndarray:
    """[k], the entry of ``per_position`` [size of the weight's axis] for each row of W."""
    value = node.inputs[weight.operand]
    assert value is not None
    shape = [value.tensor.shape[a] for a in weight.inputs]
    own = [-1 if a == axis else 1 for a in weight.inputs]
    return np.broadcast_to(per_position.reshape(own), shape).reshape(-1)


def _outputs(node: Node, weight: Weight) -> tuple[int, ...]:
    """Sizes of the weight's axes that form the columns of W."""
    value = node.inputs[weight.operand]
    assert value is not None
    shape = value.tensor.shape
    first = len(range(*weight.parts.indices(shape[0])))
    return tuple((first, *shape[1:])[axis] for axis in weight.outputs(len(shape)))


def _bias(node: Node, weight: Weight) -> Value | None:
    return None if weight.bias is None else node.input(weight.bias.operand)


def _place(node: Node, weight: Weight) -> tuple[Any, ...]:
    """The index of a weight's bias in its operand."""
    assert weight.bias is not None
    *leading, width = _outputs(node, weight)
    start = weight.bias.which * width
    lanes = slice(start, start + width)
    return (weight.parts, ..., lanes) if leading else (lanes,)


def _is_stacked(node: Node, weight: Weight) -> bool:
    """Whether the weight is a stack of matrices: the result has another axis of it than that of the
    outputs."""
    value = node.inputs[weight.operand]
    assert value is not None
    stack = {("in", weight.operand, a) for a in weight.outputs(len(value.tensor.shape))[:-1]}
    ties = TABLE.ties(node) or ()
    return any(stack & {(m.side, m.index, m.axis) for m in tie.members} for tie in ties)
