"""What a node multiplies with its weight: rows of an activation, times a matrix, plus a bias.

    y = x W + b        x: f32[n, k], W: f32[k, m], b: f32[m]

    tersor.Linear      rows of the last axis                            W [k, m]
    Conv               what the window sees at each of the n places     W [m, channels, kernel…] as
                       of the result: k = kernel… * channels            [kernel… * channels, m]
    LSTM, GRU, RNN     [length, batch, k], rows of the last axis        W [directions, gates * hidden, k],
                                                                        all of these side by side
                       and their states, which are results: each        R [directions, gates * hidden, k],
                       direction's with a matrix of its own             one at a time

A Conv over one channel, [1, 2, 3], with a kernel of 2 and without padding, has the rows [1, 2] and
[2, 3]; with a stride of 2 only the first.  States are taken at the end of each step: they are what the
next one reads, but for the last, which none does.  What follows inside the node (gates, an activation)
does not matter here.  All of it is told by the op table's :class:`tersor.ops.Weight`.
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

LARGEST = 4608  # Inputs of a window that moments are taken of, 512 channels of 3x3: 170 MB in f64.


def products(node: Node) -> Iterator[Weight]:
    """All weights, those that are a stack for several states one matrix after the other."""
    for weight in TABLE.weights(node):
        held = node.inputs[weight.operand]
        if weight.state is None or held is None or not held.is_constant:
            yield weight
        else:
            yield from (replace(weight, part=i) for i in range(held.tensor.shape[0]))


def linear_weight(node: Node) -> Weight | None:
    """The first constant weight with which rows can be fitted anew; None where there is none."""
    return next((w for w in products(node) if not unfit(node, w)), None)


def rows_of(node: Node, weight: Weight) -> Rows:
    """What is multiplied, of a weight that has such rows."""
    if weight.state is not None:
        return Rows(node.outputs[weight.state], part=weight.part)
    assert weight.activation is not None
    x = node.inputs[weight.activation]
    assert x is not None
    return Rows(x, weight.window)


def no_rows(node: Node, weight: Weight) -> str:
    """Why moments of the inputs of a weight cannot be had; empty where they can."""
    held = node.inputs[weight.operand]
    assert held is not None
    if weight.activation is None and weight.state is None:
        return f"{node.op} multiplies no rows of an operand with @{held.name} as one matrix"
    inputs = math.prod(held.tensor.shape[axis] for axis in weight.inputs)
    if weight.window is not None and inputs > LARGEST:
        return f"its windows hold {inputs:,} numbers, and moments are taken of at most {LARGEST:,}"
    if node.graph is None or node.graph.parent is not None:
        return "it is in a subgraph, which calibration does not observe"
    return ""


def unfit(node: Node, weight: Weight) -> str:
    """Why a weight, and the bias with it, cannot be fitted anew; empty where they can."""
    held = node.inputs[weight.operand]
    if held is None:
        return "it has no weight"
    layer = WeightedLayer(held, [Reader(node, weight, held)])
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
    """Gives a node, the only reader of its weight, other numbers.

    Returns:
        The bias, where the node had none of its own.
    """
    value, graph = node.inputs[weight.operand], node.graph
    assert value is not None and graph is not None
    whole = value.numpy().astype(np.float32)
    whole[weight.parts] = weight.tensor(matrix.T, whole[weight.parts].shape)
    value.graph.set_encoding(value, Dense(whole))
    if weight.bias is None:
        return None
    held = _bias(node, weight)
    if held is None:
        *leading, width = (whole.shape[a] for a in weight.outputs(whole.ndim))
        numbers = np.zeros((*leading, weight.bias.vectors * width), np.float32)
    else:
        numbers = held.numpy().astype(np.float32)
    place = _place(node, weight)
    numbers[place] = bias.reshape(numbers[place].shape)
    if held is not None and held.only_user() is node:
        held.graph.set_encoding(held, Dense(numbers))
        return None
    made = graph.constant(numbers, held.name if held is not None else f"{value.name}.bias")
    graph.set_input(node, weight.bias.operand, made)
    return made


def output_axis(node: Node, weight: Weight) -> tuple[Value, int]:
    """The axis of the weight that outputs may be cut from, and their biases with them."""
    value = node.inputs[weight.operand]
    assert value is not None
    return value, weight.outputs(len(value.tensor.shape))[-1]


def columns_at(node: Node, weight: Weight, positions: np.ndarray) -> np.ndarray:
    """i64, the columns of W that are at ``positions`` of :func:`output_axis`."""
    shape = _outputs(node, weight)
    return np.asarray(np.arange(math.prod(shape)).reshape(shape)[..., positions].reshape(-1))


def along_inputs(node: Node, weight: Weight, axis: int, held: np.ndarray) -> np.ndarray:
    """[k], what ``held`` [size of the weight's axis] says of each row of W."""
    value = node.inputs[weight.operand]
    assert value is not None
    shape = [value.tensor.shape[a] for a in weight.inputs]
    own = [-1 if a == axis else 1 for a in weight.inputs]
    return np.broadcast_to(held.reshape(own), shape).reshape(-1)


def _outputs(node: Node, weight: Weight) -> tuple[int, ...]:
    """Sizes of the axes of the weight that the columns of W are on."""
    value = node.inputs[weight.operand]
    assert value is not None
    shape = value.tensor.shape
    first = len(range(*weight.parts.indices(shape[0])))
    return tuple((first, *shape[1:])[axis] for axis in weight.outputs(len(shape)))


def _bias(node: Node, weight: Weight) -> Value | None:
    return None if weight.bias is None else node.input(weight.bias.operand)


def _place(node: Node, weight: Weight) -> tuple[Any, ...]:
    """Where the bias of a weight is in its operand."""
    assert weight.bias is not None
    *leading, width = _outputs(node, weight)
    start = weight.bias.which * width
    lanes = slice(start, start + width)
    return (weight.parts, ..., lanes) if leading else (lanes,)


def _is_stacked(node: Node, weight: Weight) -> bool:
    """Whether the result has an axis of the weight beside that of the outputs: a stack of matrices."""
    value = node.inputs[weight.operand]
    assert value is not None
    stack = {("in", weight.operand, a) for a in weight.outputs(len(value.tensor.shape))[:-1]}
    ties = TABLE.ties(node) or ()
    return any(stack & {(m.side, m.index, m.axis) for m in tie.members} for tie in ties)
