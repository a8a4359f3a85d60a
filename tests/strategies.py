"""Hypothesis strategies: random graphs over the op table, with inputs that fit.

Graphs grow one step at a time; a step is an op, or a few that exporters write for one layer, on values
that are there.  All floats are f64, so that what a pass computes in another order differs by 1e-12 and
not by what an f32 cancellation makes of it, and a claim that is broken shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from tersor.ir import DType, Graph, TensorType, Value, symbol
from tersor.ops import TABLE

SIZES = {"batch": 2, "seq": 3}
F64, I64, BOOL = 11, 7, 9  # ONNX's numbers, for Cast


@dataclass(frozen=True)
class Case:
    """A graph, and inputs for it."""

    graph: Graph
    feed: dict[str, np.ndarray]

    def __repr__(self) -> str:
        from tersor.ir import print_graph

        return print_graph(self.graph)


class Builder:
    """Draws operands and emits steps."""

    def __init__(self, draw: Callable[..., object], graph: Graph) -> None:
        self.draw = draw
        self.graph = graph
        self.rng = np.random.default_rng(self.integer(0, 2**16))
        self.shared: dict[tuple[int, ...], Value] = {}

    # drawing

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))  # type: ignore[call-overload]

    def pick(self, items: list) -> object:  # type: ignore[type-arg]
        return items[self.integer(0, len(items) - 1)]

    def values(self, dtype: DType, rank: int | None = None) -> list[Value]:
        """What may be read: known dims, at most of four axes, so that graphs stay small."""
        return [
            v
            for v in self.graph.values()
            if isinstance(v.type, TensorType)
            and v.type.dtype is dtype
            and v.type.dims is not None
            and None not in v.type.dims
            and len(v.type.dims) <= 4
            and (rank is None or len(v.type.dims) == rank)
            and np.prod(v.type.at(SIZES)) <= 512
        ]

    def float(self, least: int = 0) -> Value:
        """A float result or input of at least ``least`` axes, the latest ones more often."""
        found = [
            v for v in self.values(DType.F64) if not v.is_constant and len(v.tensor.dims) >= least
        ]  # type: ignore[arg-type]
        if not found:
            found = [self.graph.inputs[0]]
        back = min(self.integer(0, len(found) - 1), self.integer(0, len(found) - 1))
        return found[-1 - back]

    def bool_like(self, x: Value) -> Value:
        found = [v for v in self.values(DType.BOOL) if v.type.dims == x.type.dims]  # type: ignore[union-attr]
        return (
            self.pick(found)
            if found and self.integer(0, 1)
            else self.emit("Greater", x, self.number(0.1))
        )  # type: ignore[return-value]

    # constants

    def weight(self, *shape: int) -> Value:
        """A constant of normal numbers; now and then one that another step holds already."""
        if shape in self.shared and self.integer(0, 1):
            return self.shared[shape]
        data = self.rng.standard_normal(shape)
        if self.shared and self.integer(0, 5) == 0:
            data = np.ones(shape)
        self.shared[shape] = self.graph.constant(data, "w")
        return self.shared[shape]

    def number(self, value: float, axes: int = 0) -> Value:
        return self.graph.constant(np.full((1,) * axes, value), "c")

    def ints(self, *items: int) -> Value:
        return self.graph.constant(np.array(items, np.int64), "i")

    # emitting

    def emit(self, op: str, *operands: Value | None, **attrs: object) -> Value:
        return self.graph.emit(op, list(operands), attrs)  # type: ignore[arg-type]

    def shape_of(self, x: Value) -> tuple[int, ...]:
        return x.tensor.at(SIZES)


def _last(b: Builder) -> tuple[Value, int] | None:
    """A value with a last axis of known size, and that size."""
    x = b.float(2)
    size = x.tensor.dims[-1] if x.tensor.dims else None
    return (x, size) if isinstance(size, int) and x.tensor.rank in (2, 3, 4) else None


def unary(b: Builder) -> None:
    op = b.pick(["Relu", "Tanh", "Sigmoid", "Erf", "Neg", "Identity", "Abs", "Sin", "Dropout"])
    y = b.emit(str(op), b.float())
    if op == "Neg" and b.integer(0, 1):
        b.emit("Neg", y)


def neutral(b: Builder) -> None:
    x = b.float()
    op, value = b.pick([("Add", 0.0), ("Sub", 0.0), ("Mul", 1.0), ("Div", 1.0), ("Pow", 1.0)])  # type: ignore[misc]
    c = b.number(value, b.integer(0, min(4, (x.tensor.rank or 0) + 1)))
    if op in ("Add", "Mul") and b.integer(0, 1):
        b.emit(op, c, x)
    else:
        b.emit(op, x, c)


def binary(b: Builder) -> None:
    x = b.float()
    have = b.shape_of(x)
    fits = [
        v
        for v in b.values(DType.F64)
        if all(
            s in (1, h) and (s == 1 or d == e)
            for s, h, d, e in zip(
                b.shape_of(v)[::-1],
                have[::-1],
                v.tensor.dims[::-1],
                x.tensor.dims[::-1],
                strict=False,
            )  # type: ignore[index]
        )
        and len(v.tensor.dims) <= len(have)  # type: ignore[arg-type]
    ]
    y = b.pick(fits or [x])
    a, c = (x, y) if b.integer(0, 1) else (y, x)
    b.emit(str(b.pick(["Add", "Sub", "Mul", "Max", "Min"])), a, c)  # type: ignore[arg-type]


def scaled(b: Builder) -> None:
    x = b.float()
    b.emit(
        str(b.pick(["Mul", "Div", "Add"])),
        x,
        b.number(float(b.pick([0.5, 2.0, -3.0])), b.integer(0, x.tensor.rank or 0)),
    )  # type: ignore[arg-type]


def casts(b: Builder) -> None:
    x = b.float()
    for to in b.pick([[F64], [BOOL, I64, F64], [BOOL, F64], [I64, F64], [BOOL, I64, BOOL, F64]]):  # type: ignore[attr-defined]
        x = b.emit("Cast", x, to=to)


def transposed(b: Builder) -> None:
    x = b.float()
    for _ in range(b.integer(1, 2)):
        x = b.emit("Transpose", x, perm=tuple(b.draw(st.permutations(range(x.tensor.rank or 0)))))  # type: ignore[arg-type]


def reshaped(b: Builder) -> None:
    """Targets as constants, with 0 and -1, and as arithmetic on shapes."""
    x = b.float(1)
    dims = list(x.tensor.dims or ())
    merged = [0] * (len(dims) - 2) + [-1] if len(dims) > 1 else [-1]
    kind = b.integer(0, 3)
    if kind == 0:
        b.emit("Reshape", x, b.ints(*merged))
    elif kind == 1 and len(dims) <= 3:
        y = b.emit("Unsqueeze", x, b.ints(b.integer(0, len(dims))))
        b.emit("Squeeze", y, b.ints(list(y.tensor.dims or ()).index(1)))
    elif kind == 2:
        parts = [
            b.emit("Unsqueeze", b.emit("Gather", b.emit("Shape", x), b.graph.constant(np.array(i)), axis=0), b.ints(0))
            for i in range(len(dims))
        ]  # fmt: skip
        back = b.emit("Reshape", b.emit("Reshape", x, b.ints(-1)), b.emit("Concat", *parts, axis=0))
        b.emit("Identity", back)
    else:
        b.emit("Flatten", x, axis=b.integer(0, len(dims)))


def moved(b: Builder) -> None:
    x = b.float(1)
    rank, axis = x.tensor.rank or 0, b.integer(0, (x.tensor.rank or 1) - 1)
    size = (x.tensor.dims or ())[axis]
    kind = b.integer(0, 5)
    if kind == 0:
        end = int(b.pick([2**31, 1, -1])) if isinstance(size, int) and size > 1 else 2**31  # type: ignore[call-overload]
        b.emit("Slice", x, b.ints(0), b.ints(end), b.ints(axis), b.ints(1))
    elif kind == 1:
        b.emit("Slice", x, b.ints(-1), b.ints(-(2**31)), b.ints(axis), b.ints(-1))
    elif kind == 2:
        b.emit("Pad", x, b.ints(*([0] * rank + [b.integer(0, 1)] + [0] * (rank - 1))))
    elif kind == 3:
        b.emit("Concat", *[x] * b.integer(1, 2), axis=axis)
    elif kind == 4 and isinstance(size, int):
        cut = b.integer(0, size)
        names = [""] if cut in (0, size) else ["", ""]
        sizes = b.ints(size) if len(names) == 1 else b.ints(cut, size - cut)
        b.graph.emit_node("Split", [x, sizes], {"axis": axis}, names=names)
    else:
        b.emit("Expand", x, b.ints(*[1] * b.integer(0, rank)))


def logic(b: Builder) -> None:
    x = b.float()
    mask = b.bool_like(x)
    if b.integer(0, 1):
        mask = b.emit("Not", b.emit("Not", mask))
    if b.integer(0, 1):
        mask = b.emit("And", mask, b.graph.constant(np.ones((1,) * b.integer(0, 2), bool)))
    if b.integer(0, 3) == 0:
        mask = b.graph.constant(
            np.full((1,) * b.integer(0, x.tensor.rank or 0), bool(b.integer(0, 1)))
        )
    b.emit("Where", mask, x, b.number(-2.5) if b.integer(0, 1) else b.emit("Tanh", x))


def folded(b: Builder) -> None:
    """Arithmetic on constants, then with a result."""
    x = b.float()
    c = b.emit("Exp", b.number(0.25, b.integer(0, x.tensor.rank or 0)))
    ids = b.emit("Add", b.ints(2, 0), b.ints(0, 1))
    row = b.emit("ReduceSum", b.emit("Gather", b.weight(4, 3), ids, axis=0), None, keepdims=0)
    b.emit("Mul", b.emit("Mul", x, c), row)


def linear(b: Builder) -> None:
    found = _last(b)
    if found is None:
        return
    x, k = found
    n = b.integer(1, 4)
    if x.tensor.rank == 2 and b.integer(0, 1):
        trans = b.integer(0, 1)
        w = b.weight(n, k) if trans else b.weight(k, n)
        c = b.pick([None, b.weight(n), b.weight(1, n), b.weight(1)])
        y = b.emit("Gemm", x, w, c, transB=trans, alpha=0.5, beta=2.0)  # type: ignore[arg-type]
        if b.integer(0, 1):
            p = [b.weight(n) for _ in range(3)]
            y = b.emit(
                "BatchNormalization",
                y,
                *p,
                b.graph.constant(np.abs(b.rng.standard_normal(n)) + 0.5),
            )
    else:
        y = b.emit("MatMul", x, b.weight(k, n))
        bias = b.weight(*([1] * b.integer(0, 2)), n)
        y = b.emit("Add", *((y, bias) if b.integer(0, 1) else (bias, y)))
    if b.integer(0, 1):
        b.emit(str(b.pick(["Relu", "Tanh", "Sigmoid", "Gelu"])), y)


def layer_norm(b: Builder) -> None:
    found = _last(b)
    if found is None or found[1] < 2:
        return
    x, n = found
    if b.integer(0, 1):
        x = b.emit("Add", x, b.emit("Tanh", x))
    epsilon = b.number(0.5)  # Large, so that rows without variance do not amplify rounding.
    if b.integer(0, 2) == 0:
        b.emit("LayerNormalization", x, b.weight(n), b.weight(n), epsilon=0.5)
        return
    rms = b.integer(0, 1)
    d = x if rms else b.emit("Sub", x, b.emit("ReduceMean", x, b.ints(-1)))
    kind = b.integer(0, 3)  # Two squares, and two that only look like one.
    if kind < 2:
        square = b.emit("Pow", d, b.number(2.0)) if kind else b.emit("Mul", d, d)
    else:
        square = b.emit("Pow", d, b.number(4.0)) if kind == 2 else b.emit("Abs", d)
    root = b.emit("Sqrt", b.emit("Add", b.emit("ReduceMean", square, b.ints(-1)), epsilon))
    y = b.emit("Div", d, root) if b.integer(0, 1) else b.emit("Mul", d, b.emit("Reciprocal", root))
    y = b.emit("Mul", y, b.weight(*([1] * b.integer(0, 1)), n))
    if not rms:
        b.emit("Add", y, b.weight(n))


def gelu(b: Builder) -> None:
    x = b.float()
    axes = int(b.pick([0, 1, 4]))  # type: ignore[call-overload]
    kind = b.integer(0, 2)
    if kind == 2:
        b.emit("Mul", x, b.emit("Sigmoid", x))
        return
    if kind == 0:
        inner = b.emit("Erf", b.emit("Div", x, b.number(2**0.5)))
    else:
        cube = b.emit("Mul", b.emit("Pow", x, b.number(3.0)), b.number(0.044715))
        inner = b.emit("Tanh", b.emit("Mul", b.emit("Add", x, cube), b.number((2 / np.pi) ** 0.5)))
    one = b.emit("Add", inner, b.number(1.0))
    half = b.number(0.5, axes)
    if b.integer(0, 1):
        b.emit("Mul", b.emit("Mul", x, half), one)
    else:
        b.emit("Mul", half, b.emit("Mul", one, x))


def attention(b: Builder) -> None:
    """Scores of the values' own heads, scaled and masked one way or another."""
    found = [v for v in b.values(DType.F64, 3) if not v.is_constant and v.tensor.dims[-1] == 4]  # type: ignore[index]
    if not found:
        return
    x = found[-1]

    def heads() -> Value:
        y = b.emit("MatMul", x, b.weight(4, 4)) if b.integer(0, 2) else x
        return b.emit("Transpose", b.emit("Reshape", y, b.ints(0, 0, 2, 2)), perm=(0, 2, 1, 3))

    q, k, v = heads(), heads(), heads()
    if b.integer(0, 1):
        q = b.emit("Mul", q, b.number(0.5))
    scores = b.emit("MatMul", q, b.emit("Transpose", k, perm=(0, 1, 3, 2)))
    if b.integer(0, 1):
        scores = b.emit("Div", scores, b.number(2**0.5))
    size = b.shape_of(scores)[-1]
    kind = b.integer(0, 3)
    static = isinstance(scores.tensor.dims[-1], int)  # type: ignore[index]
    if kind == 1 and static:
        scores = b.emit("Add", scores, b.weight(size))
    elif kind == 2:
        keep = b.emit("LessOrEqual", scores, b.number(1.5))
        scores = b.emit("Add", scores, b.emit("Where", keep, b.number(0.0), b.number(-1e9)))
    elif kind == 3:
        scores = b.emit("Add", scores, b.emit("ReduceMean", scores, b.ints(-1)))
    y = b.emit("MatMul", b.emit("Softmax", scores), v)
    b.emit("Reshape", b.emit("Transpose", y, perm=(0, 2, 1, 3)), b.ints(0, 0, 4))


def reduced(b: Builder) -> None:
    x = b.float(1)
    op = str(b.pick(["ReduceMean", "ReduceSum", "ReduceMax", "Softmax"]))
    if op == "Softmax":
        b.emit(op, x, axis=-1)
    else:
        b.emit(op, x, b.ints(b.integer(0, (x.tensor.rank or 1) - 1)), keepdims=b.integer(0, 1))


def masked_mean(b: Builder) -> None:
    """The exporter's mask arithmetic: a mask that counts and compares, expanded."""
    x = b.float(2)
    shape = b.emit("Shape", x)
    zero, one = b.graph.constant(np.array(0)), b.graph.constant(np.array(1))
    n = b.emit("Gather", shape, b.graph.constant(np.array(-1)), axis=0)
    counted = b.emit("GreaterOrEqual", b.emit("Range", zero, n, one), zero)
    wide = b.emit("Expand", counted, shape)
    b.emit("Where", b.emit("And", wide, b.bool_like(x)), x, b.number(0.0))


def embedding(b: Builder) -> None:
    """Lookups of a computed index, their sum and its normalization."""
    x = b.float(1)
    ids = b.emit("Cast", b.emit("Greater", x, b.number(0.0)), to=I64)
    total = b.emit(
        "Add",
        b.emit("Gather", b.weight(3, 4), ids, axis=0),
        b.emit("Gather", b.weight(2, 4), ids, axis=0),
    )
    if b.integer(0, 1):
        total = b.emit("Add", total, b.weight(*[1] * b.integer(0, 2), 4))
    b.emit("LayerNormalization", total, b.weight(4), b.weight(4), epsilon=0.5)


STEPS = [
    unary, neutral, binary, scaled, casts, transposed, reshaped, moved, logic, folded, linear, layer_norm,
    gelu, attention, reduced, masked_mean, embedding,
]  # fmt: skip


def _branches(b: Builder) -> None:
    """An If whose branches read outer values and hold a constant of their own."""
    x = b.float()
    condition = b.graph.add_input("flag", TensorType(DType.BOOL, ()))
    bodies = []
    for name in ("then", "else"):
        body = b.graph.table.graph(name, b.graph)  # type: ignore[union-attr]
        y = body.emit("Add", [x, body.constant(b.rng.standard_normal(()), "inner")])
        y = body.emit(str(b.pick(["Relu", "Neg", "Identity"])), [y])
        body.set_outputs([y], [f"{name}_out"])
        bodies.append(body)
    attrs = {"then_branch": bodies[0], "else_branch": bodies[1]}
    b.emit("If", condition, **attrs)


@st.composite
def cases(
    draw: Callable[..., object],
    steps: int = 8,
    branches: bool = False,
    focus: tuple[Callable[[Builder], None], ...] = (),
) -> Case:
    """Graphs of up to ``steps`` steps, with static and symbolic dims; ``branches`` adds an If, which the
    reference evaluation does not run; of ``focus``'s steps half of all are. Outputs are the last value and others at random: inputs and
    constants among them, one of them perhaps twice."""
    graph = TABLE.graph()
    b = Builder(draw, graph)
    shapes = [
        ("batch", "seq", 4),
        (2, 3),
        ("batch", 4),
        (1, 3, 4),
        (4,),
        ("batch", "seq"),
        ("batch", 2, 2),
    ]
    for i in range(b.integer(1, 3)):
        dims = b.pick(shapes)
        dims = tuple(symbol(d) if isinstance(d, str) else d for d in dims)  # type: ignore[attr-defined]
        graph.add_input(f"x{i}", TensorType(DType.F64, dims))
    for _ in range(b.integer(1, steps)):
        b.pick(list(focus) if focus and b.integer(0, 1) else STEPS)(b)  # type: ignore[operator]
    if branches:
        _branches(b)
    values = list(graph.values())
    outputs = [values[-1], *(b.pick(values) for _ in range(b.integer(0, 3)))]
    if b.integer(0, 2) == 0:
        outputs.append(outputs[0])
    graph.set_outputs(outputs, [f"y{i}" for i in range(len(outputs))])  # type: ignore[arg-type]
    feed = {v.name: _numbers(b.rng, v) for v in graph.inputs}
    return Case(graph, feed)


def _numbers(rng: np.random.Generator, value: Value) -> np.ndarray:
    shape = value.tensor.at(SIZES)
    if value.tensor.dtype is DType.BOOL:
        return np.asarray(rng.integers(0, 2, shape), bool)
    return np.asarray(rng.standard_normal(shape))
