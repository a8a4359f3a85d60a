"""The kernel of linear layers with its epilogues, against the formulas in double precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import HOST, MACHINES, Machine, call, compiled, from_bfloat16, needs, on
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.formats import float32, int8
from tersor.backends.tvm.kernels import emit, linear, linear_spec, vector
from tersor.backends.tvm.kernels.blocking import padded
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.linear_spec import ACTIVATIONS, MIN_ROWS, Linear
from tersor.backends.tvm.kernels.products import K_STEP
from tersor.ir import parse
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate

# Each vector width once; all kinds of integer products are in test_products.
KINDS = ["amx", "vnni", "widen8", "lane4"]
# For tests where the kind makes no difference: a kernel takes a second or more to compile.
HERE = next(name for name in KINDS if MACHINES[name].features <= HOST.features)
ROWS = (1, 2, 15, 16, 17, 31, 63, 64, 65, 130)
# A few roundings in float32, relative to the largest number of a row.
TOLERANCE = 1e-5
COARSE_GELU = (
    4e-5  # The error stated by vector.gelu_coarse, which int8 layers use, with some rounding.
)
QUANTIZER = parse(
    """graph main(%x: f32[n, k]) -> (q = %q, scale = %s, zero = %z) {
  %q: u8[n, k], %s: f32[n, 1], %z: u8[n, 1] = tersor.DynamicQuantizeRows(%x)
}""",
    TABLE,
)
erf = np.vectorize(math.erf, otypes=[np.float64])
MEANING = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


@dataclass
class Layer:
    """A layer's operands. An int8 ``weight`` has ``scale``; ``levels`` and ``ranges`` are x quantized,
    unambiguously: no number of ``x`` is near the middle of two levels."""

    x: np.ndarray
    levels: np.ndarray
    ranges: np.ndarray
    weight: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    residual: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    smooth: np.ndarray

    def operands(self, spec: Linear) -> list[np.ndarray]:
        """What the kernel takes."""
        m, whole = len(self.x), spec.format == "int8"
        lead = (*[1] * (spec.lead - 1), m)
        operands = []
        if spec.quantized:
            # Neither rows nor columns that are not there have to hold anything.
            q = np.full((max(m, MIN_ROWS), padded(spec.k, K_STEP)), 201, np.uint8)
            q[:m, : spec.k] = self.levels
            operands += [q, self.ranges.reshape(*lead, 2)]
        else:
            operands.append(self.x.reshape(*lead, spec.k))
        weight = self.weight if whole else self.weight.astype(np.float32)
        operands.append(int8.pack(weight) if whole else float32.pack(weight))
        operands.append(
            linear_spec.column_vectors(
                spec,
                (self.scale, weight.sum(0)) if whole else (),
                self.bias,
                self.gamma,
                self.beta,
                self.smooth if spec.smooth else None,
            )
        )
        if spec.norm != "none":
            operands.append(self.residual.reshape(*lead, spec.n))
        return operands

    def meaning(self, spec: Linear) -> np.ndarray:
        """y in doubles."""
        if spec.format == "int8":
            scale, zero = self.ranges.astype(np.float64).T[:, :, None]
            total = self.levels.astype(np.int64) @ self.weight.astype(np.int64)
            y = (total - zero * self.weight.sum(0, dtype=np.int64)) * scale * self.scale
        else:
            y = self.x.astype(np.float64) @ self.weight.astype(np.float64)
        y = MEANING[spec.activation](y + self.bias)
        if spec.norm == "none":
            return y
        y = y + self.residual
        if spec.norm == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y / np.sqrt((y * y).mean(-1, keepdims=True) + spec.epsilon) * self.gamma
        return y + self.beta if spec.norm == "layer" else y


def layer(spec: Linear, m: int, seed: int = 0) -> Layer:
    """Random operands, whose results are about one in size."""
    rng = np.random.default_rng(seed)
    k, n, whole = spec.k, spec.n, spec.format == "int8"
    levels = rng.integers(0, 256, (m, k)).astype(np.uint8)
    levels[:, 0], levels[:, 1] = 0, 255
    zero = rng.integers(0, 256, (m, 1)).astype(np.float32)
    step = 2.0 ** rng.integers(-8, -5, (m, 1)).astype(np.float32)
    off = rng.uniform(-0.4, 0.4, (m, k)).astype(np.float32)
    off[(levels == 0) | (levels == 255)] = 0
    weight = rng.integers(-127, 128, (k, n)).astype(np.int8)
    normal = [rng.standard_normal(s).astype(np.float32) for s in ((n,), (m, n), (n,), (n,))]
    return Layer(
        ((levels - zero + off) * step).astype(np.float32),
        levels,
        np.concatenate([step, zero], 1),
        weight if whole else rng.standard_normal((k, n)).astype(np.float32) / math.sqrt(k),
        rng.uniform(0.5, 1, n).astype(np.float32) / (64 * math.sqrt(k)),
        *normal,
        rng.uniform(0.25, 2, n).astype(np.float32),
    )


def run(spec: Linear, machine: Machine, given: Layer, make: Any = linear.kernel) -> list[Any]:
    """Those of y (as numbers, even if bfloat16), q and ranges that the kernel writes."""
    m, n = len(given.x), spec.n
    lead = (*[1] * (spec.lead - 1), m)
    results: list[np.ndarray] = []
    if spec.result:
        dtype = np.uint16 if spec.result == "bfloat16" else np.float32
        results.append(np.full((*lead, n), 7, dtype))
    if spec.quantize:
        results.append(np.full((max(m, MIN_ROWS), padded(n, K_STEP)), 7, np.uint8))
        results.append(np.full((*lead, 2), 7, np.float32))
    outputs = call(compiled(make, spec, machine), given.operands(spec), results)
    y = outputs[0].reshape(m, n) if spec.result else None
    if spec.result == "bfloat16":
        y = from_bfloat16(y)
    q, ranges = (outputs[-2][:m, :n], outputs[-1].reshape(m, 2)) if spec.quantize else (None, None)
    return [y, q, ranges]


def assert_close(got: np.ndarray, want: np.ndarray, allowed: float) -> None:
    """Asserts errors within ``allowed`` of the largest number of the row, or of one."""
    size = np.maximum(np.abs(want).max(-1, keepdims=True, initial=0), 1)
    off = (np.abs(got - want) / size).max(initial=0)
    assert off <= allowed, f"off by {off:.3g}"


def assert_quantized(y: np.ndarray, q: np.ndarray, ranges: np.ndarray) -> None:
    """As the table's op quantizes ``y``. The kernel multiplies by the inverse of a scale, and rounds
    x / scale + zero at once: levels, and zero points, may be the other one where x / scale is halfway."""
    want = evaluate(QUANTIZER, {"x": y})
    np.testing.assert_allclose(ranges[:, :1], want["scale"], rtol=1e-6)
    zeros = ranges[:, 1:] - want["zero"]
    levels = q.astype(np.int64) - want["q"] - zeros
    for apart, exact in (
        (zeros, y.min(-1, keepdims=True) / want["scale"]),
        (levels, y / want["scale"]),
    ):
        assert np.abs(apart).max(initial=0) <= 1
        halfway = np.abs(np.abs(exact - np.floor(exact)) - 0.5)
        clipped = (q == 0) | (q == 255) if apart is levels else False
        assert (halfway[(apart != 0) & ~np.broadcast_to(clipped, apart.shape)] < 1e-3).all()


def check(spec: Linear, machine: Machine, given: Layer) -> None:
    """Checks all results of a kernel."""
    y, q, ranges = run(spec, machine, given)
    want = given.meaning(spec)
    allowed = TOLERANCE
    if spec.activation == "gelu" and spec.format == "int8":
        allowed += COARSE_GELU
    if spec.result == "bfloat16":
        allowed += 2.0**-8  # Half of the last bit of eight, and what the number was off before.
    if y is not None:
        assert_close(y, want, allowed)
    if spec.smooth:
        want = want * given.smooth
    if q is not None and spec.result == "float32":
        assert_quantized(y * given.smooth if spec.smooth else y, q, ranges)
    elif q is not None:
        scale, zero = ranges[:, :1], ranges[:, 1:]
        # Half a level; at the ends another half, by which the zero point was rounded.
        level = scale * 1.001 + allowed
        assert (np.abs((q - zero) * scale - want) <= level).all()
        assert (q.max(-1) >= 254).all()
        assert (q.min(-1) <= 1).all()


# -- integers --------------------------------------------------------------------------------------


@on(KINDS)
def test_int8_layers_are_exact(machine: Machine) -> None:
    """With scales of one and whole zero points and biases, results are whole numbers below 2^24."""
    k, n = (384, 48) if machine is MACHINES[HERE] else (64, 48)
    spec = Linear(k, n, quantized=True)
    for m in ROWS:
        rng = np.random.default_rng(m)
        given = layer(spec, m)
        given.levels = rng.integers(0, 256, (m, k)).astype(np.uint8)
        given.levels[0] = 255
        given.weight = rng.choice(
            np.array([-128, 127, 1, 0], np.int8), (k, n), p=[0.3, 0.5, 0.1, 0.1]
        )
        given.ranges = np.stack([np.ones(m), rng.integers(0, 3, m)], 1).astype(np.float32)
        given.scale = np.ones(n, np.float32)
        given.bias = rng.integers(-9, 9, n).astype(np.float32)
        y, _, _ = run(spec, machine, given)
        np.testing.assert_array_equal(y, given.meaning(spec), f"{m} rows")


# -- everything else -------------------------------------------------------------------------------

# And the kinds of vectors that each is tested on.
SPECS: dict[str, tuple[Linear, tuple[str, ...]]] = {
    "float rows": (Linear(48, 48, activation="relu"), (HERE,)),
    "end of a branch": (
        Linear(384, 384, quantized=True, norm="layer", epsilon=1e-12, quantize=True), (HERE,)
    ),
    "float rows, normalized": (
        Linear(16, 16, norm="rms", epsilon=1e-5, quantize=True), (HERE, "widen8")
    ),
    "smoothed": (
        Linear(64, 64, quantized=True, norm="layer", epsilon=1e-5, quantize=True, smooth=True),
        (HERE, "widen8"),
    ),
    "smoothed, of broken vectors": (Linear(16, 1581, quantize=True, smooth=True), (HERE,)),
    "within a branch": (
        Linear(64, 48, quantized=True, activation="gelu", result="", quantize=True),
        (HERE, "lane4"),
    ),
    "rows too long for registers": (
        Linear(16, 1584, quantized=True, norm="layer", epsilon=1e-5, quantize=True), (HERE,)
    ),
    "long rows quantized": (Linear(16, 1536, quantized=True, quantize=True), (HERE,)),
    "broken vectors": (Linear(83, 75, activation="gelu", quantize=True), (HERE, "widen8", "lane4")),
    "broken vectors, not read again": (Linear(16, 44, quantized=True), (HERE, "widen8")),
    "broken vectors in float32": (Linear(7, 33, format="float32", activation="sigmoid"), (HERE,)),
    "float32": (Linear(384, 48, format="float32"), (HERE,)),
    "float32, normalized": (
        Linear(64, 48, format="float32", norm="layer", epsilon=1e-5, quantize=True), (HERE,)
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "spec, machine",
    [
        pytest.param(spec, MACHINES[kind], id=f"{name}-{kind}", marks=needs(kind))
        for name, (spec, kinds) in SPECS.items()
        for kind in kinds
    ],
)
def test_a_layer_agrees_with_its_formula(spec: Linear, machine: Machine) -> None:
    for m in ROWS if spec.n < 1000 else (3, 70):
        check(spec, machine, layer(spec, m))


@on(["amx"])
def test_results_in_bfloat16(machine: Machine) -> None:
    for n in (144, 77):
        spec = Linear(64, n, quantized=True, result="bfloat16")
        for m in (1, 40, 130):
            check(spec, machine, layer(spec, m))


POINTS = 1024


@dataclass(frozen=True)
class Activations:
    """There is one such kernel."""

    name: str = "activations"


def _activations(spec: Any, isa: Isa) -> Any:
    """A kernel of all activations of the same numbers, and the coarse one."""

    def body() -> None:
        x = emit.parameter("x", (POINTS,), "float32")
        outputs = {a: emit.parameter(a, (POINTS,), "float32") for a in (*ACTIVATIONS, "coarse")}
        functions = {**ACTIVATIONS, "coarse": vector.gelu_coarse}
        with T.serial(0, POINTS // isa.lanes) as step:
            c = emit.bind(step * isa.lanes)
            for name, out in outputs.items():
                value = emit.bind(emit.load(x, c, lanes=isa.lanes))
                emit.store(out, functions[name](value), c, lanes=isa.lanes)

    return emit.function("activations", body)


@on(["vnni", "widen8", "lane4"])
def test_activations(machine: Machine) -> None:
    """From -12 to 12, and powers of two up to 2^100."""
    powers = 2.0 ** np.arange(101)
    x = np.linspace(-12, 12, POINTS, dtype=np.float32)
    x[:101], x[-101:] = -powers, powers
    function = compiled(_activations, Activations(), machine)
    outputs = call(function, [x], [np.zeros(POINTS, np.float32)] * (len(ACTIVATIONS) + 1))
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        for name, got in zip((*ACTIVATIONS, "coarse"), outputs, strict=True):
            if name == "coarse":
                off = np.abs(got - MEANING["gelu"](wide))
                np.testing.assert_array_less(off, 4e-5 + 8e-6 * np.abs(wide))
                continue
            np.testing.assert_allclose(got, MEANING[name](wide), 1e-6, 1e-6, err_msg=name)


@on([HERE])
@pytest.mark.parametrize("lead", [1, 3])
def test_any_number_of_leading_dims_counts_rows(machine: Machine, lead: int) -> None:
    spec = Linear(16, 16, lead=lead)
    check(spec, machine, layer(spec, 33))


@on([HERE])
@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_divides_the_work(machine: Machine, threads: int) -> None:
    """Tasks start early enough to have only existing rows: operands end at an inaccessible page."""
    machine = replace(machine, isa=replace(machine.isa, threads=threads))
    spec = Linear(64, 144, quantized=True)
    for m in (0, *ROWS, 193):
        check(spec, machine, layer(spec, m))


# -- numbers out of the ordinary -------------------------------------------------------------------


@cache
def _odd_rows() -> tuple[np.ndarray, np.ndarray]:
    """Rows, every other one of extreme numbers; and which are not."""
    plain = layer(ODD, 14).x
    rows = plain.copy()
    rows[1] = 0
    rows[3] = -0.0
    rows[5, 3] = 1e30
    rows[7] = np.float32(1e-42)
    rows[9, 0], rows[9, 1:] = 0, np.float32(1e-38)
    rows[11, 7] = np.nan
    rows[13, 2:4] = np.inf, -np.inf
    return plain, rows


ODD = Linear(16, 32)


@on([HERE])
def test_extreme_rows_do_not_affect_others(machine: Machine) -> None:
    """Zeros give the bias, and so do rows too small for a scale; beside a huge number all others are
    zero; infinities give no number. What a row with NaN gives is not said."""
    _, rows = _odd_rows()
    given = layer(ODD, len(rows))
    before, _, _ = run(ODD, machine, given)
    given.x = rows
    y, _, _ = run(ODD, machine, given)
    np.testing.assert_array_equal(y[::2], before[::2])
    for row in (1, 3, 7, 9):
        np.testing.assert_array_equal(y[row], given.bias, f"row {row}")
    np.testing.assert_allclose(
        y[5], 1e30 * given.weight[3].astype(np.float64) * given.scale, rtol=1e-5
    )
    assert not np.isfinite(y[13]).any()


@on([HERE])
def test_extreme_results_are_quantized_like_rows(machine: Machine) -> None:
    """The same rows as results, of an identity in float32."""
    spec = Linear(16, 16, format="float32", quantize=True)
    given = layer(spec, 14)
    given.weight, given.bias = np.eye(16, dtype=np.float32), np.zeros(16, np.float32)
    given.x = np.where(np.isfinite(_odd_rows()[1]), _odd_rows()[1], 3)
    y, q, ranges = run(spec, machine, given)
    np.testing.assert_array_equal(y, given.x)
    whole = [row for row in range(14) if row not in (7, 9)]
    assert_quantized(y[whole], q[whole], ranges[whole])
    # Too small for a scale whose inverse is a number.
    np.testing.assert_array_equal(ranges[[7, 9]], [[1, 0], [1, 0]])
    assert not q[[7, 9]].any()


# -- any layer -------------------------------------------------------------------------------------


@on([HERE, "widen8"])
@settings(max_examples=25)
@given(m=st.integers(0, 200), seed=st.integers(0, 1000))
def test_any_rows(machine: Machine, m: int, seed: int) -> None:
    spec, _ = SPECS["float rows, normalized"]
    check(spec, machine, layer(spec, m, seed))


def test_kernel_names_are_unique() -> None:
    specs = [
        *(spec for spec, _ in SPECS.values()), Linear(16, 16), Linear(16, 16, lead=1), Linear(16, 16, quantize=True),
        *(Linear(16, 16, activation=a, norm="rms", epsilon=e) for a in ACTIVATIONS for e in (1e-5, 1.2e-5)),
    ]  # fmt: skip
    assert len({spec.name for spec in specs}) == len(specs)
    assert all(spec.name.isidentifier() for spec in specs)
