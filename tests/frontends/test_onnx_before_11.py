"""Forms of ops that ended before opset 11 keep their meaning: compared to numpy, because runtimes of
today have few kernels for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import parser

from tersor.errors import Unsupported
from tersor.frontends.onnx import export_model, import_model
from tersor.passes import optimization
from tersor.pipeline import Pipeline

X = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
C = np.array([0.5, -1.5, 2], np.float32)
INPUT = "(float[2, 3, 4, 5] x) => (float[N, M, H, W] y)"
CHANNELS = "<float[3] c = {0.5, -1.5, 2}>"

Case = tuple[int, str, Callable[[], Any]]

CASES: dict[str, Case] = {
    "consumed inputs": (1, f"{INPUT} {{ y = Relu <consumed_inputs = [0]> (x) }}", lambda: X.clip(0)),
    "broadcast at an axis": (
        6,
        f"{INPUT} {CHANNELS} {{ y = Add <axis = 1, broadcast = 1> (x, c) }}",
        lambda: X + C[:, None, None],
    ),
    "broadcast at an axis from the end": (
        1,
        f"{INPUT} {CHANNELS} {{ y = Mul <axis = -3, broadcast = 1> (x, c) }}",
        lambda: X * C[:, None, None],
    ),
    "broadcast at the end": (
        6,
        f"{INPUT} <float[5] c = {{1, 2, 3, 4, 5}}> {{ y = Sub <broadcast = 1> (x, c) }}",
        lambda: X - np.arange(1, 6, dtype=np.float32),
    ),
    "cast by name": (
        1,
        "(float[2, 3, 4, 5] x) => (int32[N, M, H, W] y) { y = Cast <to = \"INT32\"> (x) }",
        lambda: X.astype(np.int32),
    ),
    "clip by attributes": (6, f"{INPUT} {{ y = Clip <min = -0.5, max = 0.25> (x) }}", lambda: X.clip(-0.5, 0.25)),
    "clip from one side": (6, f"{INPUT} {{ y = Clip <max = 0.25> (x) }}", lambda: X.clip(None, 0.25)),
    "concat without an axis": (1, f"{INPUT} {{ y = Concat (x, x) }}", lambda: np.concatenate([X, X], 1)),
    "dropout in test mode": (1, f"{INPUT} {{ y = Dropout <is_test = 1> (x) }}", lambda: X),
    "mask of dropout": (
        7,
        f"{INPUT} {{ d, m = Dropout <ratio = 0.1> (x)  y = Mul (d, m) }}",
        lambda: X,
    ),
    "statistics of each place": (
        7,
        "(float[2, 3] x) => (float[2, 3] y) <float[3] c = {0.5, -1.5, 2}, float[3] v = {1, 2, 3}> "
        "{ y = BatchNormalization <spatial = 0, epsilon = 0.0> (x, c, c, c, v) }",
        lambda: (X[:, :, 0, 0] - C) / np.sqrt(np.array([1, 2, 3], np.float32)) * C + C,
    ),
    "batch normalization in test mode": (
        6,
        f"{INPUT} <float[3] c = {{0.5, -1.5, 2}}, float[3] v = {{1, 2, 3}}> "
        "{ y = BatchNormalization <is_test = 1, epsilon = 0.0> (x, c, c, c, v) }",
        lambda: (
            (X - C[:, None, None])
            / np.sqrt(np.array([1, 2, 3], np.float32))[:, None, None]
            * C[:, None, None]
            + C[:, None, None]
        ),
    ),
    "gemm that broadcasts": (
        6,
        "(float[2, 3] x) => (float[N, M] y) <float[3] c = {0.5, -1.5, 2}> "
        "{ y = Gemm <broadcast = 1, transB = 1> (x, x, x0)  x0 = Slice <axes = [0], starts = [0], ends = [2]> (c) }",
        lambda: X[:, :, 0, 0] @ X[:, :, 0, 0].T + C[:2],
    ),
    "norm of a float order": (
        1,
        f"{INPUT} {{ y = GlobalLpPool <p = 2.0> (x) }}",
        lambda: np.sqrt((X.astype(np.float64) ** 2).sum((2, 3), keepdims=True)).astype(np.float32),
    ),
    "pad by paddings": (
        1,
        f"{INPUT} {{ y = Pad <paddings = [0, 0, 1, 0, 0, 0, 0, 2], value = 3.0> (x) }}",
        lambda: np.pad(X, [(0, 0), (0, 0), (1, 0), (0, 2)], constant_values=3),
    ),
    "slope a channel": (
        6,
        f"{INPUT} {CHANNELS} {{ y = PRelu (x, c) }}",
        lambda: np.where(X >= 0, X, X * C[:, None, None]),
    ),
    "reshape by an attribute": (1, "(float[2, 3, 4, 5] x) => (float[N, M] y) { y = Reshape <shape = [0, -1]> (x) }", lambda: X.reshape(2, -1)),
    "resize by scales": (
        10,
        f"{INPUT} <float[4] s = {{1, 1, 2, 3}}> {{ y = Resize <mode = \"nearest\"> (x, s) }}",
        lambda: X.repeat(2, 2).repeat(3, 3),
    ),
    "resize to less": (
        10,
        f"{INPUT} <float[4] s = {{1, 1, 0.6, 0.7}}> {{ y = Resize <mode = \"nearest\"> (x, s) }}",
        lambda: X[:, :, [0, 2]][..., [0, 2, 3]],
    ),
    "resize to less and more": (
        10,
        f"{INPUT} <float[4] s = {{1, 1, 0.6, 1.6}}> {{ y = Resize (x, s) }}",
        lambda: X[:, :, [0, 2]][..., [0, 0, 1, 1, 2, 3, 3, 4]],
    ),
    "resize by computed scales": (
        10,
        f"{INPUT} <float[4] s = {{1, 1, 1.2, 3.2}}, float[4] d = {{1, 1, 2, 2}}> {{ half = Div (s, d)  y = Resize (x, half) }}",
        lambda: X[:, :, [0, 2]][..., [0, 0, 1, 1, 2, 3, 3, 4]],
    ),
    "upsample by attributes": (7, f"{INPUT} {{ y = Upsample <scales = [1.0, 1.0, 2.0, 3.0]> (x) }}", lambda: X.repeat(2, 2).repeat(3, 3)),
    "upsample of height and width": (1, f"{INPUT} {{ y = Upsample <height_scale = 2.0, width_scale = 3.0> (x) }}", lambda: X.repeat(2, 2).repeat(3, 3)),
    "constants of selu": (
        1,
        f"{INPUT} {{ y = Selu (x) }}",
        lambda: np.where(X > 0, 1.0507 * X, 1.0507 * 1.6732 * (np.exp(X) - 1)).astype(np.float32),
    ),
    "slice by attributes": (1, f"{INPUT} {{ y = Slice <axes = [2, 3], starts = [1, -3], ends = [100, -1]> (x) }}", lambda: X[:, :, 1:, -3:-1]),
    "split in a variadic form": (2, f"{INPUT} {{ a, y = Split <axis = 3, split = [2, 3]> (x) }}", lambda: X[..., 2:]),
    "tiles along one axis": (
        1,
        f"{INPUT} <float t = {{2}}, float a = {{3}}> {{ y = Tile (x, t, a) }}",
        lambda: np.tile(X, (1, 1, 1, 2)),
    ),
    "top k by an attribute": (1, f"{INPUT} {{ y, i = TopK <k = 2, axis = 2> (x) }}", lambda: -np.sort(-X, 2)[:, :, :2]),
    "scan over a batch": (
        8,
        "(float[2, 3, 4] x) => (float[2, 4] last, float[2, 3, 4] y) <float[2, 4] zero = {0, 0, 0, 0, 0, 0, 0, 0}> "
        "{ last, y = Scan <num_scan_inputs = 1, body = b (float[4] s, float[4] r) => (float[4] t, float[4] u) "
        "{ t = Add (s, r)  u = Identity (t) }> (, zero, x) }",
        lambda: (X[:, :, :, 0].sum(1), X[:, :, :, 0].cumsum(1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_old_form_keeps_its_meaning(name: str) -> None:
    opset, body, expected = CASES[name]
    model = parser.parse_model(f'<ir_version: 4, opset_import: ["": {opset}]> g {body}')
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = X if len(shape) == 4 else X[:, :, :, 0] if len(shape) == 3 else X[:, :, 0, 0]
    for graph in (import_model(model), Pipeline(optimization()).run(import_model(model))):
        session = onnxruntime.InferenceSession(export_model(graph).SerializeToString())
        results = session.run(None, {model.graph.input[0].name: x})
        references = expected() if isinstance(expected(), tuple) else (expected(),)
        for a, b in zip(results, references, strict=True):
            assert a.dtype == b.dtype
            # Some ulps: sums and exponentials in another order than numpy's.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_dropout_in_training_mode_drops() -> None:
    """Before 7, Dropout without ``is_test`` was in training mode."""
    model = parser.parse_model(
        f'<ir_version: 4, opset_import: ["": 1]> g {INPUT} {{ y = Dropout <ratio = 0.5> (x) }}'
    )
    session = onnxruntime.InferenceSession(export_model(import_model(model)).SerializeToString())
    (y,) = session.run(None, {"x": np.ones_like(X)})
    assert set(np.unique(y)) == {0.0, 2.0}


REFUSED = {
    "LpPool %y: p is 1.5 (opset 1): ONNX now supports only integers": (
        1, f"{INPUT} {{ y = LpPool <p = 1.5, kernel_shape = [1, 1]> (x) }}",
    ),
    "Scan %y: has sequence_lens (opset 8): export the model at a newer opset": (
        8,
        "(int64[2] n, float[2, 3, 4] x) => (float[2, 3, 4] y) "
        "{ y = Scan <num_scan_inputs = 1, body = b (float[4] r) => (float[4] u) { u = Identity (r) }> (n, x) }",
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_a_form_without_a_current_equivalent_is_refused(message: str) -> None:
    opset, body = REFUSED[message]
    model = parser.parse_model(f'<ir_version: 4, opset_import: ["": {opset}]> g {body}')
    with pytest.raises(Unsupported) as error:
        import_model(model)
    assert str(error.value) == message
