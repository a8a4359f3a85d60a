"""Whole graphs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from strategies import anyop, control, layers
from strategies.builder import SIZES, Builder, Case, Shared
from strategies.foreign import opaque
from tersor.ir import DType, Node, TensorType, UnknownType, Value, symbol
from tersor.ops import TABLE

SHAPES: list[tuple[str | int, ...]] = [
    ("batch", "seq", 4), (2, 3), ("batch", 4), (1, 3, 4), (4,), ("batch", "seq"), ("batch", 2, 2),
]  # fmt: skip
AWKWARD: list[tuple[str | int, ...]] = [
    (), (0, 4), ("batch", 0), ("seq",), (1, 1, 2, 1, "batch", 1, 4), ("batch", "batch"),
]  # fmt: skip
OTHER_SIZES = [{"batch": 1, "seq": 5}, {"batch": 0, "seq": 2}]


@st.composite
def cases(
    draw: Callable[..., object],
    steps: int = 8,
    focus: tuple[Callable[[Builder], None], ...] = (),
) -> Case:
    """Graphs of up to ``steps`` layers and idioms in f64, so that what a pass computes in another
    order differs by 1e-12 and not by what an f32 cancellation makes of it, and a claim that is broken
    shows; of ``focus``'s steps half of all are."""
    graph = TABLE.graph()
    b = Builder(draw, graph)
    _inputs(b, SHAPES, b.integer(1, 3))
    for _ in range(b.integer(1, steps)):
        b.attempt(b.pick(list(focus) if focus and b.integer(0, 1) else layers.STEPS))  # type: ignore[arg-type]
    _outputs(b)
    return Case(graph, [_feed(b, SIZES)])


@st.composite
def table_cases(
    draw: Callable[..., object],
    judge: Callable[[Builder], Callable[[Node], None]] | None = None,
    steps: int = 8,
    foreign: bool = False,
) -> Case:
    """Graphs over the whole op table: any element type, subgraphs, awkward shapes and outputs, inputs at
    two sizes of the open dims or more.

    Args:
        draw: hypothesis's.
        judge: from a builder to what rejects nodes that nothing can be judged by; None: none are.
        steps: the most of them.
        foreign: whether ops that nothing is known of are among them, which no runtime runs.
    """
    graph = TABLE.graph()
    kinds = [DType.F32] * 5 + [DType.F64] * 3 + [DType.F16, DType.BF16]
    shared = Shared(ranks=8)
    b = Builder(draw, graph, shared)
    shared.dtype = b.pick(kinds)  # type: ignore[assignment]
    _inputs(b, SHAPES + AWKWARD if b.integer(0, 2) == 0 else SHAPES, b.integer(1, 2))
    shared.judge = judge(b) if judge else None
    for _ in range(b.integer(1, steps)):
        kind = b.integer(0, 9)
        if foreign and b.integer(0, 1):
            b.attempt(opaque)
            continue
        family = control.STEPS if kind == 0 else layers.STEPS if kind <= 3 else anyop.STEPS
        b.attempt(b.pick(list(family)))  # type: ignore[arg-type]
    _outputs(b)
    sizes = [SIZES, OTHER_SIZES[0], *OTHER_SIZES[1 : 1 + (b.integer(0, 3) == 0)]]
    return Case(graph, [_feed(b, s) for s in sizes])


def _inputs(b: Builder, shapes: list[tuple[str | int, ...]], count: int) -> None:
    for i in range(count):
        dims = tuple(symbol(d) if isinstance(d, str) else d for d in b.pick(shapes))  # type: ignore[attr-defined]
        x = b.graph.add_input(f"x{i}", TensorType(b.dtype, dims))
        b.common.first[x.name] = anyop.numbers(b, b.dtype, x.tensor.at(SIZES))
        b.common.exact.add(x)


def _outputs(b: Builder) -> None:
    """The last value and others at random: inputs and constants among them, one perhaps twice."""
    values = [v for v in b.graph.values() if isinstance(v.type, (TensorType, UnknownType))]
    outputs: list[Value] = [values[-1], *(b.pick(values) for _ in range(b.integer(0, 3)))]  # type: ignore[list-item]
    if b.integer(0, 2) == 0:
        outputs.append(outputs[0])
    b.graph.set_outputs(outputs, [f"y{i}" for i in range(len(outputs))])


def _feed(b: Builder, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    if sizes is SIZES:
        return dict(b.common.first)
    open_ = {v.name: v for v in b.graph.inputs if v.name not in b.common.arrays}
    made = {n: anyop.numbers(b, v.tensor.dtype, v.tensor.at(sizes)) for n, v in open_.items()}
    return {**b.common.arrays, **made}
