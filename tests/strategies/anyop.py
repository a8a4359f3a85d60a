"""Steps over the op table: any op, in any element type, broadcasting, with operands made to fit."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from hypothesis import strategies as st

from strategies.builder import Builder, Rejected
from tersor.ir import DType, Value
from tersor.ops.onnx_schema import TO_ONNX
from tersor.ops.samples import Case as SampleCase
from tersor.ops.samples import cases as all_samples

INTEGERS = [DType.I64, DType.I32, DType.I8, DType.U8, DType.I16, DType.U32]
FLOATS = [DType.F32, DType.F64, DType.F16]
SHAPES: list[tuple[int, ...]] = [
    (), (1,), (3,), (4,), (2, 3), (1, 4), (2, 3, 4), (3, 1, 2), (2, 1, 3, 2), (1, 1, 2, 1, 1, 2, 1), (0,),
    (2, 0, 3),
]  # fmt: skip
UNARY = [
    "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "Erf", "Exp", "Abs", "Floor", "Ceil", "Round", "Sign",
    "Tanh", "Sigmoid", "Relu", "Neg", "Log", "Sqrt", "Reciprocal", "Asin", "Acos", "Atanh", "Acosh", "LeakyRelu",
    "Elu", "Celu", "Selu", "Gelu", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Mish", "ThresholdedRelu",
    "Identity", "Dropout", "IsNaN", "IsInf", "Shape", "Size",
]  # fmt: skip
REDUCE = [
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
    "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp",
]  # fmt: skip


@cache
def samples() -> list[SampleCase]:
    """What can be exported: standard ops."""
    return [c for c in all_samples() if not c.row.op.startswith("tersor.")]


# -- operands --------------------------------------------------------------------------------------


def numbers(b: Builder, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    if dtype is DType.BOOL:
        return b.rng.integers(0, 2, shape).astype(bool)
    if dtype.is_integer:
        low = 0 if dtype.value[0] == "u" else -4
        return b.rng.integers(low, 5, shape).astype(dtype.numpy)
    return b.rng.standard_normal(shape).astype(dtype.numpy)


def operand(b: Builder, dtype: DType) -> Value:
    """Any value of ``dtype``: what there is, or a new input or constant."""
    found = b.values(dtype)
    if found and b.integer(0, 3):
        return b.latest(found)
    array = numbers(b, dtype, b.pick(SHAPES))  # type: ignore[arg-type]
    return b.given(array) if b.integer(0, 1) else b.graph.constant(array, "k")


def some_dtype(b: Builder) -> DType:
    kind = b.integer(0, 5)
    if kind == 0:
        return DType.BOOL
    return b.pick(INTEGERS) if kind <= 2 else b.dtype  # type: ignore[return-value]


def broadcast_with(b: Builder, x: Value) -> Value:
    """A value that broadcasts with ``x``: of the same dims, or of its last ones, or with ones."""
    have, dims = b.shape_of(x), list(x.tensor.dims or ())
    fits = [
        v
        for v in b.values(x.tensor.dtype)
        if all(
            s == 1 or h == 1 or d == e
            for s, h, d, e in zip(
                b.shape_of(v)[::-1],
                have[::-1],
                (v.tensor.dims or ())[::-1],
                dims[::-1],
                strict=False,
            )
        )
    ]
    if fits and b.integer(0, 2):
        return b.latest(fits)
    tail = have[b.integer(0, len(have)) :]
    # A size of the data's own goes along only as one: constants cannot follow it.
    shape = tuple(
        s if isinstance(d, int) and b.integer(0, 3) else 1
        for s, d in zip(tail, dims[len(have) - len(tail) :], strict=True)
    )
    array = numbers(b, x.tensor.dtype, shape)
    return b.given(array) if b.integer(0, 3) == 0 else b.graph.constant(array, "k")


def wired(b: Builder, array: np.ndarray) -> Value:
    """A value of the array's type and shape, made from what the graph computes."""
    dtype, shape = DType.of(array), array.shape
    x = b.float()
    have = b.shape_of(x)
    if math.prod(have) == 0 or math.prod(shape) == 0:
        return b.given(array)
    if x.tensor.dtype is not dtype:
        x = b.emit("Cast", x, to=TO_ONNX[dtype])
    if have == shape:
        return x
    if math.prod(have) == math.prod(shape):
        return b.emit("Reshape", x, b.ints(*shape))
    flat = b.emit("Reshape", x, b.ints(-1))
    times = -(-math.prod(shape) // math.prod(have))
    if times > 1:
        flat = b.emit("Tile", flat, b.ints(times))
    cut = b.emit("Slice", flat, b.ints(0), b.ints(math.prod(shape)), b.ints(0), b.ints(1))
    return b.emit("Reshape", cut, b.ints(*shape))


# -- steps -----------------------------------------------------------------------------------------


def sampled(b: Builder) -> None:
    """Any op of the table on a sample's operands, floats among them computed where they can be."""
    sample = b.pick(samples()).sample  # type: ignore[attr-defined]
    op = next(c.row.op for c in samples() if c.sample is sample)
    to = b.dtype if b.integer(0, 1) else None
    operands: list[Value | None] = []
    for i, array in enumerate(sample.inputs):
        if array is None:
            operands.append(None)
            continue
        if to is not None and array.dtype == np.float32:
            array = array.astype(to.numpy)
        if i in sample.constant:
            operands.append(b.graph.constant(array, "k"))
        elif DType.of(array).is_float and b.integer(0, 2):
            operands.append(wired(b, array))
        else:
            operands.append(b.given(array) if b.integer(0, 1) else b.graph.constant(array, "k"))
    b.node(op, operands, dict(sample.attrs), sample.outputs)


def any_unary(b: Builder) -> None:
    op = str(b.pick(UNARY))
    b.emit(op, b.float() if b.integer(0, 2) else operand(b, some_dtype(b)))


def any_binary(b: Builder) -> None:
    x = b.float() if b.integer(0, 1) else operand(b, some_dtype(b))
    dtype = x.tensor.dtype
    y = broadcast_with(b, x)
    a, c = (x, y) if b.integer(0, 1) else (y, x)
    compare = ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]
    if dtype is DType.BOOL:
        b.emit(str(b.pick(["And", "Or", "Xor", "Equal", "Where"][:4])), a, c)
    elif dtype.is_integer:
        op = str(
            b.pick(
                [
                    "Add",
                    "Sub",
                    "Mul",
                    "Max",
                    "Min",
                    "BitwiseAnd",
                    "BitwiseXor",
                    "Div",
                    "Mod",
                    *compare,
                ]
            )
        )
        if op in ("Div", "Mod"):  # by what is not zero: dividing by it ends the process
            b.emit(op, x, b.graph.constant(np.array(b.integer(1, 3), dtype.numpy)))
        else:
            b.emit(op, a, c)
    else:
        b.emit(
            str(b.pick(["Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum", *compare])),
            a,
            c,
        )


def any_reduce(b: Builder) -> None:
    x = b.float() if b.integer(0, 1) else operand(b, some_dtype(b))
    rank = x.tensor.rank or 0
    kind = b.integer(0, 3)
    axes = None if kind == 0 else b.ints() if kind == 1 else None
    if kind >= 2 and rank:
        chosen = sorted({b.integer(0, rank - 1) for _ in range(b.integer(1, 2))})
        axes = b.ints(*(a - rank if b.integer(0, 1) else a for a in chosen))
    b.emit(
        str(b.pick(REDUCE)), x, axes, keepdims=b.integer(0, 1), noop_with_empty_axes=b.integer(0, 1)
    )


def any_layout(b: Builder) -> None:
    """Moving elements, on any element type and any rank."""
    x = b.float() if b.integer(0, 1) else operand(b, some_dtype(b))
    rank = x.tensor.rank or 0
    have, dims = b.shape_of(x), list(x.tensor.dims or ())
    axis = b.integer(0, rank - 1) if rank else 0
    kind = str(
        b.pick(["Transpose", "Reshape", "Flatten", "Unsqueeze", "Squeeze", "Expand", "Tile", "Slice", "Concat",
                "Split", "Pad", "Gather", "Trilu", "Cast", "CastLike", "Shape", "GatherElements"])
    )  # fmt: skip
    if kind == "Transpose":
        b.emit(kind, x, perm=tuple(b.draw(st.permutations(range(rank)))))  # type: ignore[arg-type]
    elif kind == "Reshape":
        target = [0 if isinstance(d, int) or b.integer(0, 1) else -1 for d in dims]
        if target.count(-1) > 1 or 0 in have:
            raise Rejected("two open dims, or a zero that means another")
        b.emit(kind, x, b.ints(*target) if rank and b.integer(0, 1) else b.ints(-1))
    elif kind == "Flatten":
        b.emit(kind, x, axis=b.integer(-rank, rank))
    elif kind == "Unsqueeze":
        b.emit(
            kind,
            x,
            b.ints(*sorted({b.integer(0, rank), -1} if b.integer(0, 1) else {b.integer(0, rank)})),
        )
    elif kind == "Squeeze":
        ones = [i for i, d in enumerate(dims) if d == 1]
        b.emit(kind, x, b.ints(*ones[: b.integer(1, len(ones))]) if ones else None)
    elif kind == "Expand":
        b.emit(kind, x, b.ints(*([b.integer(1, 2)] * b.integer(0, 1)), *[1] * rank))
    elif kind == "Tile" and rank:
        b.emit(kind, x, b.ints(*(b.integer(0, 2) for _ in dims)))
    elif kind == "Slice" and rank:
        start, step = b.integer(-3, 3), int(b.pick([1, 1, 2, -1, -2]))  # type: ignore[call-overload]
        # ONNX Runtime takes the largest end of a backward slice for the beginning.
        far = -(2**31) if step < 0 else 2**31 - 1
        end = int(b.pick([far, -1, 1, 2]))  # type: ignore[call-overload]
        b.emit(kind, x, b.ints(start), b.ints(end), b.ints(axis), b.ints(step))
    elif kind == "Concat" and rank:
        same = [
            v
            for v in b.values(x.tensor.dtype, rank)
            if all(i == axis or d == e for i, (d, e) in enumerate(zip(v.tensor.dims or (), dims, strict=True)))
        ]  # fmt: skip
        b.emit(
            kind,
            *(b.latest(same) for _ in range(b.integer(1, 3))),
            axis=axis - rank * b.integer(0, 1),
        )
    elif kind == "Split" and rank and isinstance(dims[axis], int):
        size = have[axis]
        parts = b.integer(1, 3)
        if b.integer(0, 1):
            cuts = sorted(b.integer(0, size) for _ in range(parts - 1))
            sizes = np.diff([0, *cuts, size]).tolist()
            b.node(kind, [x, b.ints(*sizes)], {"axis": axis}, parts)
        else:
            b.node(kind, [x], {"axis": axis, "num_outputs": parts}, parts)
    elif kind == "Pad" and rank:
        mode = str(b.pick(["constant", "edge", "reflect"]))
        pads = [b.integer(0, 1) for _ in range(2 * rank)]
        b.emit(kind, x, b.ints(*pads), mode=mode)
    elif kind == "Gather" and rank and have[axis]:
        index = np.array(
            b.integer(-have[axis], have[axis] - 1) if isinstance(dims[axis], int) else 0
        )
        ids = b.graph.constant(index if b.integer(0, 1) else index.reshape(1), "i")
        b.emit(kind, x, ids if b.integer(0, 1) else b.given(ids.numpy()), axis=axis)
    elif kind == "GatherElements" and rank and 0 not in have:
        ids = b.given(np.zeros(have, np.int64))
        b.emit(kind, x, ids, axis=axis)
    elif kind == "Trilu" and rank >= 2:
        b.emit(kind, x, b.graph.constant(np.array(b.integer(-1, 1))), upper=b.integer(0, 1))
    elif kind == "Cast":
        b.emit(kind, x, to=TO_ONNX[b.pick([*FLOATS, *INTEGERS, DType.BOOL])])  # type: ignore[index]
    elif kind == "CastLike":
        b.emit(kind, x, operand(b, some_dtype(b)))
    elif kind == "Shape":
        start = b.integer(0, rank)
        b.emit(kind, x, start=start, end=b.integer(start, rank))
    else:
        raise Rejected("no such axis")


def picked(b: Builder) -> None:
    """Several results, or indices among them."""
    x = b.float(1) if b.integer(0, 1) else operand(b, some_dtype(b))
    rank = x.tensor.rank or 0
    if not rank:
        raise Rejected("no axis to pick along")
    axis = b.integer(-rank, rank - 1)
    kind = str(
        b.pick(["TopK", "ArgMax", "ArgMin", "CumSum", "Softmax", "LogSoftmax", "Hardmax", "Where"])
    )
    if kind == "TopK":
        b.node(kind, [x, b.ints(b.integer(0, 1))], {"axis": axis, "largest": b.integer(0, 1)}, 2)
    elif kind in ("ArgMax", "ArgMin"):
        b.emit(kind, x, axis=axis, keepdims=b.integer(0, 1), select_last_index=b.integer(0, 1))
    elif kind == "CumSum":
        at = b.graph.constant(np.array(axis))
        b.emit(kind, x, at, exclusive=b.integer(0, 1), reverse=b.integer(0, 1))
    elif kind == "Where":
        b.emit(kind, operand(b, DType.BOOL), x, broadcast_with(b, x))
    else:
        b.emit(kind, x, axis=axis)


def tied(b: Builder) -> None:
    """One constant read by several, also transposed."""
    found = [v for v in b.values(b.dtype) if not v.is_constant and (v.tensor.rank or 0) >= 2]
    found = [v for v in found if isinstance((v.tensor.dims or ())[-1], int)]
    if not found:
        raise Rejected("nothing to multiply")
    x = b.latest(found)
    k = b.shape_of(x)[-1]
    w = b.weight(k, k)
    y = b.emit("MatMul", x, w)
    turned = b.emit("Transpose", w, perm=(1, 0)) if b.integer(0, 1) else w
    b.emit("MatMul", b.emit("Tanh", y) if b.integer(0, 1) else y, turned)


def sequences(b: Builder) -> None:
    x = b.float(1)
    kind = b.integer(0, 2)
    if kind == 0:
        held = b.emit("SequenceConstruct", x, x)
        b.emit("SequenceAt", held, b.graph.constant(np.array(b.integer(-2, 1))))
    elif kind == 1:
        held = b.emit("SplitToSequence", x, None, axis=0, keepdims=b.integer(0, 1))
        b.emit("ConcatFromSequence", held, axis=0, new_axis=b.integer(0, 1))
    else:
        b.emit("OptionalGetElement", b.emit("Optional", x))


STEPS = [
    sampled, sampled, sampled, any_unary, any_binary, any_binary, any_reduce, any_layout, any_layout, any_layout,
    picked, tied, sequences,
]  # fmt: skip
