"""Formats of weights: what each accepts and packs; and that another one is a class of its own and nothing
else, by one that is registered here only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

pytest.importorskip("tvm", reason="the tvm backend is not installed")

from kernels import MACHINES

from tersor.backends.tvm import build, derive, open_session, supports, tuning
from tersor.backends.tvm.derive import compute, values_of
from tersor.backends.tvm.formats import (
    FLOAT,
    FORMATS,
    QUANTIZED,
    Block,
    Format,
    Operand,
    choose,
    register,
)
from tersor.backends.tvm.fuse import fuse
from tersor.backends.tvm.kernels import emit, linear
from tersor.backends.tvm.kernels.blocking import PANEL, cover, in_panels, padded
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.linear_spec import Linear
from tersor.backends.tvm.options import Choice
from tersor.built import Split
from tersor.ir import Affine, Cast, Dense, DType, Encoding, Graph, Value, parse
from tersor.numerics.affine import ActivationForm
from tersor.ops import TABLE
from tersor.target import Target

RNG = np.random.default_rng(0)
VNNI = MACHINES["vnni"].isa
K, N = 40, 72  # The last panel overlaps the one before.


def pack_shared(values: np.ndarray) -> np.ndarray:
    """s8[k, n] as int8[panels, 2, k, 16]."""
    halves = in_panels(values, len(values)).reshape(len(values), -1, 2, 16)
    return np.ascontiguousarray(halves.transpose(1, 2, 0, 3))


class Shared(Format):
    """Bytes with one scale, decoded in registers by the product: w = scale * v, for float rows."""

    name = "shared"
    rows = FLOAT
    steps = (("pack_shared", pack_shared),)

    def accepts(self, weight: Encoding) -> str | None:
        affine = weight.layer(Affine)
        fits = affine is not None and affine.storage is DType.I8 and affine.axis is None
        return None if fits and affine.is_symmetric else "it is not i8 with one scale"

    def operands(self, k: int, n: int, isa: Isa) -> tuple[Operand, ...]:
        panels = padded(n, PANEL) // PANEL
        return Operand("w", (panels, 2, k, 16), "int8"), Operand("scale", (1,), "float32")

    def pack(self, weight: Encoding, isa: Isa) -> Any:
        affine = weight.layer(Affine)
        steps, sources = values_of(affine)
        return ((*steps, ("pack_shared",)), sources), ((), (affine.scale.reshape(1),))

    def emit_block(self, block: Block) -> None:
        w, scale = block.weights
        lanes, k = block.isa.lanes, int(w.shape[2])

        def add(total: Any, x: Any, v: Any) -> Any:
            return total + x * v

        def multiply(tile: Any, span: Any) -> None:
            with tile.reduce_over((0, k)) as step:
                factor = emit.splat(scale[0], lanes)
                decoded = [
                    emit.bind(emit.cast(v, f"float32x{lanes}") * factor)
                    for v in tile.weights(w, block.panel, step, 1)
                ]
                for r in range(tile.rows):
                    x = emit.splat(block.x[block.row + tile.first + r, step], lanes)
                    tile.add(r, add, emit.bind(x), decoded)

        cover(block.isa, block.valid, block.acc, 1, multiply)


@pytest.fixture
def shared() -> Iterator[Format]:
    with patch.dict(FORMATS), patch.dict(derive._STEPS):
        register(Shared)
        yield FORMATS["shared"]


def int8(axis: int | None = 1, *, zero: int = 0, dtype: type = np.int8, block: int = 0) -> Affine:
    values = RNG.integers(-127, 128, (K, N)).astype(dtype)
    shape: tuple[int, ...] = () if axis is None else (values.shape[axis],)
    if block:
        shape = (K // block, N)
    scale = np.asarray(RNG.uniform(0.01, 0.02, shape), np.float32)
    return Affine(values, scale, np.full(shape, zero, dtype), axis, block)


FLOATS = RNG.standard_normal((K, N)).astype(np.float32)
HALF = Cast(FLOATS.astype(np.float16), DType.F32)


# -- those that there are --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weight", "reason"),
    [
        ("float32", Dense(FLOATS), None),
        ("float32", HALF, None),
        ("float32", int8(0, zero=3), None),
        ("float32", Dense(FLOATS.astype(np.float16)), "its numbers are f16, not f32"),
        ("int8", int8(), None),
        ("int8", Dense(FLOATS), "it is dense, not i8 integers with scales"),
        ("int8", int8(dtype=np.uint8), "it is affine(u8, axis=1), not i8 integers with scales"),
        ("int8", int8(None), "it is affine(i8), whose scales are not one per column"),
        ("int8", int8(0), "it is affine(i8, axis=0), whose scales are not one per column"),
        ("int8", int8(0, block=8), "it is affine(i8, axis=0, block=8), whose scales are not one per column"),
        ("int8", int8(zero=1), "it has zero points"),
    ],
)  # fmt: skip
def test_a_format_accepts_a_weight_or_says_why_not(
    name: str, weight: Encoding, reason: str | None
) -> None:
    assert FORMATS[name].accepts(weight) == reason


@pytest.mark.parametrize("name", ["float32", "int8", "shared"])
@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "turned in memory"])
def test_packed_arrays_match_the_operands_of_the_kernel(
    shared: Format, name: str, turned: bool
) -> None:
    weight: Encoding = {"float32": HALF, "int8": int8(), "shared": int8(None)}[name]
    plain, format = weight, FORMATS[name]
    if turned:
        weight = plain.permute((1, 0)).take(np.arange(N), 0).permute((1, 0))
        assert weight.memory_order == (1, 0)
    assert format.accepts(weight) is None
    for isa in (machine.isa for machine in MACHINES.values()):
        packed = [compute(*derived) for derived in format.pack(weight, isa)]
        wanted = format.operands(K, N, isa)
        assert [(a.shape, str(a.dtype)) for a in packed] == [(o.shape, o.dtype) for o in wanted]
        assert [a.nbytes for a in packed] == [o.nbytes for o in wanted]
        for got, derived in zip(packed, format.pack(plain, isa), strict=True):
            np.testing.assert_array_equal(got, compute(*derived))
        vectors = [compute(*derived) for derived in format.columns(weight, packed)]
        assert [v.shape for v in vectors] == [(N,)] * format.vectors
        if name == "int8":
            np.testing.assert_array_equal(vectors[1], weight.layer(Affine).values.sum(0))


def test_a_format_is_chosen_by_the_form_of_the_rows() -> None:
    def chosen(weight: Encoding, rows: ActivationForm) -> str | None:
        format = choose(weight, rows, VNNI)
        return None if format is None else format.name

    assert chosen(int8(), FLOAT) == "float32"
    assert chosen(int8(), QUANTIZED) == "int8"
    assert chosen(Dense(FLOATS), QUANTIZED) is None
    assert chosen(Dense(FLOATS.astype(np.float16)), FLOAT) is None


# -- another one -----------------------------------------------------------------------------------

TEXT = """graph main(%x: f32[b, s, 40]) -> (y = %y, z = %z) {
  %y: f32[b, s, 40] = Identity(%x)
  %z: f32[b, s, 40] = Identity(%x)
}"""


def layers() -> tuple[Graph, dict[str, Affine]]:
    """Two layers, of weights with one scale and with one per column."""
    graph, weights = TABLE.graph("main"), {"one": int8(None), "each": int8()}
    (given,) = parse(TEXT, TABLE).inputs
    x = graph.add_input("x", given.type)
    results: list[Value] = []
    for name, weight in weights.items():
        inputs = [x, graph.constant(weight, name)]
        results.append(graph.emit("tersor.Linear", inputs, {"activation": "relu"}))
    graph.set_outputs(results, list(weights))
    return graph, weights


def test_another_format_is_fused_compiled_and_correct(shared: Format) -> None:
    graph, weights = layers()
    choice = Choice.of(Target.host())
    isa = Isa.of(choice.features, choice.cores)
    assert supports("tersor.Linear", [weights["one"]], FLOAT) is None
    assert "affine(i8, axis=1)" in (supports("tersor.Linear", [weights["each"]], FLOAT) or "")
    assert [n.attrs["format"] for n in fuse(graph, isa).nodes] == ["shared", "float32"]
    assert sorted(kernel.format for kernel in _kernels(graph, isa)) == ["float32", "shared"]
    built = build(graph, choice)
    assert isinstance(built, Split)
    bytes_of = sorted(array.nbytes for array in built.weights.arrays)
    assert K * N in bytes_of, "the file has the integers, no padding"
    session = open_session(built, choice)
    for rows in (1, 5, 70):
        x = RNG.standard_normal((1, rows, K)).astype(np.float32)
        outputs = session.run({"x": x})
        for name, weight in weights.items():
            want = np.maximum(x.astype(np.float64) @ weight.decode().astype(np.float64), 0)
            # Sums of 40 products, each rounded a few times.
            np.testing.assert_allclose(outputs[name], want, rtol=0, atol=1e-5, err_msg=name)


def _kernels(graph: Graph, isa: Isa) -> list[Linear]:
    return list(tuning.kernels_of(fuse(graph, isa), isa, [{"b": 1, "s": 5}]))


@pytest.mark.parametrize("machine", MACHINES)
def test_another_format_has_a_kernel_for_every_isa(shared: Format, machine: str) -> None:
    """Tuning has operands for it too."""
    isa, spec = MACHINES[machine].isa, Linear(K, N, format="shared")
    function, (*given, y) = linear.kernel(spec, isa), tuning.operands(spec, isa, 5)
    assert len(function.params) == len(given) + 1 and y.shape == (1, 5, N)
    assert [(a.shape, str(a.dtype)) for a in given[1:3]] == [
        (o.shape, o.dtype) for o in shared.operands(K, N, isa)
    ]


def test_steps_of_a_missing_format_are_unknown(shared: Format) -> None:
    steps, sources = shared.pack(int8(None), VNNI)[0]
    with patch.dict(derive._STEPS):
        del derive._STEPS["pack_shared"]
        with pytest.raises(KeyError, match="pack_shared"):
            compute(steps, sources)


def test_names_are_unique_and_vectors_limited(shared: Format) -> None:
    with pytest.raises(ValueError, match="two formats are named shared"):
        register(Shared)

    class Wide(Shared):
        name, vectors = "wide", 3

    with pytest.raises(ValueError, match="more than 2 numbers per column"):
        register(Wide)
    assert "wide" not in FORMATS
