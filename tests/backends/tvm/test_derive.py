"""Parameters derived on loading: a library's file stores what the graph stores. The oracle is ONNX Runtime on the
same graph with decoded weights."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("tvm")

from tersor.backends import ort
from tersor.backends.tvm import library, session
from tersor.backends.tvm.build import build, lower_for
from tersor.backends.tvm.derive import compute, steps_of, values_of
from tersor.backends.tvm.library import ALIGNMENT
from tersor.backends.tvm.options import Choice
from tersor.built import Split
from tersor.errors import InvalidModel
from tersor.ir import Affine, Cast, Dense, DType, Encoding, Graph, Value, parse
from tersor.ops import TABLE
from tersor.passes.quantize.quantize_dynamic import QuantizeDynamic
from tersor.pipeline import Pipeline
from tersor.target import Target

RNG = np.random.default_rng(0)
K, N, ROWS = 64, 32, 40


def _int8(*shape: int) -> np.ndarray:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def _scale(*shape: int) -> np.ndarray:
    return np.asarray(RNG.uniform(0.01, 0.02, shape), np.float32)


def _zeros(dtype: type, *shape: int) -> np.ndarray:
    return np.asarray(RNG.integers(0, 100, shape), dtype)


WEIGHTS: dict[str, Encoding] = {
    "one scale": Affine(_int8(K, N), _scale(), np.zeros((), np.int8)),
    "a scale a column": Affine(_int8(K, N), _scale(N), np.zeros(N, np.int8), 1),
    "a scale a row": Affine(_int8(K, N), _scale(K), np.zeros(K, np.int8), 0),
    "blocks": Affine(_int8(K, N), _scale(K // 16, N), np.zeros((K // 16, N), np.int8), 0, 16),
    "zero points": Affine(_int8(K, N).view(np.uint8), _scale(N), _zeros(np.uint8, N), 1),
    "zero points between": Affine(_int8(K, N), _scale(), np.array(-200.5, np.float32)),
    "four bits": Affine(
        (_int8(K, N) // 16).astype(ml_dtypes.int4),
        _scale(N),
        np.zeros(N, ml_dtypes.int4),
        1,
    ),
    "three bits": Affine(_int8(K, N) // 32, _scale(N), np.zeros(N, np.int8), 1, bits=3),
    "half": Cast((_int8(K, N) / 64).astype(np.float16), DType.F32),
    "bfloat16": Cast((_int8(K, N) / 64).astype(ml_dtypes.bfloat16), DType.F32),
    "transposed": Cast((_int8(N, K) / 64).astype(np.float16), DType.F32).permute((1, 0)),
}
TABLES: dict[str, Encoding] = {
    "one scale": Affine(_int8(ROWS, N), _scale(), np.zeros((), np.int8)),
    "a scale a row": Affine(_int8(ROWS, N), _scale(ROWS), np.zeros(ROWS, np.int8), 0),
    "zero points": Affine(_int8(ROWS, N).view(np.uint8), _scale(ROWS), _zeros(np.uint8, ROWS), 0),
    "zero points between": Affine(_int8(ROWS, N), _scale(N), _zeros(np.float32, N) + 0.5, 1),
    "three bits": Affine(_int8(ROWS, N) // 32, _scale(ROWS), np.zeros(ROWS, np.int8), 0, bits=3),
    "half": Cast((_int8(ROWS, N) / 64).astype(np.float16), DType.F32),
}
TIED = [_int8(ROWS, K).astype(np.float32) / 64, _int8(ROWS, K).astype(np.float16) / 64]
FILTERS = Affine(_int8(16, 8, 3, 3), _scale(16), np.zeros(16, np.int8), 0)


@pytest.mark.parametrize("name", WEIGHTS)
def test_steps_compute_the_decoded_numbers(name: str) -> None:
    steps, sources = steps_of(WEIGHTS[name])
    assert steps
    np.testing.assert_array_equal(compute(steps, sources), WEIGHTS[name].decode())


def test_tied_constants_are_derived_from_the_same_array() -> None:
    table = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    steps, (source,) = steps_of(Dense(table.T))
    assert np.shares_memory(source, table) and source.flags.c_contiguous
    assert steps == (("transpose", 1, 0),)
    weight = Affine(_int8(3, 4), _scale(3), np.zeros(3, np.int8), 0)
    turned = weight.permute((1, 0))
    np.testing.assert_array_equal(compute(*steps_of(turned)), weight.decode().T)
    np.testing.assert_array_equal(compute(*values_of(turned)), weight.values.T)


def graph() -> Graph:
    """A linear layer for each of WEIGHTS, a lookup for each of TABLES, both for each of TIED, and a
    convolution."""
    result = TABLE.graph("compact")
    types = "%x: f32[n, 64], %ids: i64[n, 3], %image: f32[1, 8, 6, 6]"
    inputs = parse(f"graph g({types}) -> (y = %x) {{}}", TABLE).inputs
    x, ids, image = (result.add_input(v.name, v.type) for v in inputs)
    results: list[Value] = []
    for name, weight in WEIGHTS.items():
        results.append(result.emit("tersor.Linear", [x, result.constant(weight, f"weight {name}")]))
    for name, weight in TABLES.items():
        table = result.constant(weight, f"table {name}")
        results.append(result.emit("Gather", [table, ids], {"axis": 0}))
    results.append(result.emit("Conv", [image, result.constant(FILTERS, "filters")]))
    for table in TIED:
        rows = result.constant(Dense(table), f"rows {table.dtype}")
        head = result.constant(Dense(table.T), f"head {table.dtype}")
        to = result.emit("CastLike", [x, rows])
        results += [
            result.emit("Gather", [rows, ids], {"axis": 0}),
            result.emit("tersor.Linear", [to, head]),
        ]
    result.set_outputs(results, [f"y{i}" for i in range(len(results))])
    return result


@pytest.fixture(scope="module")
def built() -> Split:
    result = build(graph())
    assert isinstance(result, Split)
    return result


def test_encoded_weights_are_stored_encoded_with_the_same_meaning(built: Split) -> None:
    n = 5
    feed = {
        "x": RNG.standard_normal((n, K)).astype(np.float32),
        "ids": RNG.integers(0, ROWS, (n, 3)),
        "image": RNG.standard_normal((1, 8, 6, 6)).astype(np.float32),
    }
    written_out = graph()
    for value in written_out.constants.values():
        written_out.set_encoding(value, Dense(value.numpy()))
    opened = ort.open_session(ort.build(written_out))
    want, got = opened.run(feed), session.open_session(built).run(feed)
    assert list(got) == list(want)
    for name, expected in want.items():
        # Sums of 72 products at most, in another order.
        # Halves are rounded to 11 bits.
        most = (2**-10 if expected.dtype == np.float16 else 1e-6) * np.abs(expected).max()
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=most, err_msg=name)
    weight = sum(e.nbytes for e in (*WEIGHTS.values(), *TABLES.values(), *TIED)) + 16 * 8 * 9
    # A byte for each of four bits, or of three.
    wider = K * N // 2 + (K + ROWS) * N * 5 // 8
    assert built.weights.size < weight + wider + 64 * len(built.weights.arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update({1: ["f32[3]", [[["transpose", 0]], [0]]]}), "is no f32\\[3\\]"),
        (lambda p: p.update({1: ["f32[3]", [[["explode"]], [0]]]}), "cannot be made: 'explode'"),
        (lambda p: p.update({1: ["f32[3]", [[["affine", 0, 0]], [0]]]}), "cannot be made"),
    ],
    ids=["another type", "no step", "too few sources"],
)
def test_steps_that_do_not_fit_are_refused(
    change: Callable[[dict[int, object]], None], message: str
) -> None:
    data: dict[int, object] = {0: ["f32[8]", 0]}
    change(data)
    parameters = [library._parameter(i, *p) for i, p in data.items()]  # type: ignore[misc]
    with pytest.raises(InvalidModel, match=message):
        session.parameters(np.zeros(64, np.uint8), parameters)


# -- what is stored --------------------------------------------------------------------------------


def _tied(dtype: str, weight: Encoding) -> Graph:
    """A table, and a head that is the table transposed."""
    given = parse(f"graph g(%ids: i64[n], %x: {dtype}[n, {N}]) -> (y = %x) {{}}", TABLE)
    ids, x = given.inputs
    table, head = given.constant(weight, "table"), given.constant(weight.permute((1, 0)), "head")
    results = [
        given.emit("Gather", [table, ids], {"axis": 0}),
        given.emit("tersor.Linear", [x, head]),
    ]
    given.set_outputs(results, ["r", "y"])
    return given


def _layer(weight: Encoding, recipe: str = "", **bias: Encoding) -> Graph:
    """A linear layer, whose rows are quantized if ``weight`` is int8 of that format."""
    k, _ = weight.type.shape
    given = parse(f"graph g(%x: f32[n, {k}]) -> (y = %x) {{}}", TABLE)
    operands = [given.inputs[0], given.constant(weight, "w")]
    operands += [given.constant(b, name) for name, b in bias.items()]
    given.set_outputs([given.emit("tersor.Linear", operands)], ["y"])
    return Pipeline([QuantizeDynamic(min_elements=0)]).run(given) if recipe else given


def _floats(*shape: int) -> np.ndarray:
    return np.asarray(RNG.standard_normal(shape), np.float32)


WIDE = 1030  # No multiple of a panel's columns.
STORED: dict[str, Callable[[], Graph]] = {
    "tied floats": lambda: _tied("f32", Dense(_floats(WIDE, N))),
    "tied halves": lambda: _tied("f16", Dense(_floats(WIDE, N).astype(np.float16))),
    "tied halves read as floats": lambda: _tied("f32", Cast(_floats(WIDE, N).astype(np.float16), DType.F32)),
    "tied integers": lambda: _tied("f32", Affine(_int8(WIDE, N), _scale(WIDE), np.zeros(WIDE, np.int8), 0)),
    "floats between panels": lambda: _layer(Dense(_floats(100, 33)), b=Dense(_floats(33))),
    "integers read as floats": lambda: _layer(
        Affine(_int8(48, WIDE), _scale(WIDE), np.zeros(WIDE, np.int8), 1), b=Dense(_floats(WIDE))
    ),
    "products of integers": lambda: _layer(Dense(_floats(72, WIDE)), "int8", b=Dense(_floats(WIDE))),
    "no bias": lambda: _layer(Dense(_floats(32, WIDE))),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_a_library_stores_no_more_than_the_graph_does(name: str) -> None:
    """What a kernel needs beyond it, padded or transposed, is derived when the library is loaded."""
    given = STORED[name]()
    weights = lower_for(given, Choice.of(Target.host())).weights(ALIGNMENT)
    assert weights is not None
    weight = {v.encoding.place: v.encoding.nbytes for v in given.constants.values() if v.encoding}
    assert weights.size <= 1.01 * sum(weight.values()) + ALIGNMENT * len(weights.arrays)
