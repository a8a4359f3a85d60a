"""Runs a case of the suite one way, and holds what comes out against what is expected.

A way is how a model gets from its file to a runtime.  One more backend is one more entry of ``WAYS``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from conformance.cases import Case, Data, feed_names
from onnx import ModelProto, TensorProto

from tersor.backends import ort as backend
from tersor.built import Built
from tersor.errors import TersorError
from tersor.frontends.onnx import export_model, import_model
from tersor.ir import DType, Graph
from tersor.ops.onnx_schema import FROM_ONNX, TO_ONNX
from tersor.passes import optimization
from tersor.pipeline import Pipeline

Runnable = Callable[[dict[str, Any]], dict[str, Any]]
Way = Callable[[ModelProto], Runnable]

_SESSION = backend.Choice().replace(threads=1)  # Threads cost more than they give at these sizes.


def plain(model: ModelProto) -> Runnable:
    """The model as it is."""
    return _ort(model.SerializeToString())


def exported(model: ModelProto) -> Runnable:
    """Imported and written again."""
    return _ort(export_model(import_model(model)).SerializeToString())


def compiled(model: ModelProto) -> Runnable:
    """Imported, canonicalized, fused, lowered as the backend does by default."""
    return _ort(backend.build(optimized(model), _SESSION))


def portable(model: ModelProto) -> Runnable:
    """The same, lowered to ONNX's own ops alone."""
    return _ort(backend.build(optimized(model), _SESSION.replace(portable=True)))


WAYS: dict[str, Way] = {"exported": exported, "compiled": compiled, "portable": portable}


def failure(case: Case, way: Way) -> str:
    """Why a case does not pass one way, in a line; empty where it passes."""
    error = why(case, way)
    if error is None:
        return ""
    kind = "" if isinstance(error, (TersorError, AssertionError)) else type(error).__name__ + ": "
    return f"{kind}{' '.join(str(error).split())[:500] or type(error).__name__}"


def why(case: Case, way: Way) -> Exception | None:
    """What is raised where a case does not pass one way."""
    try:
        model = case.model()
        names, results = feed_names(model), [o.name for o in model.graph.output]
        runnable = way(model)
        for inputs, expected in case.data_sets(model):
            made = runnable(dict(zip(names, inputs, strict=False)))
            if list(made) != results:
                return f"outputs are called {list(made)}, not {results}"
            _check(list(made.values()), expected, case)
    except Exception as error:
        return error
    return None


def crash(case: Case) -> str:
    """What a model raises besides an error for users, a line of text; empty if nothing."""
    model = case.model()
    try:
        export_model(import_model(model))
        backend.build(optimized(model), _SESSION)
    except TersorError as error:
        text = str(error)
        return "" if text and "\n" not in text else f"not one line: {text}"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    return ""


# -- comparison, by the rules of onnx.backend.test.runner ------------------------------------------


def _check(made: Data, expected: Data, case: Case) -> None:
    assert len(made) == len(expected), f"{len(made)} outputs, not {len(expected)}"
    for a, b in zip(made, expected, strict=True):
        if isinstance(b, (list, tuple)):
            assert isinstance(a, (list, tuple)), f"a {type(a).__name__}, not a sequence"
            _check(a, b, case)
        elif b is None:
            assert a is None, "something where nothing is expected"
        else:
            _check_array(np.asarray(a), np.asarray(b), case)


def _check_array(made: np.ndarray, expected: np.ndarray, case: Case) -> None:
    assert made.shape == expected.shape, f"shape {made.shape}, not {expected.shape}"
    if DType.of(expected) is DType.STRING:
        np.testing.assert_array_equal(made.astype(str), expected.astype(str))
        return
    assert made.dtype == expected.dtype, f"{made.dtype}, not {expected.dtype}"
    rtol = case.rtol
    if expected.dtype.name == "bfloat16":
        rtol = max(rtol, 2**-6)  # Two of its ulps, as onnx's runner allows.
    if _is_foreign(expected):  # numpy does not subtract these.
        made, expected = made.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_allclose(made, expected, rtol=rtol, atol=case.atol)


# -- ONNX Runtime, fed with any type ---------------------------------------------------------------


def _ort(model: Built) -> Runnable:
    session = backend.open_session(model, _SESSION).own
    names = [o.name for o in session.get_outputs()]

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        # Values that numpy knows go through lists, strings and nothing; others through memory.
        if not any(_is_foreign(v) for v in inputs.values()) and not _makes_foreign(session):
            return dict(
                zip(
                    names,
                    session.run(names, {k: _plain(v) for k, v in inputs.items()}),
                    strict=True,
                )
            )
        values = {k: _ort_value(v) for k, v in inputs.items()}
        made = session.run_with_ort_values(names, values)
        return dict(zip(names, map(_array, made), strict=True))

    return run


def _plain(value: Any) -> Any:
    """Some cases give numpy's scalars."""
    return np.asarray(value) if isinstance(value, np.generic) else value


def _is_foreign(value: Any) -> bool:
    """Whether it is an array of one of ml_dtypes' types, which ONNX Runtime's Python does not take."""
    return isinstance(value, np.ndarray) and value.dtype.type.__module__ == "ml_dtypes"


def _makes_foreign(session: Any) -> bool:
    return any(o.type in _FOREIGN for o in session.get_outputs())


_FOREIGN = {
    f"tensor({name})"
    for name in [
        *("bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"),
        *("float8e8m0", "float4e2m1", "int4", "uint4", "int2", "uint2"),
    ]
}


def _ort_value(value: Any) -> Any:
    if not _is_foreign(value):
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    made = ort.OrtValue.ortvalue_from_shape_and_type(list(value.shape), TO_ONNX[DType.of(value)])
    data = packed(value)
    assert len(data) == made.tensor_size_in_bytes()
    ctypes.memmove(made.data_ptr(), data, len(data))
    return made


def _array(value: Any) -> Any:
    dtype = FROM_ONNX[value.element_type()] if value.is_tensor() else None
    if dtype is None or f"tensor({dtype_name(dtype)})" not in _FOREIGN:
        return value.numpy()
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return unpacked(data, dtype, value.shape())


def dtype_name(dtype: DType) -> str:
    """ONNX's name of an element type, as it stands in ``tensor(float)``."""
    return str(TensorProto.DataType.Name(TO_ONNX[dtype])).lower()


def packed(array: np.ndarray) -> bytes:
    """The bytes of an array as ONNX stores them: 2- and 4-bit elements share bytes, lowest first."""
    bits = DType.of(array).bits
    if bits >= 8:
        return np.ascontiguousarray(array).tobytes()
    each = 8 // bits
    codes = np.ascontiguousarray(array).reshape(-1).view(np.uint8) & (2**bits - 1)
    codes = np.pad(codes, (0, -codes.size % each)).reshape(-1, each)
    shifts = np.arange(each, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(codes << shifts, axis=1).astype(np.uint8).tobytes()


def unpacked(data: bytes, dtype: DType, shape: Sequence[int]) -> np.ndarray:
    """What :func:`packed` takes."""
    if dtype.bits >= 8:
        return np.frombuffer(data, dtype.numpy).reshape(shape)
    each = 8 // dtype.bits
    shifts = np.arange(each, dtype=np.uint8) * dtype.bits
    codes = (np.frombuffer(data, np.uint8)[:, None] >> shifts) & (2**dtype.bits - 1)
    flat = codes.reshape(-1)[: int(np.prod(shape, dtype=np.int64))]
    if dtype.value[0] == "i":  # ml_dtypes keeps the sign in the byte's high bits.
        flat = (flat.astype(np.int8) << (8 - dtype.bits)) >> (8 - dtype.bits)
        return flat.astype(dtype.numpy).reshape(shape)
    return flat.view(dtype.numpy).reshape(shape)


def optimized(model: ModelProto) -> Graph:
    """Imported, canonicalized, fused."""
    return Pipeline(optimization()).run(import_model(model))
