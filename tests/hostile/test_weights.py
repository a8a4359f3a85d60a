"""Weights that are NaN, infinite or zero: nothing crashes or becomes NaN, and reports give reasons."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hostile.table import text
from onnx import ModelProto, numpy_helper

import tersor

SIZE = 80  # Large enough for weights to be quantized.
KINDS = ("nan", "inf", "-inf", "a zero channel", "zeros", "denormal", "huge")


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def weight(kind: str) -> np.ndarray:
    array = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
    match kind:
        case "a zero channel":
            array[:, 3] = 0
        case "zeros":
            array[:] = 0
        case "denormal":
            array *= np.float32(1e-41)
        case "huge":
            array *= np.float32(1e37)
        case _:
            array[1, 2] = np.float32(kind)
    return array


def linear(kind: str) -> ModelProto:
    model = text(f"(float[B, {SIZE}] x) => (float[B, {SIZE}] y) {{ y = MatMul (x, w) }}")
    model.graph.initializer.append(numpy_helper.from_array(weight(kind), "w"))
    return model


def table(kind: str) -> ModelProto:
    model = text(f"(int64[B] i) => (float[B, {SIZE}] y) {{ y = Gather (w, i) }}")
    rows = np.concatenate([weight(kind), weight("a zero channel").T] * 6)
    model.graph.initializer.append(numpy_helper.from_array(rows, "w"))
    return model


def normalized(variance: float, scale: float) -> ModelProto:
    """A convolution and the BatchNormalization that is folded into it."""
    model = text(
        """(float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) {
            h = Conv <kernel_shape = [1, 1]> (x, w)  y = BatchNormalization (h, s, b, m, v)
        }"""
    )
    constants = {
        "w": np.ones((2, 2, 1, 1)),
        "s": [scale, 1],
        "b": [0, 0],
        "m": [0, 0],
        "v": [variance, 1],
    }
    for name, numbers in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.float32), name))
    return model


def floats(model: bytes) -> list[np.ndarray]:
    arrays = [numpy_helper.to_array(t) for t in onnx.load_from_string(model).graph.initializer]
    return [a for a in arrays if a.dtype.kind == "f"]


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [linear, table])
def test_int8_of_strange_weights(make: object, kind: str) -> None:
    assert callable(make)
    model = make(kind)
    artifact = tersor.compile(model, recipe="int8", measure=False)
    assert isinstance(artifact.model, bytes)
    finite = kind not in ("nan", "inf", "-inf")
    reasons = [skip.reason for p in artifact.report.passes for skip in p.skips]
    assert any("NaN or infinity" in reason for reason in reasons) is not finite
    x = np.ones((2, SIZE), np.float32) if make is linear else np.array([0, 90])
    if finite:
        assert all(np.isfinite(a).all() for a in floats(artifact.model))
    else:
        # It stays in float, so that the result is the same, including NaN.
        np.testing.assert_allclose(
            run(artifact.model, x), run(model.SerializeToString(), x), rtol=1e-5
        )


@pytest.mark.parametrize("variance", [0.0, -1.0, np.nan, np.inf, 1e38])
@pytest.mark.parametrize("scale", [0.0, 1.0, np.nan, np.inf])
def test_a_batch_normalization_of_strange_numbers(variance: float, scale: float) -> None:
    model = normalized(variance, scale)
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    converted = tersor.convert(model).model
    assert isinstance(converted, bytes)
    expected = run(model.SerializeToString(), x)
    np.testing.assert_allclose(run(converted, x), expected, rtol=1e-4, atol=1e-5)
