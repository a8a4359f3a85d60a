"""nn.LSTM, nn.GRU and nn.RNN (see ``frontends/torch/recurrent.py``): one op per layer, of any length."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.errors import Unsupported
from tersor.frontends.torch.converters.shape import permuted, rank_of
from tersor.frontends.torch.lowering import Lowering
from tersor.frontends.torch.recurrent import GATES
from tersor.frontends.torch.registry import converter
from tersor.ir import Value

# torch stacks gates as input, forget, cell, output; ONNX as input, output, forget, cell.
# torch stacks reset, update, new; ONNX update, reset, hidden.
GATE_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


@converter("tersor.recurrent.default")
def recurrent(
    ctx: Lowering,
    kind: str,
    x: Value,
    hidden: Value,
    cell: Value,
    weights: list[Value],
    bias: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value | None, ...]:
    if not all(w.is_constant for w in weights):
        raise Unsupported("its weights are not constant")
    directions, tensors = 2 if bidirectional else 1, 4 if bias else 2
    x = permuted(ctx, x, [1, 0, 2]) if batch_first else x
    finals: list[tuple[Value, ...]] = []
    for layer in range(layers):
        first = layer * directions
        own = [weights[d * tensors : (d + 1) * tensors] for d in range(first, first + directions)]
        states = [_layer_state(ctx, s, first, directions, layers) for s in (hidden, cell)]
        y, *final = _layer(ctx, kind, x, own, states if kind == "LSTM" else states[:1])
        finals.append(tuple(final))
        # [length, directions, batch, size] -> [length, batch, directions * size]
        order = [2, 0, 1, 3] if batch_first and layer == layers - 1 else [0, 2, 1, 3]
        size = int(own[0][1].tensor.shape[1]) * directions
        x = ctx.emit("Reshape", permuted(ctx, y, order), ctx.ints([0, 0, size]))
    joined = [
        parts[0] if layers == 1 else ctx.emit("Concat", *parts, axis=0)
        for parts in zip(*finals, strict=True)
    ]
    return x, joined[0], joined[1] if kind == "LSTM" else None


def _layer_state(ctx: Lowering, state: Value, first: int, directions: int, layers: int) -> Value:
    """A layer's rows of the stacked initial state [layers * directions, batch, size]."""
    if layers == 1:
        return state
    axis = ctx.ints([0])
    return ctx.emit("Slice", state, ctx.ints([first]), ctx.ints([first + directions]), axis)


def _layer(
    ctx: Lowering, kind: str, x: Value, weights: list[list[Value]], states: list[Value]
) -> tuple[Value, ...]:
    """One layer; ``weights``: (input, recurrent[, two biases]) of each direction."""
    assert rank_of(x) == 3
    size = int(weights[0][1].tensor.shape[1])
    stacked = [np.stack([_gates(kind, d[i]) for d in weights]) for i in range(len(weights[0]))]
    name = weights[0][0].name.rpartition(".")[0] or "recurrent"
    w, r = ctx.graph.constant(stacked[0], f"{name}.W"), ctx.graph.constant(stacked[1], f"{name}.R")
    b = (
        ctx.graph.constant(np.concatenate(stacked[2:], axis=1), f"{name}.B")
        if stacked[2:]
        else None
    )
    attrs: dict[str, Any] = {
        "hidden_size": size,
        "direction": "bidirectional" if len(weights) == 2 else "forward",
    }
    if kind == "GRU":
        attrs["linear_before_reset"] = 1
    if kind == "RNN_RELU":
        attrs["activations"] = ("Relu",) * len(weights)
    op = kind.partition("_")[0]
    return ctx.emit_many(op, 3 if kind == "LSTM" else 2, x, w, r, b, None, *states, **attrs)


def _gates(kind: str, weight: Value) -> np.ndarray:
    """A weight with its gates in ONNX's order."""
    blocks = np.split(weight.numpy(), GATES[kind])
    return np.concatenate([blocks[gate] for gate in GATE_ORDER[kind]])
