"""Large graphs of many kinds, to see what work grows faster than they do.

Each kind is a function from a size to an ONNX model of about as many nodes, quick to make: the protobuf
is filled in directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
KINDS: dict[str, Callable[[int], ModelProto]] = {}


class _Builder:
    """A graph under construction; values are names."""

    def __init__(self, name: str = "main", prefix: str = "") -> None:
        self.proto = GraphProto(name=name)
        self.prefix = prefix
        self.made = 0

    def input(self, name: str, dims: Sequence[int | str], dtype: int = F32) -> str:
        self.proto.input.append(helper.make_tensor_value_info(name, dtype, dims))
        return name

    def constant(self, array: np.ndarray) -> str:
        self.made += 1
        name = f"{self.prefix}c{self.made}"
        self.proto.initializer.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def node(self, op: str, *inputs: str, outputs: int = 1, **attrs: object) -> list[str]:
        proto = self.proto.node.add(op_type=op, input=inputs)
        for _ in range(outputs):
            self.made += 1
            proto.output.append(f"{self.prefix}v{self.made}")
        for key, value in attrs.items():
            proto.attribute.append(helper.make_attribute(key, value))
        return list(proto.output)

    def __call__(self, op: str, *inputs: str, **attrs: object) -> str:
        return self.node(op, *inputs, **attrs)[0]

    def output(self, name: str, dtype: int = F32) -> None:
        value = helper.make_tensor_value_info(name, dtype, None)
        self.proto.output.append(value)

    def model(self, *outputs: str, dtype: int = F32) -> ModelProto:
        for name in outputs:
            self.output(name, dtype)
        return helper.make_model(
            self.proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=9
        )


def _kind(make: Callable[[_Builder, int], ModelProto]) -> None:
    KINDS[make.__name__] = lambda size: make(_Builder(), size)


def _weight(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


@_kind
def mixed_chain(g: _Builder, size: int) -> ModelProto:
    """A long chain of unlike ops, each Add and Mul with a constant of its own."""
    x = g.input("x", ["batch", 4])
    for i in range(size // 5):
        x = g("Relu", g("Add", x, g.constant(np.full(4, i, np.float32))))
        x = g("Tanh", g("Mul", g("Sigmoid", x), g.constant(np.full(4, i + 2, np.float32))))
    return g.model(x)


@_kind
def transformer(g: _Builder, size: int) -> ModelProto:
    """Encoder layers as exporters write them: sizes asked of shapes, attention and norms in parts."""
    hidden, heads = 8, 2
    x = g.input("x", ["batch", "seq", hidden])
    weight = [g.constant(_weight(hidden, hidden) + i) for i in range(6)]
    root = g.constant(np.array(np.sqrt(2), np.float32))
    two, half, one, eps = (g.constant(np.array(v, np.float32)) for v in (2.0, 0.5, 1.0, 1e-5))

    def linear(y: str, i: int) -> str:
        return g("Add", g("MatMul", y, weight[i]), g.constant(_weight(hidden)))

    def split(y: str) -> str:
        sizes = [
            g(
                "Unsqueeze",
                g("Gather", g("Shape", y), g.constant(np.array(i)), axis=0),
                g.integers(0),
            )
            for i in (0, 1)
        ]
        shape = g("Concat", *sizes, g.integers(heads), g.integers(hidden // heads), axis=0)
        return g("Transpose", g("Reshape", y, shape), perm=[0, 2, 1, 3])

    def norm(y: str) -> str:
        centred = g("Sub", y, g("ReduceMean", y, g.integers(-1)))
        spread = g("Add", g("ReduceMean", g("Pow", centred, two), g.integers(-1)), eps)
        scaled = g("Mul", g("Div", centred, g("Sqrt", spread)), g.constant(_weight(hidden)))
        return g("Add", scaled, g.constant(_weight(hidden)))

    for _ in range(max(1, size // 80)):
        q, k, v = (split(linear(x, i)) for i in range(3))
        scores = g("Div", g("MatMul", q, g("Transpose", k, perm=[0, 1, 3, 2])), two)
        read = g("Transpose", g("MatMul", g("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        merged = g("Reshape", read, g.integers(0, 0, hidden))
        x = norm(g("Add", x, linear(merged, 3)))
        y = linear(x, 4)
        gelu = g("Mul", g("Mul", y, g("Add", g("Erf", g("Div", y, root)), one)), half)
        x = norm(g("Add", x, linear(gelu, 5)))
    return g.model(x)


def _chain(
    name: str, op: str, dims: Sequence[int | str], dtype: int = F32, **attrs: object
) -> None:
    def make(size: int) -> ModelProto:
        g = _Builder()
        x = g.input("x", dims, dtype)
        for _ in range(size):
            x = g(op, x, **attrs)
        return g.model(x, dtype=dtype)

    KINDS[name] = make


_chain("identities", "Identity", ["batch", 4])
_chain("transposes", "Transpose", ["a", "b", "c"], perm=[1, 2, 0])
_chain("negations", "Neg", ["batch", 4])
_chain("involutions", "Not", ["batch", 4], BOOL)
_chain("flattenings", "Flatten", ["batch", 4, 2])
_chain("relus", "Relu", ["batch", 4])


@_kind
def casts(g: _Builder, size: int) -> ModelProto:
    x = g.input("x", ["batch", 4])
    for i in range(size):
        x = g("Cast", x, to=TensorProto.FLOAT if i % 2 else TensorProto.DOUBLE)
    return g.model(x, dtype=F32 if size % 2 == 0 else TensorProto.DOUBLE)


@_kind
def reshapes(g: _Builder, size: int) -> ModelProto:
    x = g.input("x", ["batch", "seq", 4])
    for i in range(size):
        x = g("Reshape", x, g.integers(*((-1, 4), (-1, 2, 2))[i % 2]))
    return g.model(x)


@_kind
def squeezes(g: _Builder, size: int) -> ModelProto:
    x = g.input("x", ["batch", 4])
    for _ in range(size // 2):
        x = g("Squeeze", g("Unsqueeze", x, g.integers(-1)), g.integers(-1))
    return g.model(x)


@_kind
def neutral(g: _Builder, size: int) -> ModelProto:
    x = g.input("x", ["batch", 4])
    zero, one = (g.constant(np.full(1, v, np.float32)) for v in (0, 1))
    for _ in range(size // 4):
        x = g("Div", g("Mul", g("Sub", g("Add", x, zero), zero), one), one)
    return g.model(x)


@_kind
def constants(g: _Builder, size: int) -> ModelProto:
    """All of it follows from constants."""
    x = g.input("x", ["batch", 4])
    c = g.constant(_weight(4))
    for _ in range(size - 1):
        c = g("Add", c, g.constant(_weight(4)))
    return g.model(g("Mul", x, c))


@_kind
def shapes(g: _Builder, size: int) -> ModelProto:
    """A view after the other, by sizes that are asked and computed."""
    x = g.input("x", ["batch", "seq", 4])
    for _ in range(size // 8):
        shape = g("Shape", x)
        batch = g("Gather", shape, g.constant(np.array(0)), axis=0)
        rows = g("Mul", batch, g("Gather", shape, g.constant(np.array(1)), axis=0))
        target = g("Concat", g("Unsqueeze", rows, g.integers(0)), g.integers(4), axis=0)
        x = g("Reshape", g("Relu", g("Reshape", x, target)), shape)
    return g.model(x)


@_kind
def duplicates(g: _Builder, size: int) -> ModelProto:
    """A tree over results that are all the same."""
    x = g.input("x", ["batch", 4])
    level = [g("Relu", x) for _ in range(size // 2)]
    while len(level) > 1:
        level = [g("Add", a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
    return g.model(level[0])


@_kind
def equal_weights(g: _Builder, size: int) -> ModelProto:
    """Constants that are equal, and one that all read."""
    x = g.input("x", ["batch", 4])
    shared = g.constant(_weight(4, 4))
    for _ in range(size // 2):
        x = g("Add", g("MatMul", x, shared), g.constant(_weight(4)))
    return g.model(x)


@_kind
def dead_ends(g: _Builder, size: int) -> ModelProto:
    x = g.input("x", ["batch", 4])
    y = x
    for i in range(size):
        y = g("Relu", x if i % 3 == 0 else y)
    return g.model(g("Tanh", x))


@_kind
def fan_out(g: _Builder, size: int) -> ModelProto:
    """One value that all nodes read, one node that reads them all, after an Identity each."""
    x = g.input("x", ["batch", 4])
    made = [
        g("Identity", g("Add", x, g.constant(np.full(4, i, np.float32)))) for i in range(size // 2)
    ]
    return g.model(g("Concat", *made, axis=0))


@_kind
def many_outputs(g: _Builder, size: int) -> ModelProto:
    x = g.input("x", ["batch", 4])
    return g.model(
        *[
            g("Identity", g("Mul", x, g.constant(np.full(4, i, np.float32))))
            for i in range(size // 2)
        ]
    )


@_kind
def many_pieces(g: _Builder, size: int) -> ModelProto:
    """A Split into as many pieces as there are nodes."""
    x = g.input("x", ["batch", size // 2])
    pieces = g.node("Split", x, outputs=size // 2, axis=1, num_outputs=size // 2)
    return g.model(g("Sum", *[g("Relu", p) for p in pieces]))


@_kind
def branches(g: _Builder, size: int) -> ModelProto:
    """Ifs, each on what the last one made, reading it from inside."""
    x, c = g.input("x", ["batch", 4]), g.input("c", [], BOOL)
    for i in range(size // 4):
        sides = []
        for side in "te":
            sub = _Builder("body", f"{side}{i}.")
            sub.output(sub("Add", x, sub.constant(np.full(4, i, np.float32))))
            sides.append(sub.proto)
        x = g("Identity", g("If", c, then_branch=sides[0], else_branch=sides[1]))
    return g.model(x)


@_kind
def nested(g: _Builder, size: int) -> ModelProto:
    """Thirty Ifs, one in the other, that share the nodes."""
    g.input("x", ["batch", 4])
    g.input("c", [], BOOL)
    inner: GraphProto | None = None
    for depth in range(30):
        sub = _Builder("body", f"d{depth}.")
        y = "x"
        for i in range(size // 60):
            y = sub("Add", sub("Identity", y), sub.constant(np.full(4, i, np.float32)))
        if inner is not None:
            other = _Builder("other", f"o{depth}.")
            other.output(other("Relu", "x"))
            y = sub("Add", y, sub("If", "c", then_branch=inner, else_branch=other.proto))
        sub.output(y)
        inner = sub.proto
    assert inner is not None
    other = _Builder("other", "o.")
    other.output(other("Relu", "x"))
    return g.model(g("If", "c", then_branch=inner, else_branch=other.proto))


@_kind
def growing_dims(g: _Builder, size: int) -> ModelProto:
    """Rows of another input are appended each time: the dim has ever more terms."""
    x = g.input("x0", ["n0", 4])
    for i in range(1, size // 2):
        x = g("Relu", g("Concat", x, g.input(f"x{i}", [f"n{i}", 4]), axis=0))
    return g.model(x)


@_kind
def doubling_dims(g: _Builder, size: int) -> ModelProto:
    """Appended to itself each time, and cut again."""
    x = g.input("x", ["rows", 4])
    for _ in range(size // 2):
        x = g("Slice", g("Concat", x, x, axis=0), g.integers(0), g.integers(7), g.integers(0))
    return g.model(x)


@_kind
def doubled_dims(g: _Builder, size: int) -> ModelProto:
    """Appended to itself each time: 2 ** size rows, in name."""
    x = g.input("x", ["rows", 4])
    for _ in range(size):
        x = g("Concat", x, x, axis=0)
    return g.model(x)


@_kind
def multiplied_dims(g: _Builder, size: int) -> ModelProto:
    """Outer sums of sums: a product of ever more sums of symbols."""
    x = g.input("x", ["a", "b"])
    for i in range(size // 3):
        y = (
            g("Concat", x, x if i % 2 else g("Transpose", x, perm=[1, 0]), axis=i % 2)
            if i % 2
            else x
        )
        flat = g("Reshape", y, g.integers(1, -1))
        x = g("Concat", flat, flat, axis=0)
    return g.model(x)


@_kind
def expansions(g: _Builder, size: int) -> ModelProto:
    """Masks broadcast for readers that broadcast anyway, again and again."""
    x = g.input("x", ["batch", "seq"])
    m = g.input("m", [1, 1])
    shape = g("Shape", x)
    for _ in range(size // 2):
        m = g("Add", g("Expand", m, shape), g.constant(np.ones((1, 1), np.float32)))
    return g.model(g("Add", m, x))


@_kind
def stuck_expansions(g: _Builder, size: int) -> ModelProto:
    """As before, but the last reader does not broadcast, so that none may go."""
    x = g.input("x", ["batch", "seq"])
    m = g.input("m", [1, 1])
    shape = g("Shape", x)
    for _ in range(size // 2):
        m = g("Add", g("Expand", m, shape), m)
    return g.model(g("ReduceSum", m))


@_kind
def sequences(g: _Builder, size: int) -> ModelProto:
    x = g.input("x", ["batch", 4])
    s = g("SequenceConstruct", *[g("Relu", x) for _ in range(size // 2)])
    for _ in range(size // 2):
        s = g("SequenceInsert", s, x)
    return g.model(g("ConcatFromSequence", s, axis=0))


def nodes(model: ModelProto) -> int:
    """How many there are, subgraphs included."""
    count, work = 0, [model.graph]
    while work:
        graph = work.pop()
        count += len(graph.node)
        for node in graph.node:
            work += [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]
    return count
