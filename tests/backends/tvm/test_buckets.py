"""Buckets: functions for chosen sizes beside the one for all, in one library, on the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

tvm = pytest.importorskip("tvm", reason="the tvm backend is not installed")

import tersor  # noqa: E402
from tersor.backends.tvm import library  # noqa: E402
from tersor.backends.tvm.build import build  # noqa: E402
from tersor.backends.tvm.fuse import fuse  # noqa: E402
from tersor.backends.tvm.kernels.emit import Isa  # noqa: E402
from tersor.backends.tvm.module import lower_all  # noqa: E402
from tersor.backends.tvm.ops import RULES, fused  # noqa: E402
from tersor.backends.tvm.options import Choice  # noqa: E402
from tersor.backends.tvm.session import Session, open_session  # noqa: E402
from tersor.built import Split  # noqa: E402
from tersor.errors import InvalidOption, TersorError  # noqa: E402
from tersor.ir import parse  # noqa: E402
from tersor.ir.copy import specialize  # noqa: E402
from tersor.ops import TABLE  # noqa: E402

HOST = tersor.Target.host()
IDS = np.random.default_rng(0)
NUMBERS = {
    name: (IDS.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
    for name, shape in {
        "table": (50, 64), "places": (32, 64), "wq": (64, 64), "wk": (64, 64), "wv": (64, 64),
        "wo": (64, 64), "w1": (64, 144), "b1": (144,), "w2": (144, 64), "gamma": (64,),
    }.items()
}  # fmt: skip
BUCKETS: list[dict[str, int]] = [{"batch": 2, "length": 16}, {"length": 7, "batch": 1}]
OTHERS = [{"batch": 2, "length": 7}, {"batch": 1, "length": 1}, {"batch": 16, "length": 2}]
# The same numbers go through the same kernels; what lies between may be vectorized otherwise.
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}


def model() -> onnx.ModelProto:
    """A layer of an encoder as exporters write it: sizes are read, heads are split by Reshape, and
    positions are a Range."""
    nodes: list[Any] = []

    def node(op: str, inputs: list[str], output: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attrs))
        return output

    shape = node("Shape", ["ids"], "shape")
    batch, length = (node("Gather", [shape, str(i)], f"size{i}") for i in (0, 1))
    positions = node("Gather", ["places", node("Range", ["0", length, "1"], "range")], "position")
    x = node("Add", [node("Gather", ["table", "ids"], "word"), positions], "x")
    sizes = [node("Unsqueeze", [s, "zeros"], f"{s}_axis") for s in (batch, length)]
    split = node("Concat", [*sizes, "heads", "each"], "split", axis=0)
    joined = node("Concat", [*sizes, "hidden"], "joined", axis=0)

    def heads(weight: str, perm: list[int]) -> str:
        product = node("MatMul", [x, weight], f"{weight}x")
        parts = node("Reshape", [product, split], f"{weight}r")
        return node("Transpose", [parts], f"{weight}t", perm=perm)

    q, k, v = heads("wq", [0, 2, 1, 3]), heads("wk", [0, 2, 3, 1]), heads("wv", [0, 2, 1, 3])
    scores = node("Mul", [node("MatMul", [q, k], "qk"), "scale"], "scores")
    scores = node("Add", [scores, node("Unsqueeze", ["mask", "inner"], "wide")], "masked")
    attended = node("MatMul", [node("Softmax", [scores], "share", axis=-1), v], "attended")
    together = node("Transpose", [attended], "together", perm=[0, 2, 1, 3])
    out = node("MatMul", [node("Reshape", [together, joined], "flat"), "wo"], "out")
    normed = node("LayerNormalization", [node("Add", [out, x], "sum"), "gamma"], "normed")
    up = node("Gelu", [node("Add", [node("MatMul", [normed, "w1"], "up"), "b1"], "upb")], "act")
    node("Add", [node("MatMul", [up, "w2"], "down"), normed], "y")
    constants = {
        **NUMBERS, "0": np.int64(0), "1": np.int64(1), "zeros": np.array([0]),
        "heads": np.array([2]), "each": np.array([32]), "hidden": np.array([64]),
        "scale": np.float32(32**-0.5), "inner": np.array([1, 2]),
    }  # fmt: skip
    inputs = [
        helper.make_tensor_value_info(name, type, ["batch", "length"])
        for name, type in (("ids", TensorProto.INT64), ("mask", TensorProto.FLOAT))
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 64])
    held = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "layer", inputs, [result], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def feed(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    rng, shape = np.random.default_rng(1), (sizes["batch"], sizes["length"])
    mask = np.where(rng.random(shape) < 0.3, np.float32(-1e4), np.float32(0))
    mask[:, 0] = 0
    return {"ids": rng.integers(0, 50, shape), "mask": mask}


def compiled(recipe: str, **options: Any) -> tersor.Artifact:
    return tersor.compile(model(), recipe=recipe, runtime="tvm", measure=False, **options)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def both(request: pytest.FixtureRequest) -> tuple[tersor.Artifact, tersor.Artifact]:
    """Without buckets, and with."""
    settings = {"quantize-dynamic.min_elements": 0} if request.param == "int8" else {}
    return tuple(
        compiled(request.param, settings=settings, **options)
        for options in ({}, {"buckets": BUCKETS})
    )  # type: ignore[return-value]


@contextmanager
def only(session: Session, *, buckets: bool) -> Iterator[None]:
    """Whatever else would be called fails."""

    def fail(*_: Any) -> None:
        raise AssertionError("another function was called")

    calls, table = session._calls[:], dict(session._for_shapes)
    session._fitting = []
    if buckets:
        session._calls[0] = (fail, [])
    else:
        session._for_shapes = dict.fromkeys(table, (fail, []))
    yield
    session._calls, session._for_shapes, session._fitting = calls, table, []


def opened(artifact: tersor.Artifact) -> Session:
    session = open_session(artifact.model, artifact.choice)
    assert isinstance(session, Session)
    return session


def test_results_are_the_same_at_every_size(both: tuple[tersor.Artifact, tersor.Artifact]) -> None:
    plain, session = (opened(artifact) for artifact in both)
    for buckets, cases in ((True, BUCKETS), (False, OTHERS)):
        with only(session, buckets=buckets):
            for sizes in [*cases, *cases]:
                given = feed(sizes)
                (got,), (expected,) = (s.run(given).values() for s in (session, plain))
                assert got.shape == (sizes["batch"], sizes["length"], 64)
                np.testing.assert_allclose(got, expected, **CLOSE)


def test_sizes_may_change_from_call_to_call(both: tuple[tersor.Artifact, tersor.Artifact]) -> None:
    plain, session = (opened(artifact) for artifact in both)
    for sizes in (BUCKETS[0], OTHERS[0], BUCKETS[1], BUCKETS[0], OTHERS[1]):
        (got,), (expected,) = (s.run(feed(sizes)).values() for s in (session, plain))
        np.testing.assert_allclose(got, expected, **CLOSE)
    with pytest.raises(InvalidOption, match="batch is 2 in input 'ids' and 1 in 'mask'"):
        session.run({"ids": feed(BUCKETS[0])["ids"], "mask": feed(BUCKETS[1])["mask"]})


def test_weights_are_stored_once(both: tuple[tersor.Artifact, tersor.Artifact]) -> None:
    (plain, alone), (bucketed, told) = (
        (artifact.model, library.describe(artifact.model.data))
        for artifact in both
        if isinstance(artifact.model, Split)
    )
    # What follows from the sizes, such as positions, may be constants of a bucket.
    small = 1 << 12
    assert plain.weights.size > 10 * small
    assert plain.weights.size <= bucketed.weights.size <= plain.weights.size + small
    assert alone.functions[0].sizes == () and len(alone.functions) == 1
    assert [dict(f.sizes) for f in told.functions] == [{}, *BUCKETS]
    sources = {place for p in told.parameters if p.derived for place in p.derived.sources}
    large = {place for place, p in enumerate(told.parameters) if p.size >= 64 * 64} - sources
    assert large and all(large <= set(f.parameters) for f in told.functions)


def test_kernels_are_shared() -> None:
    text = (
        """graph g(%x: f32[batch, length, 64], %mask: bool[batch, 1, 1, length]) -> (x = %x) {}"""
    )
    graph = parse(text, TABLE)
    x, mask = graph.inputs
    q, k, v = (
        graph.emit("tersor.Linear", [x, graph.constant(NUMBERS[w], w)]) for w in ("wq", "wk", "wv")
    )
    made = graph.emit("Attention", [q, k, v, mask], {"q_num_heads": 2, "kv_num_heads": 2})
    out = graph.emit("tersor.Linear", [made, graph.constant(NUMBERS["wo"], "wo")])
    graph.set_outputs([out], ["y"])
    choice = Choice.of(HOST, buckets=BUCKETS)
    isa = Isa.of(choice.features, 1)
    graphs = [graph, *(specialize(graph, sizes) for sizes in BUCKETS)]
    lowered = lower_all([fuse(g, isa) for g in graphs], {**RULES, **fused.rules(isa)})
    names = sorted(name.name_hint for name in lowered.module.get_global_vars())
    kernels = [name for name in names if not name.startswith("main")]
    assert names[len(kernels) :] == ["main", "main_1", "main_2"]
    assert [name.partition("_")[0] for name in kernels] == ["attention", "linear2", "linear2"]
    # One more is stored: what the kernels' columns are computed from.
    assert len(lowered.arrays) == 5 and lowered.parameters == [[0, 2, 3, 4]] * 3

    plain, session = open_session(build(graph)), open_session(build(graph, choice), choice)
    with only(session, buckets=True):
        for sizes in BUCKETS:
            shape = (sizes["batch"], sizes["length"])
            numbers = np.random.default_rng(2).standard_normal((*shape, 64)).astype(np.float32)
            given = {"x": numbers, "mask": (feed(sizes)["mask"] == 0).reshape(shape[0], 1, 1, -1)}
            # There is nothing but these kernels, which run the same code in both.
            np.testing.assert_array_equal(session.run(given)["y"], plain.run(given)["y"])


def test_equal_arrays_of_other_types_or_shapes_are_others() -> None:
    graph = TABLE.graph()
    shaped = parse("graph g(%x: f32[n, 1], %i: i32[n, 1]) -> (x = %x) {}", TABLE).inputs
    x, i = (graph.add_input(v.name, v.type) for v in shaped)
    zeros = np.zeros(32, np.float32)
    arrays = [zeros, zeros.reshape(1, 32), zeros.view(np.int32), zeros.copy()]
    operands = [graph.constant(a, "zeros") for a in arrays]
    made = [graph.emit("Add", [v, c]) for v, c in zip((x, x, i, x), operands, strict=True)]
    graph.set_outputs(made, ["a", "b", "c", "d"])
    lowered = lower_all([graph], RULES)
    assert [a.shape for a in lowered.arrays] == [(32,), (1, 32), (32,)]
    assert lowered.parameters == [[0, 1, 2, 0]]
    feeds = {"x": np.float32([[1], [2]]), "i": np.int32([[1], [2]])}
    for array in open_session(build(graph)).run(feeds).values():
        np.testing.assert_array_equal(array, np.repeat([[1], [2]], 32, 1))


def test_control_flow_and_empty_pasts_have_buckets_too() -> None:
    text = """graph g(%past: f32[b, p, 4], %x: f32[b, n, 4], %c: bool[]) -> (y = %y) {
      %j: f32[b, p + n, 4] = Concat(%past, %x) {axis = 1}
      %y: f32[b, p + n, 4] = If(%c) {
        then_branch = graph then() -> (t = %t) {
          %t: f32[b, p + n, 4] = Neg(%j)
        },
        else_branch = graph else() -> (e = %e) {
          %e: f32[b, p + n, 4] = Relu(%j)
        }
      }
    }"""
    buckets = [{"b": 2, "p": 0, "n": 3}, {"b": 2, "p": 5, "n": 1}]
    choice = Choice.of(HOST, buckets=buckets)
    session = open_session(build(parse(text, TABLE), choice), choice)
    for is_bucket, sizes in [(True, s) for s in buckets] + [(False, {"b": 1, "p": 2, "n": 2})]:
        past, x = (np.ones((sizes["b"], sizes[name], 4), np.float32) for name in ("p", "n"))
        joined = np.concatenate([past, -x], 1)
        with only(session, buckets=is_bucket):
            for flag, expected in ((True, -joined), (False, np.maximum(joined, 0))):
                made = session.run({"past": past, "x": -x, "c": np.array(flag)})
                np.testing.assert_array_equal(made["y"], expected)


def test_buckets_come_back_from_a_folder(
    both: tuple[tersor.Artifact, tersor.Artifact], tmp_path: Path
) -> None:
    plain, bucketed = both
    loaded = tersor.load(bucketed.save(tmp_path / "out"), trust=True)
    choice = Choice.from_json(loaded.choice)
    assert [dict(sizes) for sizes in choice.buckets] == BUCKETS
    assert choice.label == "bucket(batch=2,length=16) bucket(batch=1,length=7)"
    session = opened(loaded)
    with only(session, buckets=True):
        for sizes in BUCKETS:
            (got,), (expected,) = session.run(feed(sizes)).values(), plain.run(feed(sizes)).values()
            np.testing.assert_allclose(got, expected, **CLOSE)


def test_a_bucket_that_is_given_twice_is_one() -> None:
    swapped = dict(reversed(BUCKETS[0].items()))
    assert len(Choice.of(HOST, buckets=[BUCKETS[0], swapped]).buckets) == 1


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"buckets": [{"batch": 1, "lenght": 2}]}, "no open dim 'lenght', did you mean 'length'?; the inputs have batch, length"),
    "one left out": ({"buckets": [{"batch": 1}]}, "sizes {'batch': 1} do not set dim 'length'"),
    "none": ({"buckets": [{}]}, "a bucket needs the size of an open dim"),
    "nothing": ({"buckets": [{"batch": 1, "length": 0}]}, "dim 'length' cannot be 0"),
    "ORT": ({"buckets": BUCKETS, "runtime": "ort"}, "buckets are for runtime tvm: runtime ort has one model for all sizes"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_bucket_is_refused(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(TersorError) as caught:
        tersor.compile(model(), measure=False, **{"runtime": "tvm", **options})
    assert str(caught.value) == message


def test_sizes_that_the_model_does_not_take_are_told() -> None:
    graph = parse("graph g(%x: f32[n], %z: f32[m]) -> (y = %y) { %y: f32[?] = Add(%x, %z) }", TABLE)
    choice = Choice.of(HOST, buckets=[{"n": 2, "m": 3}])
    with pytest.raises(InvalidOption, match=r"^no bucket m=3,n=2: Add %y: .* do not broadcast\Z"):
        build(graph, choice)
