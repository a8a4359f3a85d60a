"""Small models with large values: valid, so they are accepted, but their values are not computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hostile.table import text
from onnx import ModelProto, TensorProto, helper, numpy_helper

Make = Callable[[], ModelProto]


def repeated(
    op: str, times: int, start: np.ndarray, inputs: int = 2, opset: int = 20, **attrs: object
) -> ModelProto:
    """v1 = op(v0, v0), v2 = op(v1, v1) …, the last of them y."""
    nodes = [
        helper.make_node(op, [f"v{i}"] * inputs, [f"v{i + 1}"], **attrs)  # type: ignore[arg-type]
        for i in range(times)
    ]
    nodes[-1].output[0] = "y"
    return built(nodes, {"v0": start}, opset)


def built(
    nodes: list[object], constants: dict[str, np.ndarray], opset: int = 20, outputs: str = "y"
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "bomb",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_empty_tensor_value_info(n) for n in outputs.split()],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def one(op: str, constants: dict[str, np.ndarray], opset: int = 20, **attrs: object) -> ModelProto:
    """y = op of constants."""
    node = helper.make_node(op, list(constants), ["y"], **attrs)  # type: ignore[arg-type]
    return built([node], constants, opset)


def i64(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def scalar(number: int) -> np.ndarray:
    return np.array(number, np.int64)


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def loop(trips: int) -> ModelProto:
    """A loop over constants with many iterations."""
    body = text(
        "(int64 i, bool c, float[N] v) => (bool d, float[M] w) { d = Identity (c)  w = Concat <axis = 0> (v, v) }"
    ).graph
    node = helper.make_node("Loop", ["trips", "go", "v"], ["y"], body=body)
    return built([node], {"trips": scalar(trips), "go": np.array(True), "v": f32(2)})


def group_norm() -> ModelProto:
    """A form before opset 21, with one scale for each group of very many channels."""
    model = text(
        """(float[1, 1099511627776, 1] x) => (float[1, 1099511627776, 1] y) {
            y = GroupNormalization <num_groups = 2> (x, s, b)
        }""",
        '"": 18',
    )
    for name in "sb":
        model.graph.initializer.append(numpy_helper.from_array(f32(2), name))
    return model


def sums_of_sizes() -> ModelProto:
    """(a + b + c + d) squared twenty times, and max(v, v // 3 + a) of that."""
    steps = "\n".join(f"v{i + 1} = Mul (v{i}, v{i})" for i in range(20))
    more = "\n".join(
        f"d{i} = Div (w{i}, three)  e{i} = Add (d{i}, v0)  w{i + 1} = Max (w{i}, e{i})"
        for i in range(200)
    )
    return text(
        f"""(float[A, B, C, D] x) => (int64[N] y, int64[M] z) {{
            three = Constant <value_int = 3> ()
            s = Shape (x)  axes = Constant <value_ints = [0]> ()
            v0 = ReduceSum (s, axes)
            {steps}
            w0 = Identity (v0)
            {more}
            y = Identity (v20)  z = Identity (w200)
        }}"""
    )


def thousand_sums() -> ModelProto:
    """Four megabytes that are read a thousand times; each result is no larger."""
    nodes = [helper.make_node("Add", ["w", f"c{i}"], [f"t{i}"]) for i in range(1000)]
    nodes.append(helper.make_node("Concat", [f"t{i}" for i in range(1000)], ["y"], axis=0))
    constants = {f"c{i}": np.array(i, np.float32) for i in range(1000)}
    return built(nodes, {"w": f32(1000, 1000), **constants})


BIG, HUGE = 1 << 33, 1 << 62

BOMBS: dict[str, Make] = {
    "ConstantOfShape": lambda: one("ConstantOfShape", {"s": i64(1 << 20, 1 << 20)}),
    "ConstantOfShape past 64 bits": lambda: one("ConstantOfShape", {"s": i64(HUGE, HUGE)}),
    "ConstantOfShape of nothing, past 64 bits": lambda: one("ConstantOfShape", {"s": i64(0, HUGE, HUGE)}),
    "ConstantOfShape of integers": lambda: one("ConstantOfShape", {"s": i64(BIG)}, value=numpy_helper.from_array(i64(1))),
    "Expand": lambda: one("Expand", {"a": f32(1), "s": i64(1 << 18, 1 << 18)}),
    "Expand of integers": lambda: one("Expand", {"a": i64(1), "s": i64(BIG)}),
    "Tile": lambda: one("Tile", {"a": f32(8), "r": i64(BIG)}),
    "Tile past 64 bits": lambda: built([helper.make_node("Tile", ["a", "r"], ["b"]), helper.make_node("Size", ["b"], ["y"])], {"a": f32(1, 1), "r": i64(HUGE, HUGE)}),
    "Range": lambda: one("Range", {"a": scalar(0), "b": scalar(HUGE), "c": scalar(1)}),
    "Range without a step": lambda: one("Range", {"a": scalar(0), "b": scalar(5), "c": scalar(0)}),
    "Pad": lambda: one("Pad", {"a": f32(2), "p": i64(BIG, BIG)}),
    "Resize": lambda: built([helper.make_node("Resize", ["a", "", "s"], ["y"])], {"a": f32(1, 1, 2, 2), "s": np.array([1, 1, 1e6, 1e6], np.float32)}),
    "Resize to sizes": lambda: built([helper.make_node("Resize", ["a", "", "", "s"], ["y"], mode="nearest")], {"a": f32(1, 1, 2, 2), "s": i64(1, 1, 1 << 20, 1 << 20)}),
    "OneHot": lambda: one("OneHot", {"i": i64(*range(1000)), "d": scalar(1 << 30), "v": f32(2)}),
    "EyeLike": lambda: built([helper.make_node("ConstantOfShape", ["s"], ["a"]), helper.make_node("EyeLike", ["a"], ["y"])], {"s": i64(1 << 20, 1 << 20)}),
    "RandomNormal": lambda: built([helper.make_node("RandomNormal", [], ["y"], shape=[1 << 20, 1 << 20])], {}),
    "RandomUniform": lambda: built([helper.make_node("RandomUniform", [], ["y"], shape=[BIG])], {}),
    "Gather": lambda: one("Gather", {"a": f32(100_000, 8), "i": np.zeros((10_000, 8), np.int64)}),
    "an outer sum": lambda: one("Add", {"a": f32(1 << 17, 1), "b": f32(1, 1 << 17)}),
    "an outer product": lambda: one("MatMul", {"a": f32(1 << 17, 1), "b": f32(1, 1 << 17)}),
    "Einsum": lambda: one("Einsum", {"a": f32(1 << 12), "b": f32(1 << 12), "c": f32(1 << 12)}, equation="i,j,k->ijk"),
    "Einsum of much work": lambda: one("Einsum", {"a": f32(1 << 14), "b": f32(1 << 14), "c": f32(1 << 14)}, equation="i,j,k->i"),
    "a convolution spread out": lambda: one("Conv", {"a": f32(1, 1, 4, 4), "w": f32(1, 1, 2, 2)}, dilations=[1 << 15, 1 << 15], pads=[1 << 14] * 4),
    "a pool of a large window": lambda: one("AveragePool", {"a": f32(1, 1, 4, 4)}, kernel_shape=[1 << 16, 1 << 16], pads=[1 << 15] * 4, count_include_pad=1),
    "Cast of a large Range": lambda: built([helper.make_node("Range", ["a", "b", "c"], ["r"]), helper.make_node("Cast", ["r"], ["y"], to=1)], {"a": scalar(0), "b": scalar(BIG), "c": scalar(1)}),
    "ConvTranspose": lambda: one("ConvTranspose", {"a": f32(1, 1, 4, 4), "w": f32(1, 1, 2, 2)}, strides=[1 << 20, 1 << 20]),
    "MaxUnpool": lambda: one("MaxUnpool", {"a": f32(1, 1, 2, 2), "i": np.zeros((1, 1, 2, 2), np.int64), "s": i64(1, 1, 1 << 20, 1 << 20)}, kernel_shape=[2, 2]),
    "Concat doubles sixty times": lambda: repeated("Concat", 60, f32(2), axis=0),
    "Concat of integers doubles sixty times": lambda: repeated("Concat", 60, i64(1, 2), axis=0),
    "a thousand sums with one table": thousand_sums,
    "StringConcat doubles sixty times": lambda: repeated("StringConcat", 60, np.array(["ab"], object)),
    "Mul of integers squares sixty times": lambda: repeated("Mul", 60, i64(3)),
    "Pow of integers": lambda: repeated("Pow", 20, i64(9)),
    "a loop that doubles": lambda: loop(1 << 60),
    "SequenceInsert": lambda: built([helper.make_node("SequenceEmpty", [], ["s"]), helper.make_node("ConstantOfShape", ["n"], ["a"]), helper.make_node("SequenceInsert", ["s", "a"], ["t"]), helper.make_node("ConcatFromSequence", ["t"], ["y"], axis=0)], {"n": i64(BIG)}),
    "QuantizeLinear": lambda: built([helper.make_node("ConstantOfShape", ["n"], ["a"]), helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])], {"n": i64(BIG), "s": np.array(1, "f"), "z": np.array(0, np.int8)}),
    "an old GroupNormalization": group_norm,
    "sums of sizes": sums_of_sizes,
}  # fmt: skip
