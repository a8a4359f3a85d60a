"""The default schedule: every kind of block gives the same numbers for static and dynamic sizes, with whole
vectors and remainders, and becomes the expected loops."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm", reason="the tvm backend is not installed")

import tvm_ffi  # noqa: E402
from tvm import relax, tirx  # noqa: E402
from tvm.script.ir_builder import IRBuilder  # noqa: E402
from tvm.tirx.script.builder import ir as T  # noqa: E402

from tersor.backends.tvm.loops import VECTOR  # noqa: E402
from tersor.backends.tvm.pipeline import compile_module, relax_pipeline, tvm_target  # noqa: E402
from tersor.backends.tvm.schedule import fallbacks  # noqa: E402
from tersor.target import ISA_LEVELS, Target  # noqa: E402

op = relax.op
HOST = tvm_target(Target.host().features, 2)
AVX512 = tvm_target(ISA_LEVELS["avx512"], 2)
# Sizes for the symbols of a case: one element, an odd rest, rests of several kinds, whole vectors
# and enough work for threads.
UNKNOWN = [
    {"b": 1, "s": 1, "n": 1},
    {"b": 3, "s": 6, "n": 17},
    {"b": 2, "s": 37, "n": 100},
    {"b": 5, "s": 64, "n": 128},
]
KNOWN = [{"b": 2, "s": 9, "n": 48}, {"b": 1, "s": 5, "n": 37}]


@dataclass(frozen=True)
class Case:
    """A function of Relax, and its meaning.

    Attributes:
        shapes: of the operands; names are sizes.
        build: calls of Relax's ops.
        meaning: the same in numpy.
        dtype: of the operands.
        rtol: sums of some hundred float32 in another order differ by 1e-6 or so of the largest.
    """

    shapes: Sequence[Sequence[int | str]]
    build: Callable[..., Any]
    meaning: Callable[..., Any]
    dtype: str = "float32"
    rtol: float = 1e-5


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def normalized(x: np.ndarray, axes: Any = -1) -> np.ndarray:
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


def convolved(x: np.ndarray, w: np.ndarray, stride: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))
    return np.einsum("nchwkl,ockl->nohw", windows[:, :, ::stride, ::stride], w)


BSN = ("b", "s", "n")
CASES = {
    "elementwise": Case([BSN, BSN], op.add, np.add),
    "row operand": Case(
        [BSN, ("n",)], lambda x, y: op.nn.relu(op.add(x, y)), lambda x, y: np.maximum(x + y, 0)
    ),
    "column operand": Case([BSN, ("b", "s", 1)], op.multiply, np.multiply),
    "operand of the middle": Case([BSN, ("b", 1, "n")], op.multiply, np.multiply),
    "comparison": Case([BSN, BSN], op.greater, np.greater),
    "choice": Case([BSN, BSN], lambda x, y: op.where(op.less(x, y), x, y), np.minimum),
    "bytes": Case([BSN], lambda x: op.add(x, x), lambda x: x + x, "int8", 0),
    "halves": Case([BSN], op.tanh, np.tanh, "float16", 1e-3),
    "doubles": Case([BSN], op.exp, np.exp, "float64", 1e-14),
    "cast": Case([BSN], lambda x: op.astype(x, "float32"), lambda x: x, "int64", 0),
    "transposition": Case(
        [BSN], lambda x: op.permute_dims(x, [0, 2, 1]), lambda x: x.transpose(0, 2, 1)
    ),
    "transposition of all": Case(
        [("b", "s", "n")], lambda x: op.permute_dims(x, [2, 1, 0]), lambda x: x.transpose(2, 1, 0)
    ),
    "sum with a transposed one": Case(
        [BSN, ("b", "n", "s")],
        lambda x, y: op.add(x, op.permute_dims(y, [0, 2, 1])),
        lambda x, y: x + y.transpose(0, 2, 1),
    ),
    "transposed integers": Case(
        [("b", "s", 3, "n")],
        lambda x: op.permute_dims(x, [0, 3, 1, 2]),
        lambda x: x.transpose(0, 3, 1, 2),
        "int64",
        0,
    ),
    "split heads": Case(
        [("b", "s", 4, "n")],
        lambda x: op.permute_dims(x, [0, 2, 1, 3]),
        lambda x: x.transpose(0, 2, 1, 3),
    ),
    "concatenation": Case(
        [BSN, BSN], lambda x, y: op.concat([x, y], 1), lambda x, y: np.concatenate([x, y], 1)
    ),
    "slice": Case(
        [("b", 8, "n")], lambda x: op.strided_slice(x, [1], [2], [7]), lambda x: x[:, 2:7]
    ),
    "padding": Case(
        [("b", 8, 7)],
        lambda x: op.nn.pad(x, [0, 0, 1, 1, 2, 2]),
        lambda x: np.pad(x, ((0, 0), (1, 1), (2, 2))),
    ),
    "softmax": Case([BSN], lambda x: op.nn.softmax(x, -1), lambda x: softmax(x, -1)),
    "softmax of the middle": Case([BSN], lambda x: op.nn.softmax(x, 1), lambda x: softmax(x, 1)),
    "log softmax": Case(
        [BSN], lambda x: op.nn.log_softmax(x, -1), lambda x: np.log(softmax(x, -1))
    ),
    "sum of the last": Case([BSN], lambda x: op.sum(x, -1), lambda x: x.sum(-1)),
    "sum of the middle": Case([BSN], lambda x: op.sum(x, 1), lambda x: x.sum(1)),
    "sum of all": Case([BSN], op.sum, np.sum),
    "mean of two": Case([BSN], lambda x: op.mean(x, [1, 2]), lambda x: x.mean((1, 2))),
    "maximum": Case([BSN], lambda x: op.max(x, -1), lambda x: x.max(-1), rtol=0),
    "minimum of bytes": Case([BSN], lambda x: op.min(x, -1), lambda x: x.min(-1), "int8", 0),
    "product": Case([("b", "s", 5)], lambda x: op.prod(x, -1), lambda x: x.prod(-1)),
    "argmax": Case([BSN], lambda x: op.argmax(x, -1), lambda x: x.argmax(-1), rtol=0),
    "layer norm": Case(
        [BSN, ("n",)],
        lambda x, g: op.nn.layer_norm(x, g, g, axes=-1),
        lambda x, g: normalized(x) * g + g,
    ),
    "layer norm of two": Case(
        [BSN, ("s", "n")],
        lambda x, g: op.nn.layer_norm(x, g, g, axes=[-2, -1]),
        lambda x, g: normalized(x, (1, 2)) * g + g,
    ),
    "lower triangle": Case([BSN], op.tril, np.tril, rtol=0),
    "product by a matrix": Case([BSN, ("n", 39)], op.matmul, np.matmul),
    "product by a column": Case([BSN, ("n", 1)], op.matmul, np.matmul),
    "product of a row": Case([("b", 1, "n"), ("b", "n", "s")], op.matmul, np.matmul),
    "products": Case([BSN, ("b", "n", "s")], op.matmul, np.matmul),
    "product by a transposed one": Case(
        [BSN, BSN],
        lambda x, y: op.matmul(x, op.permute_dims(y, [0, 2, 1])),
        lambda x, y: x @ y.transpose(0, 2, 1),
    ),
    "product by a vector": Case([BSN, ("n",)], op.matmul, np.matmul),
    "product with what follows": Case(
        [BSN, ("n", 64), (64,)],
        lambda x, y, z: op.nn.relu(op.add(op.matmul(x, y), z)),
        lambda x, y, z: np.maximum(x @ y + z, 0),
    ),
    "convolution": Case(
        [("b", 5, 14, 14), (6, 5, 3, 3)],
        lambda x, w: op.nn.conv2d(x, w, padding=1),
        lambda x, w: convolved(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), w, 1),
    ),
    "convolution with a stride": Case(
        [("b", 4, 15, 15), (8, 4, 3, 3)],
        lambda x, w: op.nn.conv2d(x, w, strides=2),
        lambda x, w: convolved(x, w, 2),
    ),
    "pooling": Case(
        [("b", 5, 14, 14)],
        lambda x: op.nn.max_pool2d(x, (2, 2), (2, 2)),
        lambda x: x.reshape(-1, 5, 7, 2, 7, 2).max((3, 5)),
        rtol=0,
    ),
}


def module_of(case: Case, sizes: dict[str, int] | None = None) -> Any:
    """The function, of static or of dynamic sizes."""
    symbols = {name: tirx.Var(name, "int64") for name in "bsn"}

    def dim(d: int | str) -> Any:
        return d if isinstance(d, int) else sizes[d] if sizes else symbols[d]

    builder = relax.BlockBuilder()
    operands = [
        relax.Var(f"x{i}", relax.TensorType([dim(d) for d in shape], case.dtype))
        for i, shape in enumerate(case.shapes)
    ]
    with builder.function("main", operands):
        with builder.dataflow():
            y = builder.emit_output(builder.emit(case.build(*operands)))
        builder.emit_func_output(y)
    return builder.finalize()


def agrees(case: Case, machine: Any, sizes: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    arrays = []
    for shape in case.shapes:
        dims = [d if isinstance(d, int) else sizes[d] for d in shape]
        if case.dtype.startswith("int"):
            arrays.append(rng.integers(0, 50, dims).astype(case.dtype))
        else:
            arrays.append(rng.standard_normal(dims).astype(case.dtype))
    y = machine["main"](*(tvm.runtime.tensor(a) for a in arrays)).numpy()
    wide = [a.astype(np.float64) if case.dtype.startswith("float") else a for a in arrays]
    expected = np.asarray(case.meaning(*wide))
    assert y.shape == expected.shape
    atol = case.rtol * float(np.abs(expected.astype(np.float64)).max())
    if case.dtype == "int8" or case.rtol:
        np.testing.assert_allclose(y.astype(np.float64), expected, rtol=case.rtol, atol=atol)
    else:  # Exact but for the double precision of what is expected.
        np.testing.assert_array_equal(y, expected.astype(y.dtype))


@pytest.mark.parametrize("name", CASES)
def test_agrees(name: str) -> None:
    case = CASES[name]
    before = len(fallbacks())
    machine = relax.VirtualMachine(compile_module(module_of(case), HOST), tvm.cpu())
    for sizes in UNKNOWN:
        agrees(case, machine, sizes)
    for sizes in KNOWN:
        executable = compile_module(module_of(case, sizes), HOST)
        agrees(case, relax.VirtualMachine(executable, tvm.cpu()), sizes)
    assert fallbacks()[before:] == []


def source(case: Case, sizes: dict[str, int] | None, kind: str = "ll") -> str:
    executable = compile_module(module_of(case, sizes), AVX512)
    return "".join(module.inspect_source(kind) for module in executable.mod.imports)


@pytest.mark.parametrize(
    "name",
    [
        "elementwise", "row operand", "choice", "split heads", "concatenation", "softmax",
        "softmax of the middle", "sum of the last", "sum of the middle", "layer norm",
        "product by a matrix", "product by a column", "products", "convolution", "lower triangle",
    ],
)  # fmt: skip
def test_vectors(name: str) -> None:
    """Arithmetic and memory accesses are vectors of the machine's width for all sizes."""
    for sizes in (None, {"b": 4, "s": 32, "n": 48}):
        assert "zmm" in source(CASES[name], sizes, "s")


LAUNCH = "TVMBackendParallelLaunch"


@pytest.mark.parametrize(
    "name", ["elementwise", "softmax", "sum of the last", "product by a matrix"]
)
def test_threads_only_for_enough_work(name: str) -> None:
    """Little work runs on the caller alone; if the work is dynamic, that is decided at run time."""
    case = CASES[name]
    launches = re.compile(rf"@__{LAUNCH}")
    assert not launches.search(source(case, {"b": 1, "s": 2, "n": 16}))
    assert launches.search(source(case, {"b": 8, "s": 128, "n": 128}))
    assert launches.search(source(case, None))


@pytest.mark.parametrize(
    "name", ["transposition", "transposition of all", "sum with a transposed one"]
)
def test_transpositions_read_whole_lines(name: str) -> None:
    """Within the loop over vectors is one over the axis along which the operand is contiguous."""
    with HOST:
        lowered = relax_pipeline(HOST)(module_of(CASES[name]))
    vectors: list[Any] = []
    for func in lowered.functions.values():
        if isinstance(func, tirx.PrimFunc):
            tvm_ffi.structural_walk(func.body, (tirx.For, vectors.append))
    inner = [loop.body for loop in vectors if VECTOR in loop.annotations]
    assert [int(body.extent) for body in inner if isinstance(body, tirx.For)] == [16]


def test_positions_are_not_divided() -> None:
    """Axes whose positions are compared are not fused with others: no quotient for each element."""
    assert not re.search(r"[su](?:div|rem) <", source(CASES["lower triangle"], None))


def test_rows_of_one_matrix_are_parallel() -> None:
    """A leading axis of 1 does not keep the tiles on one thread."""
    launches = re.compile(rf"@__{LAUNCH}")
    assert launches.search(source(CASES["products"], {"b": 1, "s": 128, "n": 128}))


def test_tiles_stay_in_registers() -> None:
    """The innermost loop of a product loads, multiplies and adds, and stores nothing."""
    lines = source(CASES["product by a matrix"], {"b": 8, "s": 128, "n": 128}, "s").splitlines()
    loops, current = [], []
    for line in lines:
        if re.match(r"\.LBB\S+:", line):
            current = []
        current.append(line)
        if "vfmadd" in line and current not in loops:
            loops.append(current)
    hot = [loop for loop in loops if sum("vfmadd" in x and "zmm" in x for x in loop) >= 8]
    assert hot
    for loop in hot:
        body = loop[: next(i for i, x in enumerate(loop) if re.match(r"\s*j\w+\s", x)) + 1]
        assert not [x for x in body if re.search(r"mov\w+\s+%zmm\d+, .*\(", x)]


def test_unknown_blocks_are_kept() -> None:
    before = len(fallbacks())
    case = Case([("b", "s", "n")], lambda x: op.cumsum(x, 1), lambda x: x.cumsum(1))
    sizes = {"b": 2, "s": 9, "n": 5}
    machine = relax.VirtualMachine(compile_module(module_of(case, sizes), HOST), tvm.cpu())
    agrees(case, machine, sizes)
    assert [entry.partition(":")[0] for entry in fallbacks()[before:]] == ["cumsum"]


def doubling() -> Any:
    """A kernel with little work in a parallel loop of vectors."""
    with IRBuilder() as builder, T.prim_func(s_tir=False):
        T.func_name("doubling")
        attributes = {"global_symbol": "doubling", "tirx.noalias": True, "tersor.kernel": 1}
        T.func_attr(attributes)
        x = T.arg("x", T.buffer((64,), "float32"))
        y = T.arg("y", T.buffer((64,), "float32"))
        with T.parallel(0, 4) as i:
            at = [T.ramp(i * 16, 1, 16)]
            T.buffer_store(y, x[at[0]] + x[at[0]], at)
    return builder.get()


def test_kernels_are_not_rewritten() -> None:
    """Adjacent ops are scheduled but not fused with a kernel, and the kernel is unchanged."""
    builder = relax.BlockBuilder()
    type = relax.TensorType((64,), "float32")
    x = relax.Var("x", type)
    with builder.function("main", [x]):
        with builder.dataflow():
            kernel = builder.add_func(doubling(), "doubling")
            before = builder.emit(op.exp(x))
            doubled = builder.emit(relax.call_tir(kernel, [before], out_ty=type))
            y = builder.emit_output(op.negative(doubled))
        builder.emit_func_output(y)
    module = builder.finalize()
    with HOST:
        lowered = relax_pipeline(HOST)(module)
    assert tvm_ffi.structural_equal(lowered["doubling"].body, module["doubling"].body)
    names = {name.name_hint.removeprefix("tir_") for name in lowered.get_global_vars()}
    assert {"exp", "negative", "doubling"} <= names
    executable = compile_module(module, HOST)
    text = "".join(m.inspect_source("ll") for m in executable.mod.imports)
    assert f"@__{LAUNCH}" in text
    numbers = np.linspace(-1, 1, 64, dtype=np.float32)
    got = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(numbers)).numpy()
    np.testing.assert_allclose(got, -2 * np.exp(numbers), rtol=1e-6)


def test_reshapes_copy_nothing() -> None:
    """A reshape of an intermediate value is a view of it."""
    symbols = [tirx.Var(name, "int64") for name in "bs"]
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([*symbols, 64], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(op.exp(x))
            y = builder.emit(op.reshape(y, [*symbols, 4, 16]))
            y = builder.emit_output(op.sum(y, -1))
        builder.emit_func_output(y)
    with HOST:
        lowered = relax_pipeline(HOST)(builder.finalize())
    names = {v.name_hint for v in lowered.get_global_vars()}
    assert not [name for name in names if "reshape" in name]
    executable = compile_module(builder.finalize(), HOST)
    numbers = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32)
    got = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(numbers)).numpy()
    expected = np.exp(numbers).reshape(2, 3, 4, 16).sum(-1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_memory_is_planned_with_unknown_sizes() -> None:
    """Twelve intermediate values share four allocations; a fifth is the result's."""
    symbols = [tirx.Var(name, "int64") for name in "bs"]
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([*symbols, 64], "float32"))
    w = relax.Var("w", relax.TensorType([64, 64], "float32"))
    with builder.function("main", [x, w]):
        with builder.dataflow():
            y = x
            for _ in range(6):
                activated = builder.emit(op.nn.relu(builder.emit(op.matmul(y, w))))
                y = builder.emit(op.add(y, builder.emit(op.nn.softmax(activated, -1))))
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    text = compile_module(builder.finalize(), HOST).as_text()
    calls = [line for line in text.splitlines() if line.strip().startswith("call")]
    assert sum("alloc_storage" in line for line in calls) <= 5
