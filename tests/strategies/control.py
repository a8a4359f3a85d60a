"""Steps with subgraphs: If, Loop and Scan, nested, reading outer values."""

from __future__ import annotations

import numpy as np

from strategies import anyop, layers
from strategies.builder import Builder, Rejected
from tersor.ir import DType, TensorType, Value

INDEX, FLAG = TensorType(DType.I64, ()), TensorType(DType.BOOL, ())


def _keeping(b: Builder, x: Value) -> Value:
    """Some steps that keep the type of ``x``, outer values among what they read."""
    for _ in range(b.integer(1, 3)):
        kind = b.integer(0, 5)
        if kind == 0:
            x = b.emit("Add", x, b.number(float(b.rng.standard_normal())))
        elif kind == 1:
            x = b.emit("Mul", x, x)
        elif kind == 2:
            x = b.emit("Tanh", b.emit("Add", x, b.emit("ReduceMean", b.float(), None, keepdims=0)))
        elif kind == 3:
            x = b.emit("Identity", b.emit("Neg", b.emit("Neg", x)))
        elif kind == 4:
            rank = x.tensor.rank or 0
            x = b.emit("Add", x, b.emit("Softmax", x, axis=-1) if rank else x)
        else:
            y = b.float()
            same = y.tensor.dims == x.tensor.dims
            x = b.emit("Sub", x, y) if same else b.emit("Relu", x)
    return x


def _wandering(b: Builder) -> None:
    """Other steps, whose results may stay unread."""
    for _ in range(b.integer(0, 2)):
        b.attempt(b.pick([*layers.STEPS, *anyop.STEPS]))  # type: ignore[arg-type]


def _condition(b: Builder) -> Value:
    found = b.values(DType.BOOL, 0)
    if found and b.integer(0, 1):
        return b.latest(found)
    flag = np.array(bool(b.integer(0, 1)))
    return b.given(flag) if b.integer(0, 3) else b.graph.constant(flag, "flag")


def branches(b: Builder, depth: int = 0) -> None:
    """An If; each branch reads outer values and holds constants of its own."""
    x = b.float()
    bodies = []
    for name in ("then", "else"):
        body = b.inner(name)
        _wandering(body)
        if depth < 2 and b.integer(0, 2) == 0:
            body.attempt(lambda inner: branches(inner, depth + 1))
        y = x if b.integer(0, 4) == 0 else _keeping(body, x)
        # What is returned twice, or is no result of the branch, has to be copied under a name.
        body.graph.set_outputs([y, x if b.integer(0, 3) == 0 else y], ["a", "b"])
        bodies.append(body.graph)
    b.node("If", [_condition(b)], {"then_branch": bodies[0], "else_branch": bodies[1]}, 2)


def loop(b: Builder) -> None:
    """A Loop of a few turns that carries a value and gathers another."""
    x = b.float()
    if x.tensor.dims is None:
        raise Rejected("a value without a rank")
    body = b.inner("turn")
    turn = body.graph.add_input("turn", INDEX)
    going = body.graph.add_input("going", FLAG)
    held = body.graph.add_input("held", x.tensor)
    b.common.exact.update((turn, going))
    y = _keeping(body, held)
    step = body.emit("Add", y, body.emit("Cast", turn, to=anyop.TO_ONNX[b.dtype]))
    on = body.emit("Identity", going)
    body.graph.set_outputs([on, step, y], ["on", "next", "row"])
    most = np.array(b.integer(0, 3))
    times = b.given(most) if b.integer(0, 1) else b.graph.constant(most, "most")
    b.node("Loop", [times, None if b.integer(0, 1) else _condition(b), x], {"body": body.graph}, 2)


def scan(b: Builder) -> None:
    """A Scan over the first axis."""
    found = [v for v in b.values(b.dtype) if (v.tensor.rank or 0) >= 2 and not v.is_constant]
    if not found:
        raise Rejected("nothing to scan")
    x = b.latest(found)
    row = x.tensor.with_dims((x.tensor.dims or ())[1:])
    start = b.emit("ReduceSum", x, b.ints(0), keepdims=0)
    body = b.inner("step")
    held, item = body.graph.add_input("held", row), body.graph.add_input("item", row)
    total = body.emit("Add", held, _keeping(body, item))
    body.graph.set_outputs([total, body.emit("Tanh", total)], ["total", "out"])
    b.node("Scan", [start, x], {"body": body.graph, "num_scan_inputs": 1}, 2)


STEPS = [branches, loop, scan]
