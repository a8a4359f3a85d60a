"""Attention and RotaryEmbedding as the generic rules lower them, and Attention by the kernel: each form, of
open sizes, gives what the op table says it means, which is held against ONNX Runtime elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from attentions import BATCH, FORMS, HEADS, PAST, SIZES, K, Q, attention, boolean, feeds_of, real
from contract import Run, compiled_in_tvm

from tersor.errors import Unsupported
from tersor.ir import DType, Graph, TensorType, symbol
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate

pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tersor.backends.tvm.fuse import fuse
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.module import lower
from tersor.backends.tvm.ops import RULES

OTHER = {"batch": 1, "queries": 1, "keys": 9, "past": 2}
GROUPS = {"each": HEADS, "grouped": 2}
FLAT = {"hidden": True, "heads": False}


def every_form() -> dict[tuple[str, ...], Graph]:
    return {
        (form, flat, groups): attention(FLAT[flat], GROUPS[groups], **FORMS[form])
        for form in FORMS
        for flat in FLAT
        for groups in GROUPS
    }


MASKS = {
    "none": None,
    "padding": boolean(BATCH, 1, 1, PAST + K),
    "additive": real(BATCH, 1, Q, PAST + K),
}


def every_cache() -> dict[tuple[str, ...], Graph]:
    return {
        (flat, causal, mask): attention(
            FLAT[flat], 2, MASKS[mask], past=True, results=3, is_causal=int(causal)
        )
        for flat in FLAT
        for causal in "01"
        for mask in MASKS
    }


KINDS: dict[str, Any] = {"boolean": boolean, "additive": real}


def every_empty_row() -> dict[tuple[str, ...], Graph]:
    return {
        (kind, causal): attention(
            False, mask=KINDS[kind](BATCH, HEADS, Q, K), is_causal=int(causal)
        )
        for kind in KINDS
        for causal in "01"
    }


@cache
def compiled(
    make: Callable[[], dict[tuple[str, ...], Graph]],
) -> dict[tuple[str, ...], tuple[Graph, Run]]:
    """All graphs of a test, in one module."""
    graphs = make()
    runs = compiled_in_tvm(*graphs.values())
    return {key: (graphs[key], run) for key, run in zip(graphs, runs, strict=True)}


def check(graph: Graph, run: Run, *feeds: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    for given in feeds:
        for mine, theirs in zip(run(given), evaluate(graph, given).values(), strict=True):
            assert mine.shape == theirs.shape
            assert mine.dtype == theirs.dtype
            # Sums of up to 13 products of magnitude 1 in another order, exp to 3e-7.
            np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("flat", FLAT)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_means_the_same(form: str, flat: str, groups: str) -> None:
    graph, run = compiled(every_form)[form, flat, groups]
    check(graph, run, feeds_of(graph), feeds_of(graph, OTHER))


@pytest.mark.parametrize("flat", FLAT)
@pytest.mark.parametrize("causal", "01")
@pytest.mark.parametrize("mask", MASKS)
def test_a_cache_is_read_and_returned(flat: str, causal: str, mask: str) -> None:
    graph, run = compiled(every_cache)[flat, causal, mask]
    check(
        graph, run, feeds_of(graph), feeds_of(graph, OTHER), feeds_of(graph, {**SIZES, "past": 0})
    )


@pytest.mark.parametrize("causal", "01")
@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_key_give_zeros(kind: str, causal: str) -> None:
    graph, run = compiled(every_empty_row)[kind, causal]
    feeds, none = feeds_of(graph), False if kind == "boolean" else -np.inf
    feeds["mask"][1, 2] = none
    feeds["mask"][2, :, :, 0] = none  # The first row's only key, where it is causal.
    check(graph, run, feeds)
    assert not run(feeds)[0][1, 2].any()


def every_score() -> dict[tuple[str, ...], Graph]:
    graphs: dict[tuple[str, ...], Graph] = {}
    for mode in range(4):
        attrs = {
            "qk_matmul_output_mode": mode,
            "softcap": 2.0,
            "q_num_heads": HEADS,
            "kv_num_heads": HEADS,
        }
        graphs[str(mode),] = graph = attention(mask=boolean(BATCH, 1, 1, K))
        names = ["z", "key", "value", "scores"]
        node = graph.emit_node("Attention", graph.inputs, attrs, names=names)
        graph.set_outputs([node.outputs[0], node.outputs[3]], ["z", "scores"])
    return graphs


@pytest.mark.parametrize("mode", "0123")
def test_a_fourth_result_shows_the_scores(mode: str) -> None:
    graph, run = compiled(every_score)[mode,]
    check(graph, run, feeds_of(graph))


@pytest.mark.parametrize(("dtype", "tolerance"), [(DType.F64, 1e-12), (DType.F16, 4e-3)])
def test_other_floats(dtype: DType, tolerance: float) -> None:
    # Double: sums in another order. Half: results are rounded to 11 bits, and so are torch's sums.
    graph = attention(dtype=dtype, is_causal=1)
    (run,) = compiled_in_tvm(graph)
    check(graph, run, feeds_of(graph), tolerance=tolerance)


def test_what_is_rare_is_refused() -> None:
    with pytest.raises(Unsupported, match="a sliding window"):
        lower(attention(left_window_size=2), RULES)
    graph = attention(False)
    lengths = graph.add_input("lengths", TensorType(DType.I64, (BATCH,)))
    y = graph.emit("Attention", [*graph.inputs[:3], None, None, None, lengths])
    graph.set_outputs([y])
    with pytest.raises(Unsupported, match="lengths of a padded cache"):
        lower(graph, RULES)


# -- the kernel ------------------------------------------------------------------------------------


def by_kernel() -> dict[tuple[str, ...], Graph]:
    return {
        ("softcap and mask",): attention(True, 2, **FORMS["softcap and mask"]),
        ("causal and additive",): attention(False, **FORMS["causal and additive"]),
        ("mask for each head",): attention(True, **FORMS["mask for each head"]),
        ("additive for each head",): attention(False, 2, **FORMS["additive for each head"]),
        ("additive of rank 2",): attention(True, 1, **FORMS["additive of rank 2"]),
        ("short mask",): attention(True, **FORMS["short mask"]),
        ("short additive mask",): attention(True, **FORMS["short additive mask"]),
        ("past",): attention(True, 2, past=True, results=3, is_causal=1),
        ("past alone",): attention(False, 2, real(BATCH, 1, Q, PAST + K), past=True),
        ("past and mask",): attention(
            False, 1, boolean(BATCH, 1, 1, PAST + K), past=True, results=3, is_causal=1
        ),
        ("read keys",): attention(True, results=3),
    }


@cache
def kernels() -> dict[tuple[str, ...], tuple[Graph, Run]]:
    graphs = by_kernel()
    runs = compiled_in_tvm(*graphs.values(), kernels=True)
    return {key: (graphs[key], run) for key, run in zip(graphs, runs, strict=True)}


@pytest.mark.parametrize("form", [form for (form,) in by_kernel()])
def test_the_kernel_means_the_same(form: str) -> None:
    graph, run = kernels()[form,]
    assert [n.op for n in fuse(graph, Isa(8, "widen", 1)).nodes] == ["tvm.Attention"]
    check(
        graph, run, feeds_of(graph), feeds_of(graph, OTHER),
        feeds_of(graph, {"batch": 2, "queries": 35, "keys": 40, "past": 0}),
    )  # fmt: skip


# -- rotary embedding ------------------------------------------------------------------------------

PLACES = {"in order": False, "looked up": True}
ORDER = {"halves": 0, "interleaved": 1}
WIDTHS = {"whole": 0, "partial": 4}


def rotary(flat: bool, width: int, interleaved: int, looked_up: bool) -> Graph:
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
    return graph


def every_rotary() -> dict[tuple[str, ...], Graph]:
    return {
        (flat, width, order, places): rotary(
            FLAT[flat], WIDTHS[width], ORDER[order], PLACES[places]
        )
        for flat in FLAT
        for width in WIDTHS
        for order in ORDER
        for places in PLACES
    }


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("order", ORDER)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("flat", FLAT)
def test_rotary_embedding(flat: str, width: str, order: str, places: str) -> None:
    graph, run = compiled(every_rotary)[flat, width, order, places]
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

    check(graph, run, feeds(2, 5), feeds(1, 1), tolerance=1e-6)
