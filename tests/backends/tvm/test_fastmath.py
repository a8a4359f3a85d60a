"""The polynomials of transcendentals, over all float32 numbers' range, against double precision; and
that calls become them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from contract import compiled_in_tvm

from tersor.ir import parse
from tersor.ops import TABLE

tvm = pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tvm import relax  # noqa: E402
from tvm.script.ir_builder import IRBuilder  # noqa: E402
from tvm.tirx.script.builder import ir as T  # noqa: E402

from tersor.backends.tvm.fastmath import POLYNOMIALS  # noqa: E402
from tersor.backends.tvm.kernels import vector  # noqa: E402
from tersor.backends.tvm.pipeline import compile_module, tvm_target  # noqa: E402
from tersor.target import Target  # noqa: E402

COUNT = 1 << 16
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan]
EDGES = [1e-45, 1e-38, 88.722, 88.73, 89.0, 87.32, 87.34, 103.9, 104.0, 3.4e38, 9.0, 3.92, 20.0]
SQRT_HALF = math.sqrt(0.5)

erf = np.vectorize(math.erf)
phi = np.vectorize(lambda x: math.erfc(-x * SQRT_HALF) / 2)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


# Function: its meaning, and the largest error as (relative, absolute).  float32 itself rounds by
# 6e-8 of a number (of subnormal ones, 1.4e-45); the rest is the fit's error and what the steps in
# between round.
FUNCTIONS: dict[str, tuple[Callable[[Any], Any], float, float]] = {
    "exp": (np.exp, 4e-7, 1.2e-38),  # Below the smallest normal number it gives 0.
    "log": (np.log, 1.5e-7, 1e-7),
    "tanh": (np.tanh, 5e-7, 3e-45),
    "erf": (erf, 5e-7, 3e-45),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 2e-7, 2e-7),
    "gelu": (lambda x: x * phi(x), 2e-7, 7e-7),
    "gelu_tanh": (gelu_tanh, 4e-7, 6e-7),
}
# What they give for SPECIAL.
EXACT = {
    "exp": [1, 1, np.inf, 0, np.nan],
    "log": [-np.inf, -np.inf, np.inf, np.nan, np.nan],
    "tanh": [0.0, -0.0, 1, -1, np.nan],
    "erf": [0.0, -0.0, 1, -1, np.nan],
    "sigmoid": [0.5, 0.5, 1, 0, np.nan],
}
LANES = (1, 4, 16)


@pytest.fixture(scope="module")
def numbers() -> np.ndarray:
    """float32 numbers of every magnitude, many of those where functions bend, and the edges."""
    rng = np.random.default_rng(0)
    magnitudes = np.exp2(rng.uniform(-148, 128, COUNT // 2))
    signs = rng.choice([-1, 1], COUNT // 2)
    bends = rng.uniform(-110, 110, COUNT // 4), rng.normal(0, 3, COUNT // 4)
    drawn = np.concatenate([signs * magnitudes, *bends])
    fixed = [*SPECIAL, *EDGES, *(-np.array(EDGES))]
    drawn[: len(fixed)] = fixed
    return drawn.astype(np.float32)


def kernel(name: str, lanes: int) -> Any:
    """A function over explicit vectors."""
    with IRBuilder() as builder, T.prim_func(s_tir=False):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True, "tersor.kernel": 1})
        x = T.arg("x", T.buffer((COUNT,), "float32"))
        y = T.arg("y", T.buffer((COUNT,), "float32"))
        with T.serial(0, COUNT // lanes) as i:
            at = T.ramp(i * lanes, 1, lanes) if lanes > 1 else i
            T.buffer_store(y, getattr(vector, name.rpartition("_x")[0])(x[at]), [at])
    return builder.get()


@pytest.fixture(scope="module")
def compiled() -> Any:
    names = {f"{name}_x{lanes}": lanes for name in FUNCTIONS for lanes in LANES}
    module = tvm.IRModule({name: kernel(name, lanes) for name, lanes in names.items()})
    host = Target.host()
    return tvm.compile(module, tvm_target(host.features, 1))


def computed(compiled: Any, name: str, lanes: int, x: np.ndarray) -> np.ndarray:
    y = tvm.runtime.tensor(np.zeros(COUNT, np.float32))
    compiled[f"{name}_x{lanes}"](tvm.runtime.tensor(x), y)
    return y.numpy()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error(name: str, numbers: np.ndarray, compiled: Any) -> None:
    meaning, relative, absolute = FUNCTIONS[name]
    with np.errstate(all="ignore"):
        expected = meaning(numbers.astype(np.float64)).astype(np.float32).astype(np.float64)
    y = computed(compiled, name, 16, numbers).astype(np.float64)
    infinite = np.isinf(expected) & np.isfinite(numbers)
    np.testing.assert_array_equal(y[infinite], expected[infinite])
    finite = np.isfinite(expected) & np.isfinite(numbers)
    y, expected, x = y[finite], expected[finite], numbers[finite]
    excess = np.abs(y - expected) - (relative * np.abs(expected) + absolute)
    worst = int(excess.argmax())
    assert excess[worst] <= 0, (x[worst], y[worst], expected[worst])


@pytest.mark.parametrize("name", EXACT)
def test_special_numbers(name: str, numbers: np.ndarray, compiled: Any) -> None:
    y = computed(compiled, name, 16, numbers)[: len(SPECIAL)]
    np.testing.assert_array_equal(y, np.array(EXACT[name], np.float32))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_gelu_far_out(name: str, numbers: np.ndarray, compiled: Any) -> None:
    x = np.zeros(COUNT, np.float32)
    x[:5] = [np.inf, np.nan, 3e38, -3e38, -20]
    y = computed(compiled, name, 16, x)[:5]
    assert y[0] == np.inf and np.isnan(y[1]) and y[2] == x[2]
    np.testing.assert_allclose(y[3:], 0, atol=1e-30)


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_no_more_than_one(name: str, numbers: np.ndarray, compiled: Any) -> None:
    y = computed(compiled, name, 16, numbers)
    assert np.nanmax(y) == 1 and np.nanmin(y) == -1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lanes_agree(name: str, numbers: np.ndarray, compiled: Any) -> None:
    """The rest of a loop is computed one by one: it must be the same numbers, but for the last bit
    where LLVM fuses other multiplications with additions."""
    vectors, *others = (computed(compiled, name, lanes, numbers) for lanes in (16, 4, 1))
    for other in others:
        np.testing.assert_allclose(vectors, other, rtol=2.5e-7, atol=0)


def elementwise(op: str, dtype: str) -> Any:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((100,), dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(getattr(relax.op, op)(x))
        builder.emit_func_output(y)
    return compile_module(builder.finalize(), tvm_target(Target.host().features, 1))


def source(executable: Any) -> str:
    return "".join(module.inspect_source("ll") for module in executable.mod.imports)


def applied(executable: Any, x: np.ndarray) -> np.ndarray:
    return relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()


@pytest.mark.parametrize("op", [name.removeprefix("tirx.") for name in POLYNOMIALS])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_call_is_left(op: str, dtype: str) -> None:
    executable = elementwise(op, dtype)
    library = {"sigmoid": "exp"}.get(op, op)
    assert f"@llvm.{library}." not in source(executable)
    assert f"@{library}f(" not in source(executable)
    x = np.linspace(0.1, 9, 100).astype(dtype)
    expected = FUNCTIONS[op][0](x.astype(np.float64))
    rtol = 1e-6 if dtype == "float32" else 5e-4  # Half of a float16's last bit.
    np.testing.assert_allclose(applied(executable, x), expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("op", ["exp", "tanh"])
def test_double_precision_keeps_the_library(op: str) -> None:
    x = np.linspace(-5, 5, 100)
    np.testing.assert_allclose(
        applied(elementwise(op, "float64"), x), FUNCTIONS[op][0](x), rtol=1e-14
    )


@pytest.mark.parametrize("op", ["nearbyint", "isnan"])
def test_tvm_knows_that_these_have_lanes(op: str) -> None:
    """It takes vectors apart around what has none."""
    assert tvm.ir.Op.get(f"tirx.{op}").get_attr("TVectorizable")


def test_the_largest_of_a_row_keeps_nan_in_whatever_lane() -> None:
    text = """graph g(%x: f32[n, 70]) -> (y = %y, z = %z) {
        @last: i64[1] = dense [1]
        %y: f32[n, 1] = ReduceMax(%x, @last)
        %z: f32[n, 1] = ReduceMin(%x, @last)
    }"""
    x = np.random.default_rng(0).standard_normal((70, 70)).astype(np.float32)
    want = x.max(1, keepdims=True), x.min(1, keepdims=True)
    graph = parse(text, TABLE)
    (run,) = compiled_in_tvm(graph)
    for mine, theirs in zip(run({"x": x}), want, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.fill_diagonal(x, np.nan)
    assert all(np.isnan(made).all() for made in run({"x": x}))
