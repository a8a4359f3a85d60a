"""Graphs of linear layers and lookups whose constants are as bad as files have them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from strategies import layers
from strategies.builder import SIZES, Builder, Case, Rejected, Shared
from tersor.ir import DType, TensorType, Value, symbol
from tersor.ops import TABLE

KINDS = [
    "normal", "normal", "outliers", "zero", "zero channels", "tiny", "denormal", "huge", "mixed", "nan",
    "infinity", "constant",
]  # fmt: skip


def hostile(b: Builder, *shape: int) -> np.ndarray:
    """Weights [k, n] with what breaks scales: no range, too much of it, or no number."""
    data = b.rng.standard_normal(shape)
    match b.pick(KINDS):
        case "outliers":
            data[..., 0] *= 100
        case "zero":
            data[:] = 0
        case "zero channels":
            data[..., ::2] = 0
        case "tiny":
            data *= 1e-30
        case "denormal":
            data *= 1e-42
        case "huge":
            data *= 1e30
        case "mixed":
            data *= 10.0 ** b.rng.integers(-30, 30, shape[-1])
        case "nan":
            data.reshape(-1)[0] = np.nan
        case "infinity":
            data.reshape(-1)[-1] = -np.inf
        case "constant":
            data[:] = 0.5
    with np.errstate(over="ignore"):
        return data.astype(b.dtype.numpy)


def linear(b: Builder) -> None:
    """One layer, or several that read the same value, with or without a bias and an activation."""
    found = [
        v
        for v in b.values(b.dtype)
        if not v.is_constant
        and v.tensor.rank in (2, 3)
        and isinstance((v.tensor.dims or ())[-1], int)
    ]
    if not found:
        raise Rejected("nothing to multiply")
    x = b.latest(found)
    k = b.shape_of(x)[-1]
    weight: Value | None = None
    for _ in range(b.integer(1, 3)):
        if weight is None or b.integer(0, 2):
            weight = b.graph.constant(hostile(b, k, int(b.pick([1, 2, 8, 16]))), "w")  # type: ignore[call-overload]
        y = b.emit("MatMul", x, weight)
        if b.integer(0, 1):
            y = b.emit("Add", y, b.weight(weight.tensor.shape[1]))
        if b.integer(0, 1):
            b.emit(str(b.pick(["Relu", "Tanh", "Gelu", "Sigmoid"])), y)


def lookup(b: Builder) -> None:
    x = b.float(1)
    ids = b.emit("Cast", b.emit("Greater", x, b.number(0.0)), to=7)
    table = b.graph.constant(hostile(b, 3, int(b.pick([4, 8]))), "table")  # type: ignore[call-overload]
    y = b.emit("Gather", table, ids, axis=0)
    if b.integer(0, 1):
        b.emit("LayerNormalization", y, b.weight(table.tensor.shape[1]), None, epsilon=1e-5)


@st.composite
def lossy_cases(draw: Callable[..., object], steps: int = 6) -> Case:
    """Graphs of up to ``steps`` layers, fed with usual numbers, and with a batch of none now and then."""
    graph = TABLE.graph()
    b = Builder(draw, graph, Shared())
    b.common.dtype = b.pick([DType.F32, DType.F32, DType.F32, DType.F16])  # type: ignore[assignment]
    dims = b.pick([("batch", "seq", 8), ("batch", 8), (2, 8), ("batch", 3, 16)])
    x = graph.add_input(
        "x", TensorType(b.dtype, tuple(symbol(d) if isinstance(d, str) else d for d in dims))
    )  # type: ignore[attr-defined]
    b.attempt(linear)
    own = [linear, linear, lookup]
    for _ in range(b.integer(0, steps)):
        b.attempt(b.pick(own if b.integer(0, 1) else layers.STEPS))  # type: ignore[arg-type]
    values = [v for v in graph.values() if not v.is_constant and not v.is_input]
    outputs = [values[-1], *(b.pick(values) for _ in range(b.integer(0, 2)))]
    graph.set_outputs(outputs, [f"y{i}" for i in range(len(outputs))])  # type: ignore[arg-type]
    sizes = [SIZES, {"batch": 0, "seq": 3}] if b.integer(0, 3) == 0 else [SIZES]
    scale = float(b.pick([1.0, 1.0, 1e-3, 1e3]))  # type: ignore[arg-type]
    feeds = [
        {x.name: (b.rng.standard_normal(x.tensor.at(s)) * scale).astype(b.dtype.numpy)}
        for s in sizes
    ]
    return Case(graph, feeds)
