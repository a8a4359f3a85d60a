"""Constants that a model stores in few bits and makes floats of itself come in as encodings, and the
file keeps them as they came. Models are written as exporters write them; the oracle is ONNX Runtime on
the model as it is, not optimized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import tersor
from tersor.built import main_file
from tersor.frontends.onnx import import_model
from tersor.ir import Affine, Cast, Dense, Encoding
from tersor.passes.canonicalize import canonicalization
from tersor.pipeline import Pipeline

RNG = np.random.default_rng(0)
K, N = 64, 48
Q = RNG.integers(-128, 128, (K, N)).astype(np.int8)
U = RNG.integers(0, 256, (K, N)).astype(np.uint8)
X = RNG.standard_normal((3, K)).astype(np.float32)
PER_COLUMN = RNG.uniform(0.01, 0.02, N).astype(np.float32)
PER_ROW = RNG.uniform(0.01, 0.02, (K, 1)).astype(np.float32)
SCALE = np.array(0.0125, np.float32)


@dataclass(frozen=True)
class Spelling:
    """Nodes that make ``w`` of constants, as (op, inputs, output, attributes)."""

    nodes: Sequence[tuple[Any, ...]]
    constants: dict[str, np.ndarray]
    held: str  # How the weight of the linear layer is described.


def _cast(of: str = "q", to: int = TensorProto.FLOAT, made: str = "c") -> tuple[Any, ...]:
    return "Cast", [of], made, {"to": to}


SPELLINGS = {
    "cast, mul": Spelling([_cast(), ("Mul", ["c", "s"], "w")], {"q": Q, "s": SCALE}, "affine(i8)"),
    "mul by the cast": Spelling(
        [_cast(), ("Mul", ["s", "c"], "w")], {"q": Q, "s": PER_COLUMN}, "affine(i8, axis=1)"
    ),
    "a scale a row": Spelling(
        [_cast(), ("Mul", ["c", "s"], "w")], {"q": Q, "s": PER_ROW}, "affine(i8, axis=0)"
    ),
    "div": Spelling(
        [_cast(), ("Div", ["c", "s"], "w")], {"q": Q, "s": 1 / PER_COLUMN}, "affine(i8, axis=1)"
    ),
    "sub, mul": Spelling(
        [_cast(), ("Sub", ["c", "z"], "d"), ("Mul", ["d", "s"], "w")],
        {"q": U, "s": PER_COLUMN, "z": np.array(128, np.float32)},
        "affine(u8, axis=1)",
    ),
    "a zero point a column": Spelling(
        [_cast(), ("Sub", ["c", "z"], "d"), ("Mul", ["d", "s"], "w")],
        {"q": U, "s": SCALE, "z": RNG.integers(0, 256, (1, N)).astype(np.float32)},
        "affine(u8, axis=1)",
    ),
    "a zero point that is no level": Spelling(
        [_cast(), ("Sub", ["c", "z"], "d"), ("Mul", ["d", "s"], "w")],
        {"q": U, "s": SCALE, "z": np.array(127.5, np.float32)},
        "affine(u8)",
    ),
    "a zero point beyond int8": Spelling(
        [_cast(), ("Sub", ["c", "z"], "d"), ("Mul", ["d", "s"], "w")],
        {"q": Q, "s": SCALE, "z": np.array(-300, np.float32)},
        "affine(i8)",
    ),
    "mul, add": Spelling(
        [_cast(), ("Mul", ["c", "s"], "d"), ("Add", ["d", "z"], "w")],
        {"q": U, "s": PER_COLUMN, "z": -128 * PER_COLUMN + np.float32(0.001)},
        "affine(u8, axis=1)",
    ),
    "sub of integers": Spelling(
        [_cast(to=TensorProto.INT32), ("Sub", ["c", "z"], "d"), _cast("d", made="e"),
         ("Mul", ["e", "s"], "w")],
        {"q": U, "s": PER_COLUMN, "z": np.array(131, np.int32)},
        "affine(u8, axis=1)",
    ),
    "DequantizeLinear": Spelling(
        [("DequantizeLinear", ["q", "s", "z"], "w", {"axis": 1})],
        {"q": U, "s": PER_COLUMN, "z": RNG.integers(0, 256, N).astype(np.uint8)},
        "affine(u8, axis=1)",
    ),
    "DequantizeLinear in blocks": Spelling(
        [("DequantizeLinear", ["q", "s"], "w", {"axis": 0, "block_size": 16})],
        {"q": Q, "s": RNG.uniform(0.01, 0.02, (K // 16, N)).astype(np.float32)},
        "affine(i8, axis=0, block=16)",
    ),
    "DequantizeLinear of four bits": Spelling(
        [("DequantizeLinear", ["q", "s"], "w", {"axis": 0, "block_size": 16})],
        {"q": (Q // 16).astype(ml_dtypes.int4),
         "s": RNG.uniform(0.1, 0.2, (K // 16, N)).astype(np.float32)},
        "affine(i4, axis=0, block=16)",
    ),
    "blocks by a reshape": Spelling(
        [_cast(), ("Mul", ["c", "s"], "d"), ("Reshape", ["d", "shape"], "w")],
        {"q": Q.reshape(4, 16, N), "s": RNG.uniform(0.01, 0.02, (4, 1, N)).astype(np.float32),
         "shape": np.array([K, N])},
        "affine(i8, axis=0, block=16)",
    ),
    "transposed after": Spelling(
        [_cast(), ("Mul", ["c", "s"], "d"), ("Transpose", ["d"], "w", {"perm": [1, 0]})],
        {"q": np.ascontiguousarray(Q.T), "s": PER_COLUMN.reshape(-1, 1)},
        "affine(i8, axis=1)",
    ),
    "transposed before": Spelling(
        [("Transpose", ["q"], "t", {"perm": [1, 0]}), _cast("t"), ("Mul", ["c", "s"], "w")],
        {"q": np.ascontiguousarray(Q.T), "s": PER_COLUMN},
        "affine(i8, axis=1)",
    ),
    "reshaped": Spelling(
        [("Reshape", ["q", "shape"], "t"), _cast("t"), ("Mul", ["c", "s"], "w")],
        {"q": Q.reshape(-1), "s": PER_COLUMN, "shape": np.array([K, N])},
        "affine(i8, axis=1)",
    ),
    "float16": Spelling([_cast()], {"q": (Q / 64).astype(np.float16).reshape(K, N)}, "cast(f16)"),
    "bfloat16": Spelling([_cast()], {"q": (Q / 64).astype(ml_dtypes.bfloat16)}, "cast(bf16)"),
    "float16, transposed": Spelling(
        [("Transpose", ["q"], "t", {"perm": [1, 0]}), _cast("t", made="w")],
        {"q": np.ascontiguousarray((Q / 64).astype(np.float16).T)},
        "cast(f16)",
    ),
}  # fmt: skip


def model(spelling: Spelling, after: Sequence[onnx.NodeProto] = ()) -> onnx.ModelProto:
    last = spelling.nodes[-1][2]
    nodes = [
        helper.make_node(op, inputs, [made], **(rest[0] if rest else {}))
        for op, inputs, made, *rest in spelling.nodes
    ]
    nodes += after or [helper.make_node("MatMul", ["x", last], ["y"])]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", K])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(v, k) for k, v in spelling.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )


def plain(
    given: onnx.ModelProto, feed: dict[str, np.ndarray], *, optimized: bool = False
) -> np.ndarray:
    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(given.SerializeToString(), options)
    return np.asarray(session.run(None, feed)[0])


def canonical(given: onnx.ModelProto) -> list[Encoding]:
    """How the large constants are held after canonicalization."""
    graph = Pipeline([canonicalization()], level="text").run(import_model(given))
    held = [v.encoding for v in graph.constants.values() if v.encoding is not None]
    return [e for e in held if np.prod(e.type.shape) >= 1024]


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_becomes_an_encoding_and_stays_small(name: str) -> None:
    spelling = SPELLINGS[name]
    given = model(spelling)
    (held,) = canonical(given)
    assert held.describe() == spelling.held
    made = tersor.compile(given, recipe="fp32", measure=False)
    # Sums of 64 products in another order; a scale that was divided by is multiplied by.
    # What is held in four bits is for ONNX Runtime's own kernel, which quantizes x as well.
    want = plain(given, {"x": X}, optimized=name == "DequantizeLinear of four bits")
    np.testing.assert_allclose(
        made.run({"x": X})["y"], want, rtol=0, atol=2e-6 * np.abs(want).max()
    )
    assert len(main_file(made.model)) <= 1.01 * len(given.SerializeToString()) + 600


def test_what_is_read_in_two_forms_is_held_once() -> None:
    """The integers go to a product of integers as well, and under another scale to another layer."""
    nodes = [
        ("Cast", ["q"], "c", {"to": TensorProto.FLOAT}),
        ("Mul", ["c", "s"], "w"),
    ]
    spelling = Spelling(nodes, {"q": Q, "s": SCALE, "t": PER_COLUMN}, "")
    given = model(
        spelling,
        [
            helper.make_node("Mul", ["c", "t"], ["v"]),
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("MatMul", ["x", "v"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
    )
    made = tersor.compile(given, recipe="fp32", measure=False)
    want = plain(given, {"x": X})
    np.testing.assert_allclose(
        made.run({"x": X})["y"], want, rtol=0, atol=2e-6 * np.abs(want).max()
    )
    assert len(main_file(made.model)) < Q.nbytes + 2500


def test_small_constants_become_floats() -> None:
    spelling = SPELLINGS["cast, mul"]
    small = {"q": Q[:, :8].copy(), "s": SCALE}
    graph = Pipeline([canonicalization()]).run(
        import_model(model(Spelling(spelling.nodes, small, "")))
    )
    assert all(isinstance(v.encoding, Dense) for v in graph.constants.values())


def test_weights_beside_dequantized_activations_are_left_to_the_runtime() -> None:
    """ONNX Runtime makes a product of integers of such a pair, and must find it as it is written."""
    spelling = SPELLINGS["DequantizeLinear"]
    level = {"xs": np.array(0.02, np.float32), "xz": np.array(120, np.uint8)}
    given = model(
        Spelling(spelling.nodes, {**spelling.constants, **level}, ""),
        [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
            helper.make_node("MatMul", ["xd", "w"], ["y"]),
        ],
    )
    (held,) = canonical(given)
    assert isinstance(held, Dense)
    made = onnx.load_from_string(
        main_file(tersor.compile(given, recipe="fp32", measure=False).model)
    )
    assert [n.op_type for n in made.graph.node].count("DequantizeLinear") == 2


@pytest.mark.parametrize(
    ("name", "held"),
    [("a scale a row", Affine), ("sub, mul", Affine), ("mul, add", Affine), ("float16", Cast)],
)
def test_rows_of_a_compact_table_are_gathered_as_they_are_held(name: str, held: type) -> None:
    spelling = SPELLINGS[name]
    last = spelling.nodes[-1][2]
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", [last, "ids"], ["y"], axis=0),
    ]
    given = model(spelling, nodes)
    assert isinstance(canonical(given)[0], held)
    made = tersor.compile(given, recipe="fp32", measure=False)
    rows = np.arange(K, dtype=np.float32).reshape(1, K)
    want = plain(given, {"x": rows})
    # q s + b is (q + b / s) s: roundings of the largest number.
    np.testing.assert_allclose(
        made.run({"x": rows})["y"], want, rtol=0, atol=2e-7 * np.abs(want).max()
    )
    graph = onnx.load_from_string(main_file(made.model)).graph
    readers = [n.op_type for n in graph.node if n.input[0].endswith(("quantized", "short"))]
    assert readers == ["Gather"]


def test_a_batch_norm_goes_into_the_scales_of_an_int8_convolution() -> None:
    filters = RNG.integers(-127, 128, (32, 8, 3, 3)).astype(np.int8)
    norm = {k: RNG.uniform(0.5, 2, 32).astype(np.float32) for k in ("g", "b", "m", "v")}
    nodes = [
        helper.make_node("Cast", ["q"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "s"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", "g", "b", "m", "v"], ["y"]),
    ]
    constants = {"q": filters, "s": SCALE, **norm}
    given = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 6, 6])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(v, k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    (held,) = canonical(given)
    assert held.describe() == "affine(i8, axis=0)"
    made = tersor.compile(given, recipe="fp32", measure=False)
    x = RNG.standard_normal((1, 8, 6, 6)).astype(np.float32)
    want = plain(given, {"x": x})
    np.testing.assert_allclose(
        made.run({"x": x})["y"], want, rtol=0, atol=1e-5 * np.abs(want).max()
    )
    assert len(main_file(made.model)) < len(given.SerializeToString()) + 600
