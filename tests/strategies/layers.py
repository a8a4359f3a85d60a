"""Steps of what exporters write: a layer or an idiom each, and near misses of those that passes look for."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from strategies.builder import Builder
from tersor.ir import Value
from tersor.ops.onnx_schema import TO_ONNX

I64, BOOL = 7, 9  # ONNX's numbers, for Cast


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
        for v in b.values(b.dtype)
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
    x, own = b.float(), TO_ONNX[b.dtype]
    for to in b.pick([[own], [BOOL, I64, own], [BOOL, own], [I64, own], [BOOL, I64, BOOL, own]]):  # type: ignore[attr-defined]
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
        parts = 1 if cut in (0, size) else 2
        sizes = b.ints(size) if parts == 1 else b.ints(cut, size - cut)
        b.node("Split", [x, sizes], {"axis": axis}, parts)
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
                b.graph.constant((np.abs(b.rng.standard_normal(n)) + 0.5).astype(b.dtype.numpy)),
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
    found = [v for v in b.values(b.dtype, 3) if not v.is_constant and v.tensor.dims[-1] == 4]  # type: ignore[index]
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
