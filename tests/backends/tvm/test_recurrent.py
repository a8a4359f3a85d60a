"""LSTM, GRU and RNN of open batch and length, against ONNX Runtime; and their activations, against
numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contract import Run, compiled_in_tvm, run_in_onnx

from tersor.ir import DType, Graph, TensorType, symbol
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate

tvm = pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tvm.tirx.script.builder import ir as T  # noqa: E402

from tersor.backends import tvm as backend  # noqa: E402
from tersor.backends.tvm.kernels import emit  # noqa: E402
from tersor.backends.tvm.kernels.activations import FUNCTIONS, Activation  # noqa: E402
from tersor.backends.tvm.module import lower  # noqa: E402
from tersor.backends.tvm.ops import RULES  # noqa: E402
from tersor.backends.tvm.pipeline import compile_module, tvm_target  # noqa: E402
from tersor.target import Target  # noqa: E402

LENGTH, BATCH = symbol("length"), symbol("batch")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FEATURES, HIDDEN = 5, 20  # no whole number of vectors
# (length, batch): one row, whole tiles of rows, some left over.
SIZES = [(1, 1), (6, 1), (3, 4), (4, 11)]
# Sums of 25 products of magnitude 1 in another order; 6 steps, of weights whose norm is over 1, let the
# difference grow.
TOLERANCE = 1e-5


def recurrent(
    op: str,
    *,
    directions: int = 1,
    lengths: bool = False,
    initial: bool = True,
    peepholes: bool = False,
    constant: bool = True,
    dtype: DType = DType.F32,
    **attrs: Any,
) -> Graph:
    rng, graph, gates = np.random.default_rng(0), TABLE.graph(), GATES[op]

    def weight(name: str, *shape: int) -> Any:
        array = (rng.standard_normal(shape) / 2).astype(dtype.numpy)
        if constant:
            return graph.constant(array, name)
        return graph.add_input(name, TensorType(dtype, shape))

    first = bool(attrs.get("layout"))
    x = graph.add_input("x", TensorType(dtype, (BATCH, LENGTH, FEATURES) if first else (LENGTH, BATCH, FEATURES)))  # fmt: skip
    inputs = [
        x,
        weight("w", directions, gates * HIDDEN, FEATURES),
        weight("r", directions, gates * HIDDEN, HIDDEN),
        weight("b", directions, 2 * gates * HIDDEN),
        graph.add_input("lengths", TensorType(DType.I32, (BATCH,))) if lengths else None,
    ]
    states = ["h", "c"] if op == "LSTM" else ["h"]
    state_shape = (BATCH, directions, HIDDEN) if first else (directions, BATCH, HIDDEN)
    inputs += [
        graph.add_input(s, TensorType(dtype, state_shape)) if initial else None for s in states
    ]
    if peepholes:
        inputs.append(weight("p", directions, 3 * HIDDEN))
    if directions == 2:
        attrs["direction"] = "bidirectional"
    names = ["y", *(f"last_{s}" for s in states)]
    node = graph.emit_node(op, inputs, {"hidden_size": HIDDEN, **attrs}, names=names)
    graph.set_outputs(node.outputs, names)
    return graph


def feeds_of(graph: Graph, length: int, batch: int) -> dict[str, np.ndarray]:
    rng, sizes = np.random.default_rng(length * 100 + batch), {"length": length, "batch": batch}
    feeds = {}
    for value in graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d)] for d in value.tensor.dims or ()]
        if value.name == "lengths":
            feeds[value.name] = rng.integers(1, length + 1, shape).astype(np.int32)
        else:
            feeds[value.name] = (rng.standard_normal(shape) / 2).astype(value.tensor.dtype.numpy)
    return feeds


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "from zero": {"initial": False},
    "reverse": {"direction": "reverse"},
    "lengths": {"lengths": True},
    "reverse lengths": {"lengths": True, "direction": "reverse"},
    "both": {"directions": 2},
    "both with lengths": {"directions": 2, "lengths": True},
    "clip": {"clip": 0.4},
    "weights that are operands": {"constant": False, "directions": 2},
}
ALIKE = [(op, form, attrs) for op in GATES for form, attrs in FORMS.items()]
OWN: list[tuple[str, str, dict[str, Any]]] = [
    ("LSTM", "peepholes", {"peepholes": True}),
    ("LSTM", "input_forget", {"input_forget": 1}),
    ("LSTM", "activations", {"activations": ("HardSigmoid", "ScaledTanh", "Softsign"),
                             "activation_alpha": (0.3, 1.2), "activation_beta": (0.4, 0.7)}),
    ("LSTM", "one for each direction", {"directions": 2, "activations": (
        "Sigmoid", "Tanh", "Tanh", "HardSigmoid", "Relu", "Tanh")}),
    ("GRU", "linear before reset", {"linear_before_reset": 1}),
    ("GRU", "linear before reset, operands", {"linear_before_reset": 1, "constant": False}),
    ("GRU", "linear before reset, lengths", {"linear_before_reset": 1, "lengths": True}),
    ("RNN", "affine", {"activations": ("Affine",), "activation_alpha": (0.2,),
                       "activation_beta": (0.1,)}),
    ("RNN", "elu", {"activations": ("Elu",), "activation_alpha": (0.2,)}),
    ("RNN", "thresholded", {"activations": ("ThresholdedRelu",), "activation_alpha": (0.1,)}),
    ("RNN", "leaky", {"activations": ("LeakyRelu",), "activation_alpha": (0.2,)}),
    ("RNN", "softplus", {"activations": ("Softplus",), "clip": 1.0}),
]  # fmt: skip


EVERY = {f"{op} {form}": (op, attrs) for op, form, attrs in ALIKE + OWN}


@pytest.fixture(scope="module")
def compiled() -> dict[str, tuple[Graph, Run]]:
    graphs = [recurrent(op, **attrs) for op, attrs in EVERY.values()]
    runs = compiled_in_tvm(*graphs)
    return dict(zip(EVERY, zip(graphs, runs, strict=True), strict=True))


@pytest.mark.parametrize("form", EVERY)
def test_one_library_serves_every_length_and_batch(
    form: str, compiled: dict[str, tuple[Graph, Run]]
) -> None:
    graph, run = compiled[form]
    for length, batch in SIZES:
        feeds = feeds_of(graph, length, batch)
        got, want = run(feeds), run_in_onnx(graph, feeds, reference=False)
        for mine, theirs in zip(got, want, strict=True):
            assert mine.shape == theirs.shape
            np.testing.assert_allclose(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("op", GATES)
def test_batch_first_is_the_same_with_axes_swapped(op: str) -> None:
    """ONNX Runtime has no layout 1: it is compared with layout 0 of swapped axes."""
    graph, other = (recurrent(op, layout=layout, directions=2, lengths=True) for layout in (1, 0))
    session = backend.open_session(backend.build(graph))
    feeds = feeds_of(graph, 4, 6)
    exchanged = {n: a.swapaxes(0, 1) if a.ndim == 3 else a for n, a in feeds.items()}
    got, want = session.run(feeds), evaluate(other, exchanged)
    # Y is [batch, length, direction, hidden], of [length, direction, batch, hidden].
    np.testing.assert_allclose(
        got["y"], want["y"].transpose(2, 0, 1, 3), rtol=TOLERANCE, atol=TOLERANCE
    )
    for name in list(want)[1:]:
        np.testing.assert_allclose(
            got[name], want[name].swapaxes(0, 1), rtol=TOLERANCE, atol=TOLERANCE
        )


def test_without_steps_states_are_unchanged() -> None:
    graph = recurrent("LSTM")
    feeds = feeds_of(graph, 0, 3)
    got = backend.open_session(backend.build(graph)).run(feeds)
    assert got["y"].shape == (0, 1, 3, HIDDEN)
    np.testing.assert_array_equal(got["last_h"], feeds["h"])
    np.testing.assert_array_equal(got["last_c"], feeds["c"])


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_lengths_out_of_range_are_clamped(direction: str) -> None:
    graph = recurrent("GRU", lengths=True, direction=direction)
    session = backend.open_session(backend.build(graph))
    feeds = feeds_of(graph, 5, 3)
    wrong = {**feeds, "lengths": np.array([9, -2, 3], np.int32)}
    right = {**feeds, "lengths": np.array([5, 0, 3], np.int32)}
    for name, array in session.run(wrong).items():
        np.testing.assert_array_equal(array, session.run(right)[name])


def test_nan_stays_in_its_row() -> None:
    graph = recurrent("LSTM")
    session = backend.open_session(backend.build(graph))
    feeds = feeds_of(graph, 3, 6)
    clean = session.run(feeds)["y"]
    feeds["x"][1, 2, 0] = np.nan
    y = session.run(feeds)["y"]
    assert np.isnan(y[1:, :, 2]).all()
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(y[:, :, others], clean[:, :, others])


def test_half_precision_is_computed_in_single() -> None:
    graph = recurrent("GRU", dtype=DType.F16)
    feeds = feeds_of(graph, 4, 3)
    got = backend.open_session(backend.build(graph)).run(feeds)["y"]
    want = evaluate(recurrent("GRU"), {n: a.astype(np.float32) for n, a in feeds.items()})["y"]
    assert got.dtype == np.float16
    # Weights and results rounded to 11 bits, results of about one.
    np.testing.assert_allclose(got.astype(np.float32), want, atol=4e-3)


def test_double_precision_is_kept() -> None:
    graph = recurrent("LSTM", dtype=DType.F64, lengths=True)
    feeds = feeds_of(graph, 4, 6)
    got, want = (
        backend.open_session(backend.build(graph)).run(feeds),
        evaluate(graph, feeds),
    )
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-13, atol=1e-13)


def test_layers_with_equal_cells_share_a_kernel() -> None:
    graph = TABLE.graph()
    x = graph.add_input("x", TensorType(DType.F32, (LENGTH, BATCH, HIDDEN)))
    rng = np.random.default_rng(0)
    for _ in range(2):
        w, r = (graph.constant(rng.random((1, HIDDEN, HIDDEN)).astype(np.float32)) for _ in "wr")
        y = graph.emit("RNN", [x, w, r], {"hidden_size": HIDDEN})
        x = graph.emit("Squeeze", [y, graph.constant(np.array([1]))])
    graph.set_outputs([x])
    module, _ = lower(graph, RULES)
    assert sum("rnn" in name.name_hint for name in module.get_global_vars()) == 1


# -- activations -----------------------------------------------------------------------------------

# What they are in double precision, with the parameters that they have by default.
EXACT: dict[str, Any] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softplus": lambda x: np.logaddexp(0, x),
    "leakyrelu": lambda x: np.where(x > 0, x, 0.01 * x),
    "thresholdedrelu": lambda x: np.where(x > 1, x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "hardsigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "affine": lambda x: x,
    "scaledtanh": np.tanh,
}


def test_activations_are_those_of_numpy() -> None:
    lanes = 16

    def kernel(name: str) -> Any:
        _, alpha, beta = FUNCTIONS[name]
        activation = Activation(name, alpha or 0.0, beta or 0.0)

        def body() -> None:
            n = emit.size("n")
            x, y = (emit.parameter(p, (n,), "float32") for p in "xy")
            with T.serial(0, n // lanes) as i:
                value = activation(emit.load(x, i * lanes, lanes=lanes))
                emit.store(y, value, i * lanes, lanes=lanes)

        return emit.function(name, body)

    assert EXACT.keys() == FUNCTIONS.keys()
    module = tvm.IRModule({name: kernel(name) for name in EXACT})
    library = compile_module(module, tvm_target(Target.host().features, cores=1))
    ends = np.array([np.inf, -np.inf, 0, 1e30, -1e30, 1e-30, 88, -88], np.float32)
    x = np.concatenate([np.linspace(-100, 100, 4000), np.linspace(-2, 2, 4000), ends, ends])
    x = x.astype(np.float32)
    for name, exact in EXACT.items():
        y, nan = (tvm.runtime.tensor(np.zeros_like(x)) for _ in range(2))
        library[name](tvm.runtime.tensor(x), y)
        with np.errstate(over="ignore", invalid="ignore"):
            want = exact(x.astype(np.float64))
        # Polynomials of 3e-7 relative error, and four roundings.
        np.testing.assert_allclose(y.numpy(), want, rtol=6e-7, atol=3e-7, err_msg=name)
        library[name](tvm.runtime.tensor(np.full_like(x, np.nan)), nan)
        assert np.isnan(nan.numpy()).all() or name == "thresholdedrelu", name
