"""Attention and RotaryEmbedding as the generic rules lower them: each form, of open sizes, gives what
the op table says it means, which is held against ONNX Runtime elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from attentions import BATCH, FORMS, HEADS, PAST, SIZES, K, Q, attention, boolean, feeds_of, real

from tersor.errors import Unsupported
from tersor.ir import DType, Graph, TensorType, symbol
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.target import Target

tvm = pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tersor.backends.tvm.lowering import MAIN, lower  # noqa: E402
from tersor.backends.tvm.ops import RULES  # noqa: E402
from tersor.backends.tvm.pipeline import compile_module, tvm_target  # noqa: E402

HOST = tvm_target(Target.host().features, cores=1)
OTHER = {"batch": 1, "queries": 1, "keys": 9, "past": 2}

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def compiled(graph: Graph) -> Run:
    """The graph as it stands: no kernel takes its place."""
    module, parameters = lower(graph, RULES)
    machine = tvm.relax.VirtualMachine(compile_module(module, HOST), tvm.cpu())

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        given = [feeds[v.name] for v in graph.inputs] + parameters
        made = machine[MAIN](*(tvm.runtime.tensor(np.array(a, order="C")) for a in given))
        return [tensor.numpy() for tensor in made]

    return run


def check(graph: Graph, *feeds: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """Compiles once, runs each of ``feeds``."""
    run = compiled(graph)
    for given in feeds:
        for mine, theirs in zip(run(given), evaluate(graph, given).values(), strict=True):
            assert mine.shape == theirs.shape
            assert mine.dtype == theirs.dtype
            # Sums of up to 13 products of magnitude 1 in another order, exp to 3e-7.
            np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("groups", [HEADS, 2], ids=["each", "grouped"])
@pytest.mark.parametrize("flat", [True, False], ids=["hidden", "heads"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_means_the_same(form: str, flat: bool, groups: int) -> None:
    graph = attention(flat, groups, **FORMS[form])
    check(graph, feeds_of(graph), feeds_of(graph, OTHER))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize(
    "mask", [None, boolean(BATCH, 1, 1, PAST + K), real(BATCH, 1, Q, PAST + K)]
)
def test_a_cache_is_read_and_returned(flat: bool, causal: int, mask: TensorType | None) -> None:
    graph = attention(flat, 2, mask, past=True, results=3, is_causal=causal)
    check(graph, feeds_of(graph), feeds_of(graph, OTHER), feeds_of(graph, {**SIZES, "past": 0}))


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("kind", [boolean, real])
def test_rows_without_a_key_give_zeros(kind: Any, causal: int) -> None:
    graph = attention(False, mask=kind(BATCH, HEADS, Q, K), is_causal=causal)
    feeds, none = feeds_of(graph), False if kind is boolean else -np.inf
    feeds["mask"][1, 2] = none
    feeds["mask"][2, :, :, 0] = none  # The first row's only key, where it is causal.
    check(graph, feeds)
    assert not compiled(graph)(feeds)[0][1, 2].any()


@pytest.mark.parametrize("mode", range(4))
def test_a_fourth_result_shows_the_scores(mode: int) -> None:
    attrs = {
        "qk_matmul_output_mode": mode,
        "softcap": 2.0,
        "q_num_heads": HEADS,
        "kv_num_heads": HEADS,
    }
    graph = attention(mask=boolean(BATCH, 1, 1, K))
    names = ["z", "key", "value", "scores"]
    node = graph.emit_node("Attention", graph.inputs, attrs, names=names)
    graph.set_outputs([node.outputs[0], node.outputs[3]], ["z", "scores"])
    check(graph, feeds_of(graph))


@pytest.mark.parametrize(("dtype", "tolerance"), [(DType.F64, 1e-12), (DType.F16, 4e-3)])
def test_other_floats(dtype: DType, tolerance: float) -> None:
    # Double: sums in another order. Half: results are rounded to 11 bits, and so are torch's sums.
    graph = attention(dtype=dtype, is_causal=1)
    check(graph, feeds_of(graph), tolerance=tolerance)


def test_what_is_rare_is_refused() -> None:
    with pytest.raises(Unsupported, match="a sliding window"):
        lower(attention(left_window_size=2), RULES)
    graph = attention(False)
    lengths = graph.add_input("lengths", TensorType(DType.I64, (BATCH,)))
    y = graph.emit("Attention", [*graph.inputs[:3], None, None, None, lengths])
    graph.set_outputs([y])
    with pytest.raises(Unsupported, match="lengths of a padded cache"):
        lower(graph, RULES)


# -- rotary embedding ------------------------------------------------------------------------------


@pytest.mark.parametrize("looked_up", [False, True])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("width", [0, 4])
@pytest.mark.parametrize("flat", [False, True])
def test_rotary_embedding(flat: bool, width: int, interleaved: int, looked_up: bool) -> None:
    graph, length, heads, size = TABLE.graph(), symbol("length"), 3, 8
    dims: Any = (BATCH, length, heads * size) if flat else (BATCH, heads, length, size)
    x = graph.add_input("x", TensorType(DType.F32, dims))
    half = (width or size) // 2
    table: Any = (symbol("places"), half) if looked_up else (BATCH, length, half)
    inputs = [x, *(graph.add_input(n, TensorType(DType.F32, table)) for n in ("cos", "sin"))]
    if looked_up:
        inputs.append(graph.add_input("at", TensorType(DType.I64, (BATCH, length))))
    attrs = {"interleaved": interleaved, "rotary_embedding_dim": width, "num_heads": heads}
    graph.set_outputs([graph.emit("RotaryEmbedding", inputs, attrs)], ["y"])
    rng = np.random.default_rng(0)

    def feeds(batch: int, length: int) -> dict[str, np.ndarray]:
        sizes = {"batch": batch, "length": length, "places": 11}
        made = {}
        for value in graph.inputs:
            shape = [d if isinstance(d, int) else sizes[str(d)] for d in value.tensor.dims or ()]
            whole = value.tensor.dtype is DType.I64
            made[value.name] = (
                rng.integers(0, 11, shape)
                if whole
                else rng.standard_normal(shape).astype(np.float32)
            )
        return made

    check(graph, feeds(2, 5), feeds(1, 1), tolerance=1e-6)
