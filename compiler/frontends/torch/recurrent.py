"""Exports nn.LSTM, nn.GRU and nn.RNN as one custom op each.

torch.export would trace into them and specialize on the example's length. With a custom op, whose fake
implementation only computes shapes, batch and length stay symbolic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tersor.errors import Unsupported

KINDS = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


@torch.library.custom_op("tersor::recurrent", mutates_args=())
def recurrent(
    kind: str,
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: list[Tensor],
    bias: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """All layers of a recurrent module.

    ``x`` is [length, batch, in], or [batch, length, in] with ``batch_first``; ``hidden`` and ``cell`` are
    [layers * directions, batch, size] (only LSTM reads ``cell``); ``weights`` are the module's flat weights.
    Returns the last layer's states, and the final hidden and cell states.
    """
    functions = {
        "LSTM": torch.lstm,
        "GRU": torch.gru,
        "RNN_TANH": torch.rnn_tanh,
        "RNN_RELU": torch.rnn_relu,
    }
    state = (hidden, cell) if kind == "LSTM" else hidden
    y, final, *cells = functions[kind](
        x, state, weights, bias, layers, 0.0, False, bidirectional, batch_first
    )
    return y, final, cells[0] if cells else torch.empty_like(final)


@recurrent.register_fake
def _(
    kind: str,
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: list[Tensor],
    bias: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    size = hidden.shape[-1] * (2 if bidirectional else 1)
    states = x.new_empty((x.shape[0], x.shape[1], size))
    batch = x.shape[0 if batch_first else 1]
    final = (hidden.shape[0], batch, hidden.shape[-1])
    return states, x.new_empty(final), x.new_empty(final)


@contextmanager
def recurrent_as_ops(module: Any) -> Iterator[None]:
    """Temporarily makes the recurrent modules in ``module`` run as :func:`recurrent`.

    Raises:
        Unsupported: one has a projection (``proj_size``).
    """
    changed: list[tuple[Any, Any]] = []
    try:
        for path, inner in module.named_modules():
            if isinstance(inner, torch.nn.RNNBase) and type(inner).forward in _FORWARDS:
                if inner.proj_size:
                    raise Unsupported(
                        f"{path or 'the module'}: an LSTM with proj_size has no equivalent in ONNX"
                    )
                changed.append((inner, inner.__dict__.get("forward")))
                inner.__dict__["forward"] = _forward(inner, path)
        yield
    finally:
        for inner, previous in changed:
            inner.__dict__.pop("forward", None)
            if previous is not None:
                inner.__dict__["forward"] = previous


_FORWARDS = {torch.nn.LSTM.forward, torch.nn.GRU.forward, torch.nn.RNN.forward}


def _forward(module: Any, path: str) -> Callable[..., Any]:
    """An equivalent of ``module.forward`` that calls the custom op."""

    def forward(x: Any, hx: Any = None) -> Any:
        if not isinstance(x, Tensor):
            raise Unsupported(
                f"{path or 'the module'}: packed sequences are not supported: pass the padded tensor"
            )
        batched = x.dim() == 3
        axis = 0 if module.batch_first else 1
        if not batched:
            x = x.unsqueeze(axis)
        states = _states(module, x, hx, x.shape[axis], batched)
        weights = [getattr(module, name) for name in module._flat_weights_names]
        y, hidden, cell = torch.ops.tersor.recurrent(
            module.mode, x, *states, weights, module.bias, module.num_layers,
            module.bidirectional, module.batch_first,
        )  # fmt: skip
        if not batched:
            y, hidden, cell = y.squeeze(axis), hidden.squeeze(1), cell.squeeze(1)
        return y, (hidden, cell) if module.mode == "LSTM" else hidden

    return forward


def _states(module: Any, x: Any, hx: Any, batch: Any, batched: bool) -> tuple[Any, Any]:
    """Initial hidden and cell states, by default zeros."""
    if hx is None:
        count = module.num_layers * (2 if module.bidirectional else 1)
        zeros = torch.zeros(count, batch, module.hidden_size, dtype=x.dtype, device=x.device)
        return zeros, zeros
    states = hx if isinstance(hx, (tuple, list)) else (hx, hx)
    if not batched:
        states = tuple(s.unsqueeze(1) for s in states)
    return states[0], states[1]
