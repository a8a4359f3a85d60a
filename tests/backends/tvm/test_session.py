"""Sessions of TVM: what they are fed, what they give, their threads; compilations that end in TVM."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

tvm = pytest.importorskip("tvm")

import tersor  # noqa: E402
from tersor.backends.tvm import session as sessions  # noqa: E402
from tersor.backends.tvm.build import build  # noqa: E402
from tersor.backends.tvm.options import Choice  # noqa: E402
from tersor.backends.tvm.session import Session, open_session  # noqa: E402
from tersor.built import Split  # noqa: E402
from tersor.errors import InvalidOption, Unsupported  # noqa: E402
from tersor.ir import Graph, parse  # noqa: E402
from tersor.ops import TABLE  # noqa: E402
from tersor.pipeline import registry  # noqa: E402
from tersor.pipeline.report import INPUT  # noqa: E402
from tersor.tuning.measure import Bench, Paired, compare  # noqa: E402

HOST = Choice.of(tersor.Target.host())
WEIGHT = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)


def ir(text: str) -> Graph:
    return parse(text, TABLE)


def opened(text: str, choice: Choice = HOST) -> Session:
    return open_session(build(ir(text), choice), choice)


def model() -> onnx.ModelProto:
    """y = relu(x + w) on x[batch, 64, 64]."""
    nodes = [helper.make_node("Add", ["x", "w"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
    dims = ["batch", 64, 64]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


FEED = {"x": np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)}
EXPECTED = np.maximum(FEED["x"] + WEIGHT, 0)  # One sum, which has one rounding wherever it is made.
compiled = pytest.fixture(scope="module")(
    lambda: tersor.compile(model(), recipe="fp32", runtime="tvm", measure=False)
)


# -- what goes in and comes out ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("f32", np.float32), ("f64", np.float64), ("f16", np.float16), ("bf16", ml_dtypes.bfloat16),
        ("i64", np.int64), ("i32", np.int32), ("i16", np.int16), ("i8", np.int8),
        ("u64", np.uint64), ("u32", np.uint32), ("u16", np.uint16), ("u8", np.uint8),
    ],
)  # fmt: skip
def test_every_element_type_goes_in_and_comes_out(name: str, dtype: type) -> None:
    session = opened(f"graph g(%x: {name}[n, 3]) -> (y = %y) {{ %y: {name}[n, 3] = Add(%x, %x) }}")
    x = np.arange(6).reshape(2, 3).astype(dtype)
    (y,) = session.run({"x": x}).values()
    assert y.dtype == x.dtype and y.astype(np.int64).tolist() == [[0, 2, 4], [6, 8, 10]]


def lying(array: np.ndarray, offset: int) -> np.ndarray:
    """A copy that begins so many bytes behind a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    result: np.ndarray = memory[start : start + array.nbytes].view(array.dtype)
    result = result.reshape(array.shape)
    result[...] = array
    return result


def read_only(array: np.ndarray) -> np.ndarray:
    result = lying(array, 0)
    result.flags.writeable = False
    return result


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "aligned": lambda a: lying(a, 0),
    "not aligned": lambda a: lying(a, 4),
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "every other": lambda a: np.repeat(a, 2, axis=0)[::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "read-only": read_only,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_may_lie_as_they_like(compiled: tersor.Artifact, layout: str) -> None:
    for _ in range(2):  # The second time, memory of the first may be used again.
        given = LAYOUTS[layout](FEED["x"])
        (y,) = compiled.run({"x": given}).values()
        np.testing.assert_array_equal(y, EXPECTED)
        np.testing.assert_array_equal(given, FEED["x"])
        assert y.flags.writeable
    assert sessions.is_ready(given) is (layout == "aligned")


def test_inputs_of_bfloat16_and_bool_may_lie_aligned() -> None:
    session = opened("graph g(%x: bf16[4]) -> (y = %y) { %y: bf16[4] = Add(%x, %x) }")
    x = np.array([1, 2, 3, 4], ml_dtypes.bfloat16)
    for offset in (0, 2):
        (y,) = session.run({"x": lying(x, offset)}).values()
        assert y.astype(int).tolist() == [2, 4, 6, 8]
    session = opened("graph g(%x: bool[4]) -> (y = %y) { %y: bool[4] = Not(%x) }")
    (y,) = session.run({"x": lying(np.array([True, False, True, True]), 0)}).values()
    assert y.tolist() == [False, True, False, False]


@pytest.mark.parametrize("offset", [0, 4])
def test_what_is_passed_on_is_not_the_callers(offset: int) -> None:
    graph = ir("graph g(%x: f32[n, 32]) -> (x = %x) {}")
    (x,) = graph.inputs
    flat = graph.emit("Reshape", [x, graph.constant(np.array([-1]), "shape")])
    w = graph.constant(np.arange(32, dtype=np.float32), "w")
    graph.set_outputs([x, flat, w], ["same", "flat", "w"])
    session = open_session(build(graph))
    given = lying(np.ones((2, 32), np.float32), offset)
    first = session.run({"x": given})
    for name in first:
        first[name][...] = 7
    assert given.tolist() == np.ones((2, 32)).tolist()
    given[...] = 3
    second = session.run({"x": given})
    assert first["same"].tolist() == np.full((2, 32), 7).tolist()
    assert second["flat"].tolist() == [3] * 64 and second["w"].tolist() == list(range(32))


def test_results_stay_when_the_session_goes() -> None:
    session = opened("graph g(%x: f32[n]) -> (y = %y) { %y: f32[n] = Add(%x, %x) }")
    results = [session.run({"x": np.full(100, i, np.float32)})["y"] for i in range(5)]
    del session
    assert [r.tolist() for r in results] == [[2 * i] * 100 for i in range(5)]


TWO = """graph g(%x: f32[batch, length, 4], %m: i64[batch, length], %z: f32[length + 1]) -> (y = %a, n = %b, w = %c) {
  %a: f32[batch, length, 4] = Add(%x, %x)
  %b: i64[batch, length] = Add(%m, %m)
  %c: f32[length + 1] = Add(%z, %z)
}"""
GOOD = {
    "x": np.zeros((2, 3, 4), np.float32),
    "m": np.zeros((2, 3), np.int64),
    "z": np.zeros(4, np.float32),
}


@pytest.fixture(scope="module")
def two() -> Session:
    return opened(TWO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "input 'x' is missing; the model takes m, x, z"),
        ({"mask": GOOD["m"]}, "no input 'mask'; the model takes m, x, z"),
        ({"x": np.zeros((2, 3, 4))}, "input 'x' is float64[2, 3, 4], and the model takes f32[batch, length, 4]"),
        ({"x": np.zeros((2, 3, 4), ">f4")}, "input 'x' is >f4[2, 3, 4], and the model takes f32[batch, length, 4]"),
        ({"x": np.zeros((2, 12), np.float32)}, "input 'x' is float32[2, 12], and the model takes f32[batch, length, 4]"),
        ({"x": np.zeros((2, 3, 5), np.float32)}, "input 'x' is float32[2, 3, 5], and the model takes f32[batch, length, 4]"),
        ({"m": np.zeros((2, 7), np.int64)}, "length is 3 in input 'x' and 7 in 'm'"),
        ({"m": np.zeros((1, 3), np.int64)}, "batch is 2 in input 'x' and 1 in 'm'"),
        ({"z": np.zeros(3, np.float32)}, "input 'z' is float32[3], and the model takes f32[length + 1]"),
        ({"m": "text"}, "input 'm' is <U4[], and the model takes i64[batch, length]"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(
    two: Session, change: Mapping[str, np.ndarray | None], message: str
) -> None:
    two.run(GOOD)
    given = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    with pytest.raises(InvalidOption) as caught:
        two.run(given)
    assert str(caught.value) == message
    assert two.run(GOOD)["y"].shape == (2, 3, 4)


def test_sizes_may_change_from_run_to_run(two: Session) -> None:
    for batch, length in ((1, 1), (4, 9), (2, 3), (0, 5), (1, 1)):
        x = np.full((batch, length, 4), 3, np.float32)
        feed = {
            "x": x,
            "m": np.ones((batch, length), np.int64),
            "z": np.zeros(length + 1, np.float32),
        }
        got = two.run(feed)
        assert got["y"].shape == x.shape and (got["y"] == 6).all() and (got["n"] == 2).all()


# -- threads and sessions ------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="it counts threads by /proc")
def test_each_session_has_its_threads_while_it_is_there(compiled: tersor.Artifact) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/task"))

    before = count()
    one, four = (open_session(compiled.model, HOST.replace(threads=n)) for n in (1, 4))
    assert count() == before + 3  # The caller is one of them.
    for session in (one, four, one):
        np.testing.assert_array_equal(session.run(FEED)["y"], EXPECTED)
    assert count() == before + 3
    del session, one, four
    gc.collect()
    assert count() == before


def test_threads_of_the_caller_share_a_session(two: Session) -> None:
    wrong = []

    def work(value: int) -> None:
        for length in range(1, 60):
            x = np.full((1, length, 4), value, np.float32)
            m, z = np.full((1, length), value), np.zeros(length + 1, np.float32)
            got = two.run({"x": x, "m": m, "z": z})
            if not ((got["y"] == 2 * value).all() and (got["n"] == 2 * value).all()):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_sessions_of_one_model_do_not_know_each_other(
    compiled: tersor.Artifact, tmp_path: Path
) -> None:
    assert isinstance(compiled.model, Split)
    path = compiled.model.place(tmp_path, "model.so")
    first, second = open_session(path, compiled.choice), open_session(path, compiled.choice)
    np.testing.assert_array_equal(second.run(FEED)["y"], EXPECTED)
    del second
    path.write_bytes(b"another file by now")
    np.testing.assert_array_equal(first.run(FEED)["y"], EXPECTED)


def test_amx_that_the_system_refuses_is_told(
    compiled: tersor.Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = HOST.replace(features=("amx_int8", "amx_tile"))
    built = build(ir("graph g(%x: f32[2]) -> (y = %y) { %y: f32[2] = Add(%x, %x) }"), choice)
    monkeypatch.setattr(sessions, "check_host", lambda description: None)
    monkeypatch.setattr(sessions, "request_amx", lambda: False)
    with pytest.raises(Unsupported) as caught:
        open_session(built, choice)
    assert str(caught.value) == (
        "it uses AMX, and the system does not let this process use its tiles"
    )


# -- compilations that end in TVM ----------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(model(), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def speedup(value: float) -> Paired:
    return Paired(1.0, 1.0 / value, value, value, value, 5)


@pytest.mark.parametrize("gain", [0.9, 1.2])
def test_the_input_in_onnx_runtime_is_what_has_to_be_beaten(
    path: Path, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    monkeypatch.setattr("tersor.driver.choosing.compare", lambda *_: speedup(gain))
    made = tersor.compile(path, recipe="fp32", runtime="tvm", sizes=[{"batch": 2}])
    if gain > 1:
        assert made.runtime == "tvm" and made.report.kept == "fp32"
        assert made.report.fidelity is not None and made.report.fidelity.max_error == 0
    else:
        assert made.runtime == "ort" and made.model == path.read_bytes()
        assert made.report.kept == INPUT
    np.testing.assert_array_equal(made.run(FEED)["y"], EXPECTED)


def test_workers_of_both_runtimes_are_compared(compiled: tersor.Artifact, path: Path) -> None:
    with Bench([FEED]) as bench:
        ort = bench.start(registry.REFERENCE, path, {})
        tvm_worker = bench.start("tvm", compiled.model, compiled.choice)
        np.testing.assert_array_equal(ort.outputs(0)["y"], tvm_worker.outputs(0)["y"])
        result = compare(ort, tvm_worker, 0, 3)
    assert result.pairs == 3 and result.b_ms > 0


def test_what_tvm_has_no_lowering_for_is_named() -> None:
    text = """graph g(%x: f32[2]) -> (y = %y) {
      %y: f32[2] = example.org.Twist(%x)
    }"""
    with pytest.raises(Unsupported, match=r"TVM has no lowering for .*example\.org\.Twist"):
        tersor.convert(ir(text), [], runtime="tvm")
