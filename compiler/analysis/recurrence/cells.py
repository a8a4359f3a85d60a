"""One step of a recurrent layer, as an exporter writes it out (gates as :mod:`.forms` has them).

    LSTM   h' = f(o) * k(c'),   c' = f(f) * c + f(i) * g(n)          with no c at a first step that is zero
    GRU    h' = z * h + (1 - z) * n,   z = f(..), n = g(W x + r * (R h + b))  or  g(W x + R (r * h) + b)
    RNN    h' = f(W x + R h)

Operands of sums and products come in any order, gates in any order and side by side or apart, and
``z * h + (1 - z) * n`` also as ``n + z * (h - n)``, or with the roles of z and 1 - z exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tersor.analysis.match import dims, operand, operand_orders, producer_if, uniform
from tersor.analysis.recurrence.forms import (
    MAX_STEPS,
    Block,
    Columns,
    Form,
    Source,
    form,
    narrower,
    source,
    viewed,
)
from tersor.ir import DType, Node, Value

Blocks = tuple[Block, ...] | None
_ACTIVATIONS = {"Sigmoid", "Tanh", "Relu", "Softsign", "Softplus", "HardSigmoid"}


@dataclass(frozen=True, eq=False)
class Cell:
    """One step. Gates are in ONNX's order (LSTM i, o, f, c; GRU z, r, h; RNN one), None where a first
    step lacks one.

    Attributes:
        op: LSTM, GRU or RNN.
        h: the state it makes, [batch, hidden] with dims of 1 anywhere before the last.
        c: an LSTM's cell state.
        h_before, c_before: the states it reads where the formula alone tells them.
        terms: matrices that multiply each source, for each gate.
        bias: of each gate.
        state_bias: of the products with h alone, for a GRU whose reset gate scales what that gives.
        activations: in ONNX's order.
        reset_first: whether a GRU's reset gate scales h before it is multiplied.
        negated: whether the update gate stands for 1 - z: sigmoid(-p).
        readers: nodes of the cell that read ``c`` and ``c_before``.
    """

    op: str
    h: Value
    terms: dict[Source, tuple[Blocks, ...]]
    bias: tuple[Form | None, ...]
    activations: tuple[str, ...]
    c: Value | None = None
    h_before: Value | None = None
    c_before: Value | None = None
    state_bias: Form | None = None
    reset_first: bool = True
    negated: bool = False
    readers: tuple[Node, ...] = ()

    @property
    def hidden(self) -> int:
        return int((dims(self.h) or (0,))[-1])  # type: ignore[arg-type]


def cells_at(node: Node) -> list[Cell]:
    """Ways to interpret ``node`` as a cell's hidden state: more than one if roles are interchangeable, which
    only the neighbouring steps decide."""
    if not node.outputs or not isinstance((dims(node.output) or (None,))[-1], int):
        return []
    if node.output.tensor.dtype is not DType.F32:
        return []
    if node.op == "Mul":
        return list(_lstm(node))
    if node.op in ("Add", "Sub"):
        return list(_gru(node))
    return list(_rnn(node)) if node.op in _ACTIVATIONS else []


@dataclass(frozen=True)
class _Gate:
    """An activation of a form."""

    activation: str
    value: Value
    columns: Columns

    def form(self) -> Form | None:
        return form(self.value, self.columns)


def _gate(value: Value) -> _Gate | None:
    """``value`` as the activation of something, of which it may be a part."""
    size = (dims(value) or (None,))[-1]
    if not isinstance(size, int):
        return None
    at: tuple[Value, Columns] | None = (value, (0, size))
    for _ in range(MAX_STEPS):
        if at is None:
            break
        value, columns = at
        node = value.producer
        if node is not None and node.op in _ACTIVATIONS:
            given = (node.attrs.get("alpha"), node.attrs.get("beta"))
            if node.op == "HardSigmoid" and given != (
                0.2,
                0.5,
            ):  # ONNX's own, as recurrent ops have.
                return None
            return _Gate(node.op, operand(node, 0), columns)
        at = narrower(value, columns)
    return None


def _products(forms: Sequence[Form | None]) -> dict[Source, tuple[Blocks, ...]]:
    products: dict[Source, list[Blocks]] = {}
    for i, one in enumerate(forms):
        for read, blocks in one.terms.items() if one is not None else ():
            products.setdefault(read, [None] * len(forms))[i] = blocks
    return {read: tuple(blocks) for read, blocks in products.items()}


def _linear(forms: Sequence[Form | None]) -> bool:
    """Whether all given forms are sums of products alone."""
    return not any(f is not None and f.others for f in forms)


# -- LSTM ------------------------------------------------------------------------------------------


def _lstm(node: Node) -> Iterator[Cell]:
    for value, activated in operand_orders(node):
        out, bounded = _gate(value), activated.producer
        if out is None or bounded is None or bounded.op not in _ACTIVATIONS:
            continue
        c = viewed(operand(bounded, 0))
        for keep, new in _cell_state(c):
            forget = _gate(keep[0]) if keep is not None else None
            for first, second in operand_orders(new):
                enter, candidate = _gate(first), _gate(second)
                if enter is None or candidate is None or (keep is not None and forget is None):
                    continue
                same = {enter.activation, out.activation}
                if len(same | ({forget.activation} if forget else set())) > 1:
                    continue
                gates = [enter, out, forget, candidate]
                forms = [g.form() if g is not None else None for g in gates]
                if any(g is not None and f is None for g, f in zip(gates, forms, strict=True)):
                    continue
                if not _linear(forms):
                    continue
                yield Cell(
                    "LSTM", node.output, _products(forms), tuple(forms),
                    (enter.activation, candidate.activation, bounded.op),
                    c=c, c_before=viewed(keep[1]) if keep is not None else None,
                    readers=(bounded, *((keep[2],) if keep is not None else ())),
                )  # fmt: skip


def _cell_state(c: Value) -> Iterator[tuple[tuple[Value, Value, Node] | None, Node]]:
    """(forget gate, state before, their product) or None, and the product of what enters."""
    total = c.producer
    if total is not None and total.op == "Mul":
        yield None, total
    if total is None or total.op != "Add":
        return
    for a, b in operand_orders(total):
        kept, new = producer_if(viewed(a), "Mul"), producer_if(viewed(b), "Mul")
        if kept is not None and new is not None:
            for gate, before in operand_orders(kept):
                yield (gate, before, kept), new


# -- GRU -------------------------------------------------------------------------------------------


def _gru(node: Node) -> Iterator[Cell]:
    for share, kept, other in _interpolations(node):
        for before, new, negated in ((kept, other, False), (other, kept, True)):
            update, candidate = _gate(share), _gate(new)
            if update is None or candidate is None or (negated and update.activation != "Sigmoid"):
                continue
            z, n = update.form(), candidate.form()
            if z is not None and n is not None:
                yield from _gru_cells(node, (update, z), (candidate, n), viewed(before), negated)


def _gru_cells(
    node: Node, update: tuple[_Gate, Form], new: tuple[_Gate, Form], before: Value, negated: bool
) -> Iterator[Cell]:
    (gate, z), (candidate, n) = update, new
    found = _reset_after(n) if n.others else _reset_before(n, before)
    if found is None:
        return
    reset, plain, state = found
    r = reset.form()
    if r is None or reset.activation != gate.activation or not _linear([z, r, plain, state]):
        return
    read = source(before)
    if any(s != read for s in state.terms):
        return
    terms = _products([z, r, plain])
    if state.terms:
        z_block, r_block, n_block = terms.get(read, (None,) * 3)
        if (
            n_block is not None
        ):  # The candidate also reads the previous state without the reset gate.
            return
        terms[read] = (z_block, r_block, state.terms[read])
    first = not n.others
    yield Cell(
        "GRU", node.output, terms, (z, r, plain), (gate.activation, candidate.activation),
        h_before=before, state_bias=None if first else state, reset_first=first, negated=negated,
    )  # fmt: skip


def _reset_after(n: Form) -> tuple[_Gate, Form, Form] | None:
    """W x + r * (R h + b): the gate r, the first summand, and what r scales."""
    if len(n.others) > 1:
        return None
    value, columns = n.others[0]
    product = producer_if(viewed(value), "Mul")
    if product is None or columns != (0, (dims(value) or (None,))[-1]):
        return None
    for a, b in operand_orders(product):
        reset = _gate(a)
        state = form(b, columns) if reset is not None else None
        if reset is not None and state is not None and not state.others:
            return reset, Form(n.terms, n.bias), state
    return None


def _reset_before(n: Form, before: Value) -> tuple[_Gate, Form, Form] | None:
    """W x + R (r * h) + b, with the product of r and h taken for h."""
    for read, blocks in n.terms.items():
        product = producer_if(read.value, "Mul") if read.axis is None else None
        if product is None:
            continue
        for a, b in operand_orders(product):
            reset = _gate(a)
            if reset is not None and viewed(b) is before:
                rest = {s: m for s, m in n.terms.items() if s != read}
                return reset, Form(rest, n.bias), Form({source(before): blocks})
    return None


def _interpolations(node: Node) -> Iterator[tuple[Value, Value, Value]]:
    """(z, a, b) of every way to read ``node`` as z * a + (1 - z) * b."""
    if node.op == "Sub":  # b - z * (b - a)
        b, product = operand(node, 0), producer_if(operand(node, 1), "Mul")
        for z, rest in operand_orders(product) if product is not None else ():
            minus = producer_if(rest, "Sub")
            if minus is not None and operand(minus, 0) is b:
                yield z, operand(minus, 1), b
        return
    for left, right in operand_orders(node):
        product, other = producer_if(left, "Mul"), producer_if(right, "Mul")
        for z, a in operand_orders(product) if product is not None else ():
            minus = producer_if(a, "Sub")  # b + z * (a - b)
            if minus is not None and operand(minus, 1) is right:
                yield z, operand(minus, 0), right
            for rest, b in operand_orders(other) if other is not None else ():
                minus = producer_if(rest, "Sub")
                if minus is not None and operand(minus, 1) is z and uniform(operand(minus, 0)) == 1:
                    yield z, a, b


# -- RNN -------------------------------------------------------------------------------------------


def _rnn(node: Node) -> Iterator[Cell]:
    gate = _gate(node.output)
    sums = gate.form() if gate is not None else None
    if gate is not None and sums is not None and sums.terms and not sums.others:
        yield Cell("RNN", node.output, _products([sums]), (sums,), (gate.activation,))
