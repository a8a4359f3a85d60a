"""Products of a block of rows with packed columns, on every kind of vector: integers are exact."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from kernels import MACHINES, Machine, build, call, compiled, on
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.formats import FORMATS, QUANTIZED, Block, float32, int8
from tersor.backends.tvm.kernels import emit, products
from tersor.backends.tvm.kernels.blocking import PANEL, padded
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.products import K_STEP
from tersor.ir import Affine
from tersor.target import ISA_LEVELS

EXACT = [name for name in MACHINES if not name.startswith("madd")]
FLOAT = ["vnni", "widen8", "lane4"]  # Where the kinds of float32 vectors differ.


@dataclass(frozen=True)
class Product:
    """A kernel of products alone: rows [rows, k] times columns [k, n]."""

    k: int
    n: int
    rows: int = 32
    dtype: str = "int8"
    variant: str = ""

    @property
    def name(self) -> str:
        return f"product_{self.dtype}{self.variant}_{self.rows}_{self.k}_{self.n}"


def kernel(spec: Product, isa: Isa) -> Any:
    panels, format = padded(spec.n, PANEL) // PANEL, FORMATS[spec.dtype]
    whole = format.rows is QUANTIZED
    k = padded(spec.k, K_STEP) if whole else spec.k

    def body() -> None:
        x = emit.parameter("a", (spec.rows, k), "uint8" if whole else "float32")
        (w,) = format.operands(spec.k, spec.n, isa)
        weights = [emit.parameter(w.name, w.shape, w.dtype)]
        out = emit.parameter("out", (panels, spec.rows, PANEL), format.accumulator)
        with products.tiles(format.uses_tiles(isa)), T.serial(0, panels) as panel:
            acc = emit.scratch((spec.rows, PANEL), format.accumulator)
            rows = T.int64(spec.rows)
            format.emit_block(Block(isa, spec.variant, x, 0, spec.rows, rows, weights, panel, acc))
            with T.serial(0, spec.rows) as r:
                for c in range(0, PANEL, isa.lanes):
                    lanes = isa.lanes
                    emit.store(out, emit.load(acc, r, c, lanes=lanes), panel, r, c, lanes=lanes)

    return emit.function(spec.name, body)


def product(machine: Machine, a: np.ndarray, w: np.ndarray, variant: str = "") -> np.ndarray:
    """``a @ w`` by the kernel; the padding of rows along k is not zero, as that of weights is."""
    (rows, k), n, whole = a.shape, w.shape[1], a.dtype == np.uint8
    spec = Product(k, n, rows, "int8" if whole else "float32", variant)
    if whole:
        given = np.full((rows, padded(k, K_STEP)), 255, np.uint8)
        given[:, :k] = a
        operands = [given, int8.pack(w)]
    else:
        operands = [a, float32.pack(w)]
    out = np.full((padded(n, PANEL) // PANEL, rows, PANEL), 77, np.int32 if whole else np.float32)
    (result,) = call(compiled(kernel, spec, machine), operands, [out])
    whole = np.full((rows, max(n, PANEL)), 99, result.dtype)
    for panel, columns in enumerate(result):
        start = begins(panel, n)
        if panel:  # What two panels have is the same.
            again = slice(start, panel * PANEL)
            np.testing.assert_array_equal(whole[:, again], columns[:, : PANEL * panel - start])
        whole[:, start : start + PANEL] = columns
    assert not whole[:, n:].any(), "the padding of columns is not zero"
    return whole[:, :n]


def begins(panel: int, n: int) -> int:
    return int(min(panel * PANEL, max(n - PANEL, 0)))


def exact(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    return a.astype(np.int64) @ w.astype(np.int64)


# -- packing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("k, n", [(16, 16), (64, 48), (80, 33)])
def test_weights_are_packed_in_the_documented_layout(k: int, n: int) -> None:
    w = np.random.default_rng(0).integers(-128, 128, (k, n)).astype(np.int8)
    packed, floats = int8.pack(w), float32.pack(w.astype(np.float32))
    assert packed.shape == (padded(n, 32) // 32, 2, padded(k, 64) // 4, 64)
    assert floats.shape == (padded(n, 32) // 32, 2, k, 16)
    full = np.zeros((padded(k, 64), max(n, 32)), np.int8)
    full[:k, :n] = w
    for panel, row, within in itertools.product(range(len(packed)), range(len(full)), range(32)):
        half, lane = divmod(within, 16)
        expected = full[row, begins(panel, n) + within]
        assert packed[panel, half, row // 4, lane * 4 + row % 4] == expected
        assert row >= k or floats[panel, half, row, lane] == expected


# -- int8 ------------------------------------------------------------------------------------------


@on(EXACT)
@pytest.mark.parametrize("k, n, rows", [(16, 16, 16), (48, 48, 32), (384, 32, 32)])
def test_int8_products_are_exact(machine: Machine, k: int, n: int, rows: int) -> None:
    rng = np.random.default_rng(k)
    a = rng.integers(0, 256, (rows, k)).astype(np.uint8)
    w = rng.integers(-128, 128, (k, n)).astype(np.int8)
    np.testing.assert_array_equal(product(machine, a, w), exact(a, w))


@on(EXACT)
def test_int8_products_do_not_saturate(machine: Machine) -> None:
    """Every position of 48 holds -128 in one column, with 127 elsewhere, and the other way around; the
    last columns are all -128 and all 127."""
    k, n = 48, 48
    a = np.full((32, k), 255, np.uint8)
    a[1:] -= np.arange(31, dtype=np.uint8)[:, None] * 8
    for low, high in ((-128, 127), (127, -128)):
        w = np.full((k, n), high, np.int8)
        w[np.arange(k), np.arange(n)] = low
        w[:, -2], w[:, -1] = -128, 127
        np.testing.assert_array_equal(product(machine, a, w), exact(a, w))


@on(["madd16", "madd8"])
def test_pairs_in_16_bits_are_exact_for_safe_weights_only(machine: Machine) -> None:
    """Two products of 255 fit 16 bits up to 64 each: 2 * 255 * 64 = 32640. Beyond, they saturate, which is
    why no target gets these instructions by itself (below)."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (32, 48)).astype(np.uint8)
    a[0] = 255
    safe = rng.integers(-64, 65, (48, 48)).astype(np.int8)
    safe[:, 0], safe[:, 1] = 64, -64
    assert int8.is_safe(safe)
    np.testing.assert_array_equal(product(machine, a, safe), exact(a, safe))
    unsafe = safe.copy()
    unsafe[:, 0] = 65
    assert not int8.is_safe(unsafe)
    result, expected = product(machine, a, unsafe), exact(a, unsafe)
    np.testing.assert_array_equal(result[:, 1:], expected[:, 1:])
    assert result[0, 0] == 24 * 32767 < expected[0, 0] == 48 * 255 * 65


@on(["widen16", "widen8"])
@pytest.mark.parametrize("variant", [int8.FOURS, int8.EIGHTS])
@pytest.mark.parametrize("rows", [1, 7, 32])
def test_larger_sums_are_exact_exactly_within_their_limit(
    machine: Machine, variant: str, rows: int
) -> None:
    """Rows of 255 alone, and of 255 where one sign of weights is, with sums at the limit in both directions by
    one weight and up to all of a sum; a weight more, and sums wrap."""
    rng, (limit, _) = np.random.default_rng(rows), int8.UNROLLED[variant]
    k, n = 64, 48
    a = rng.integers(0, 256, (rows, k)).astype(np.uint8)
    w = coarse(rng, k, n)
    size = len(limit.places[0])
    for column, group in enumerate([(127, 1), (64, 0, 0, 64), (50, 40, 38), (128 // size,) * size]):
        for sign in (1, -1):
            for half, places in enumerate(limit.places):
                at = np.array(places) + limit.block * ((column + half) % 4)
                w[at, 2 * column + (sign < 0)] = sign * np.pad(group, (0, size - len(group)))
    a[0] = 255
    assert limit.holds(w)
    assert limit.largest(w).max() == 128
    np.testing.assert_array_equal(product(machine, a, w, variant), exact(a, w))
    for r in range(rows):  # Row by row the activations that push one column furthest.
        a[r] = np.where(w[:, r % 8] > 0, 255, 0) if r % 2 else np.where(w[:, r % 8] < 0, 255, 0)
    np.testing.assert_array_equal(product(machine, a, w, variant), exact(a, w))
    w[list(limit.places[0]), 0] = 128 // size
    w[limit.places[0][-1], 0] += 1
    assert not limit.holds(w)
    a[:] = 255
    result = product(machine, a, w, variant)
    assert (result[:, 0] == exact(a, w)[:, 0] - 2**16).all()
    np.testing.assert_array_equal(result[:, 1:], exact(a, w)[:, 1:])


def coarse(rng: np.random.Generator, k: int, n: int) -> np.ndarray:
    """Random weights whose sums of eight products fit."""
    return rng.integers(-16, 17, (k, n)).astype(np.int8)


@pytest.mark.parametrize("level", [None, *ISA_LEVELS])
def test_variants_are_for_targets_with_16_bit_pair_sums(level: str | None) -> None:
    isa = Isa.of(ISA_LEVELS[level] if level else (), 1)
    rng = np.random.default_rng(0)
    pairs = np.tile(np.array([[64], [64], [0], [0]], np.int8), (4, 32))  # 128 a pair, 256 in two.
    wild = rng.integers(-127, 128, (16, 32)).astype(np.int8)
    fours = np.full((16, 32), 32, np.int8)
    given = (coarse(rng, 16, 32), fours, pairs, wild)
    words = [FORMATS["int8"].variant(column(w), isa) for w in given]
    assert words == ([int8.EIGHTS, int8.FOURS, int8.SAFE, ""] if isa.dot == "widen" else [""] * 4)


def column(values: np.ndarray) -> Affine:
    n = values.shape[1]
    return Affine(values, np.ones(n, np.float32), np.zeros(n, np.int8), 1)


def test_weights_are_safe_if_no_pair_sum_overflows() -> None:
    """All pairs of one column, with the bytes that maximize and minimize their sum."""
    every = np.arange(-128, 128)
    for pair in itertools.product(every[::5], every[1::3]):
        above, below = (255 * sum(f(w, 0) for w in pair) for f in (max, min))
        weight = np.array(pair, np.int8)[:, None]
        fits = below >= -(2**15) and above < 2**15
        assert int8.is_safe(weight) == fits, pair
    assert int8.is_safe(np.array([[0], [64], [127]], np.int8)), "a single row is not a pair"
    assert not int8.is_safe(np.array([[0], [0], [64], [65]], np.int8))


@pytest.mark.parametrize("level", [None, *ISA_LEVELS])
def test_no_target_gets_saturating_products(level: str | None) -> None:
    isa = Isa.of(ISA_LEVELS[level] if level else (), 1)
    assert isa.dot in ("amx", "vnni", "widen", "lane")


# -- float32 ---------------------------------------------------------------------------------------


@on(FLOAT)
@pytest.mark.parametrize("k, n", [(16, 16), (528, 48)])
def test_float_products_agree_with_double_precision(machine: Machine, k: int, n: int) -> None:
    """528: more steps than accumulators stay in registers for. A sum of k products in float32 is off by
    at most k roundings (2^-24) of the sum of their sizes."""
    rng = np.random.default_rng(k)
    a, w = (rng.standard_normal(s).astype(np.float32) for s in ((32, k), (k, n)))
    expected = a.astype(np.float64) @ w.astype(np.float64)
    allowed = k * 2.0**-24 * (np.abs(a) @ np.abs(w))
    assert (np.abs(product(machine, a, w) - expected) <= allowed).all()


@on(FLOAT)
def test_nan_stays_in_its_row_and_column(machine: Machine) -> None:
    a, w = np.ones((32, 16), np.float32), np.ones((16, 32), np.float32)
    a[5, 3], w[:, 7] = np.nan, np.inf
    result = product(machine, a, w)
    assert np.isnan(result[5]).all()
    assert (np.delete(result[:, 7], 5) == np.inf).all()
    rest = np.delete(np.delete(result, 5, 0), 7, 1)
    assert (rest == 16).all()


# -- registers -------------------------------------------------------------------------------------


def inner_loops(assembly: str) -> Iterator[list[str]]:
    """The instructions of each innermost loop."""
    lines = assembly.splitlines()
    labels = {line.partition(":")[0]: i for i, line in enumerate(lines) if line.startswith(".LBB")}
    for end, line in enumerate(lines):
        jump = re.match(r"\s+j\w+\s+(\.LBB\w+)$", line)
        start = labels.get(jump[1], end) if jump else end
        if start < end and not any(at in range(start + 1, end) for at in labels.values()):
            yield [text.strip() for text in lines[start + 1 : end] if text.startswith("\t")]


@pytest.mark.parametrize(
    "machine, dtype, variant, instruction, most",
    [
        ("widen8", "float32", "", "vfmadd", 12),
        ("vnni", "float32", "", "vfmadd", 24),
        ("madd8", "int8", "", "vpmaddubsw", 8),
        ("widen8", "int8", int8.FOURS, "vpmaddubsw", 12),
        ("widen8", "int8", int8.EIGHTS, "vpmaddubsw", 16),
        ("vnni", "int8", "", "vpdpbusd", 16),
    ],
)
def test_accumulators_stay_in_registers(
    machine: str, dtype: str, variant: str, instruction: str, most: int
) -> None:
    """No inner loop of products writes to memory: one that spills is three times slower. Loops of few
    instructions may be unrolled, so there are as many as a tile has accumulators, or a multiple of it."""
    # Of 64 inputs, loops over 16 are unrolled as a whole, and their weights kept for the next rows.
    k = 512 if variant == int8.EIGHTS else 64
    spec, target = Product(k, 32, 32, dtype, variant), MACHINES[machine]
    built = build(spec.name, kernel(spec, target.isa), target)
    [library] = [m for m in (built.mod, *built.mod.imports) if m.kind == "llvm"]
    counts = []
    for body in inner_loops(library.inspect_source("s")):
        if any(instruction in line for line in body):
            counts.append(sum(instruction in line for line in body))
            assert not [line for line in body if re.match(r"v?mov\S+\s+%.mm\d+, .*\)$", line)], body
    assert any(count % most == 0 for count in counts)
