"""LSTM, GRU and RNN as ONNX defines them, in layout 0.

X [length, batch, in]; W [directions, gates*hidden, in]; R [directions, gates*hidden, hidden];
B [directions, 2*gates*hidden]; lengths [batch]; initial states [directions, batch, hidden];
LSTM's peepholes P [directions, 3*hidden].
Results: Y [length, directions, batch, hidden], the last states [directions, batch, hidden].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tersor.errors import Unsupported
from tersor.ir import Dim, Node, Sym, ValueType
from tersor.ir.dims import product
from tersor.ops import onnx_schema
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import refuse, tensor
from tersor.ops.families._ties import dims, plain
from tersor.ops.opdef import Bias, Cost, Cut, Follow, Member, OpDef, Quantizer, Sample, Tie, Weight

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}  # operands
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def _hidden(node: Node) -> Dim:
    stated, r = node.attrs.get("hidden_size"), dims(node.inputs[2])
    return stated if isinstance(stated, int) else r[2] if len(r) == 3 else None


def _infer(node: Node) -> list[ValueType]:
    x, hidden = tensor(node), _hidden(node)
    if node.attrs.get("layout"):
        return onnx_schema.infer(node)
    if x.dims is not None and len(x.dims) != 3:
        refuse(node, f"{x} is not [length, batch, in]")
    length, batch, _ = x.dims or (None, None, None)
    directions = 2 if node.attrs["direction"] == "bidirectional" else 1
    rows = dims(node.inputs[2])
    if rows and isinstance(rows[1], int) and isinstance(hidden, int):
        gates = GATES[node.op]
        if rows[1] != gates * hidden or rows[0] not in (directions, None):
            refuse(node, f"{tensor(node, 2)} is not {directions} x {gates} gates of {hidden}")
    last = x.with_dims((directions, batch, hidden))
    types: list[ValueType] = [x.with_dims((length, directions, batch, hidden)), last, last]
    return types[: len(node.outputs)]


def _quantized_infer(node: Node) -> list[ValueType]:
    """ONNX Runtime's own form for int8: W [directions, in, 4*hidden], R [directions, hidden, 4*hidden],
    both followed by scales and zero points; all else as in LSTM."""
    x, r = tensor(node), dims(node.inputs[2])
    length, batch, _ = x.dims if x.dims is not None and len(x.dims) == 3 else (None,) * 3
    directions = 2 if node.attrs.get("direction") == "bidirectional" else 1
    hidden = r[1] if len(r) == 3 else node.attrs.get("hidden_size")
    last = x.with_dims((directions, batch, hidden if isinstance(hidden, (int, Sym)) else None))
    assert last.dims is not None
    types: list[ValueType] = [x.with_dims((length, directions, *last.dims[1:])), last, last]
    return types[: len(node.outputs)]


def _quantized_cost(node: Node) -> Cost:
    """LSTM's weights, quantized."""
    x, r = dims(node.inputs[0]), dims(node.inputs[2])
    if len(x) != 3 or len(r) != 3 or x[2] is None or r[1] is None:
        return Cost(None, None)
    units = product([x[0], x[1], r[0], r[2]])
    return Cost(product([units, x[2] + r[1]]), None if units is None else units * 6)


def _cost(node: Node) -> Cost:
    """Every gate multiplies the input and the hidden state; then about six operations per unit and gate."""
    x, w, hidden = dims(node.inputs[0]), dims(node.inputs[1]), _hidden(node)
    if not x or not w or node.attrs.get("layout") or x[2] is None or hidden is None:
        return Cost(None, None)
    units = product([x[0], x[1], w[0], w[1]])
    return Cost(product([units, x[2] + hidden]), None if units is None else units * 6)


def _ties(node: Node) -> list[Tie]:
    """Batch, the operand's features, and hidden units: through every gate, the recurrent weights,
    states and results. A hidden unit is read by all others at the next step, through its column of R:
    cutting one changes them, unless that is zero."""
    x, hidden, gates = dims(node.inputs[0]), _hidden(node), GATES[node.op]
    if not x or node.attrs.get("layout"):
        return []
    states = [i for i in _STATES[node.op] if node.input(i) is not None]
    lasts = range(1, len(node.outputs))
    batch = [plain("in", 0, 1), plain("out", 0, 2), *(plain("in", i, 1) for i in states)]
    batch += [plain("out", i, 1) for i in lasts]
    if node.input(4) is not None:
        batch.append(plain("in", 4, 0))
    units = [Member("in", 1, 1, outer=gates), Member("in", 2, 1, outer=gates)]
    units.append(Member("in", 2, 2, summed=True))
    if node.input(3) is not None:
        units.append(Member("in", 3, 1, outer=2 * gates))
    if node.op == "LSTM" and node.input(7) is not None:
        units.append(Member("in", 7, 1, outer=3))
    units += [plain("in", i, 2) for i in states]
    units += [plain("out", 0, 3), *(plain("out", i, 2) for i in lasts)]
    return [
        Tie(x[1], tuple(batch)),
        Tie(x[2], (plain("in", 0, 2), plain("in", 1, 2)), "sum"),
        Tie(hidden, tuple(units), "shape"),
    ]


def _weights(node: Node) -> list[Weight]:
    """GRU's hidden gate multiplies the state after the reset gate has scaled it, unless
    ``linear_before_reset``: of that gate its rows are only near to what is meant."""
    return [
        Weight(1, (2,), activation=0, bias=Bias(3, 2)),
        Weight(2, (2,), state=0, bias=Bias(3, 2, 1)),
    ]


def _quantizers(node: Node) -> list[Quantizer]:
    """x[length, batch, inputs]"""
    return [Quantizer(0, (2,))]


def _follow(node: Node, cut: Cut) -> Follow:
    gone, stated = cut.get(("in", 2, 2), ()), node.attrs.get("hidden_size")
    return Follow({"hidden_size": stated - len(gone)} if isinstance(stated, int) and gone else {})


# -- torch -----------------------------------------------------------------------------------------

Step = Callable[..., tuple[Any, ...]]
"""step(x W^T + b, states, R, recurrent bias, direction) -> states; the first state is the result."""


def _activation(name: str) -> Callable[[Any], Any]:
    import torch
    import torch.nn.functional as F

    known: dict[str, Callable[[Any], Any]] = {
        "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "softsign": F.softsign,
        "softplus": F.softplus, "leakyrelu": F.leaky_relu, "elu": F.elu,
        "hardsigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    }  # fmt: skip
    if name.lower() not in known:
        raise Unsupported(f"the activation {name} of a recurrent op has no torch evaluation")
    return known[name.lower()]


def _functions(op: str, attrs: dict[str, Any], direction: int) -> list[Callable[[Any], Any]]:
    """Activations of a direction, which bound their operands first where ``clip`` says so: all but
    LSTM's last, for runtimes do not bound the cell state."""
    if attrs.get("activation_alpha") or attrs.get("activation_beta"):
        raise Unsupported("parameters of a recurrent op's activations have no torch evaluation")
    count = len(_DEFAULTS[op])
    names = attrs.get("activations") or _DEFAULTS[op] * 2
    chosen = [_activation(n) for n in names[direction * count : (direction + 1) * count]]
    bound = attrs.get("clip")
    if bound is None:
        return chosen
    bounded = [lambda x, f=f: f(x.clamp(-bound, bound)) for f in chosen]
    return [*bounded[:2], *chosen[2:]]


def _recurrence(op: str, step: Step) -> Callable[..., Any]:
    """torch evaluation of ``op`` from its step in one direction."""

    def call(
        x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, *rest: Any, **attrs: Any
    ) -> Any:
        import torch

        if attrs.get("layout"):
            raise Unsupported(f"{op} in layout 1 has no torch evaluation")
        states = len(_STATES[op])
        initial = [*rest[:states], *[None] * (states - len(rest))]
        more = rest[states:]
        directions = []
        for d in range(w.shape[0]):
            backward = attrs["direction"] == "reverse" or d == 1
            begin = tuple(
                x.new_zeros(x.shape[1], r.shape[2]) if s is None else s[d] for s in initial
            )
            order = _order(x, lengths, backward)
            wb, rb = (0, 0) if b is None else b[d].chunk(2)
            reads = x.gather(0, order[..., None].expand(x.shape)) @ w[d].T + wb
            own = [None if m is None else m[d] for m in more]
            functions = _functions(op, attrs, d)
            y, last = _run(
                lambda g, s, d=d, rb=rb, own=own, f=functions: step(g, s, r[d], rb, f, attrs, *own),
                reads, begin, lengths,
            )  # fmt: skip
            directions.append((y.gather(0, order[..., None].expand(y.shape)), *last))
        y, *lasts = (torch.stack(parts, 0) for parts in zip(*directions, strict=True))
        return y.movedim(0, 1), *lasts

    return call


def _order(x: Any, lengths: Any, backward: bool) -> Any:
    """[length, batch]: the position read at each step. Backwards, each sequence starts at its own end. The
    permutation is its own inverse."""
    import torch

    steps, batch = x.shape[:2]
    at = torch.arange(steps)[:, None].expand(steps, batch)
    if not backward:
        return at
    ends = torch.full((batch,), steps) if lengths is None else lengths.long()
    return torch.where(at < ends, ends - 1 - at, at)


def _run(
    step: Any, reads: Any, states: tuple[Any, ...], lengths: Any
) -> tuple[Any, tuple[Any, ...]]:
    """All steps. After the end of a sequence states stay the same and results are zero."""
    import torch

    rows = []
    for t in range(reads.shape[0]):
        new = step(reads[t], states)
        if lengths is None:
            states = new
            rows.append(new[0])
            continue
        on = (t < lengths)[:, None]
        states = tuple(torch.where(on, n, s) for n, s in zip(new, states, strict=True))
        rows.append(new[0].where(on, new[0].new_zeros(())))
    empty = states[0].new_zeros((0, *states[0].shape))
    return (torch.stack(rows) if rows else empty), states


def _lstm_step(
    g: Any, states: Any, r: Any, rb: Any, f: Any, attrs: Any, peepholes: Any = None
) -> tuple[Any, ...]:
    """Gates are in the order input, output, forget, cell."""
    hidden, cell = states
    i, o, forget, c = (g + hidden @ r.T + rb).chunk(4, -1)
    pi, po, pf = (0, 0, 0) if peepholes is None else peepholes.chunk(3)
    i = f[0](i + pi * cell)
    forget = 1 - i if attrs.get("input_forget") else f[0](forget + pf * cell)
    cell = forget * cell + i * f[1](c)
    return f[0](o + po * cell) * f[2](cell), cell


def _gru_step(g: Any, states: Any, r: Any, rb: Any, f: Any, attrs: Any) -> tuple[Any, ...]:
    """Gates are in the order update, reset, hidden. ``linear_before_reset``: the reset gate scales the state
    after multiplying by the hidden gate's weights and adding its bias, not before."""
    (hidden,) = states
    size = hidden.shape[-1]
    both = (hidden @ r[: 2 * size].T) + (rb[: 2 * size] if hasattr(rb, "shape") else 0)
    bias = rb[2 * size :] if hasattr(rb, "shape") else 0
    update, reset = (f[0](part) for part in (g[..., : 2 * size] + both).chunk(2, -1))
    if attrs["linear_before_reset"]:
        read = reset * (hidden @ r[2 * size :].T + bias)
    else:
        read = (reset * hidden) @ r[2 * size :].T + bias
    return ((1 - update) * f[1](g[..., 2 * size :] + read) + update * hidden,)


def _rnn_step(g: Any, states: Any, r: Any, rb: Any, f: Any, attrs: Any) -> tuple[Any, ...]:
    return (f[0](g + states[0] @ r.T + rb),)


# -- samples and rows ------------------------------------------------------------------------------


def _samples(op: str, *more: dict[str, Any]) -> Callable[[np.random.Generator], list[Sample]]:
    """All directions, with and without bias, lengths and initial states; ``more``: attributes that
    only ``op`` has."""
    gates, states = GATES[op], len(_STATES[op])

    def samples(rng: np.random.Generator) -> list[Sample]:
        f = partial(floats, rng)

        def case(directions: int, full: bool, **attrs: Any) -> Sample:
            weights = [f(directions, gates * 3, 4), f(directions, gates * 3, 3)]
            rest = [f(directions, 2 * gates * 3), np.array([5, 2], np.int32)]
            rest += [f(directions, 2, 3) for _ in range(states)]
            if op == "LSTM" and full:
                rest.append(f(directions, 9))
            attrs = {"hidden_size": 3, **attrs}
            return Sample([f(5, 2, 4), *weights, *(rest if full else [])], attrs,
                          frozenset({1, 2, 3, 7}), outputs=1 + states)  # fmt: skip

        samples = [
            case(1, False),
            case(1, True),
            case(1, True, direction="reverse"),
            case(2, True, direction="bidirectional"),
            case(2, False, direction="bidirectional"),
            *(case(1, True, **attrs) for attrs in more),
        ]
        whole = case(1, True)
        return [*samples, Sample([*whole.inputs[:4], None, *whole.inputs[5:]], whole.attrs,
                               whole.constant, outputs=whole.outputs)]  # fmt: skip

    return samples


def _row(op: str, since: int, step: Step, *more: dict[str, Any]) -> OpDef:
    return OpDef(op, since=since, infer=_infer, torch=_recurrence(op, step), cost=_cost, ties=_ties,
                 follow=_follow, weights=_weights, quantizers=_quantizers,
                 samples=_samples(op, *more))  # fmt: skip


ROWS = [
    _row("LSTM", 14, _lstm_step, {"clip": 0.5}, {"activations": ("Relu", "Tanh", "Sigmoid")}),
    _row("GRU", 14, _gru_step, {"linear_before_reset": 1}, {"clip": 0.5},
         {"activations": ("HardSigmoid", "Relu")}),
    _row("RNN", 14, _rnn_step, {"activations": ("Relu",)}, {"clip": 0.5}),
    OpDef("com.microsoft.DynamicQuantizeLSTM", since=1, infer=_quantized_infer, cost=_quantized_cost),
]  # fmt: skip
