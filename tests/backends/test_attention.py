"""Each form of ONNX's Attention, lowered, gives in ONNX Runtime what the op table says it means."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnxruntime
import pytest
from attentions import BATCH, FORMS, HEADS, PAST, SIZES, D, K, Q, attention, boolean, feeds_of, real

from tersor.backends import ort
from tersor.backends.ort.lower import lower
from tersor.backends.ort.options import LowerOptions
from tersor.frontends.onnx import import_model
from tersor.frontends.onnx.exporter import export_model
from tersor.ir import DType, Graph, TensorType, parse, verify
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.pipeline import Pipeline, registry


def run(graph: Graph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        export_model(graph).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(graph.output_names, session.run(None, feeds), strict=True))


def check(graph: Graph, feeds: dict[str, np.ndarray], options: LowerOptions | None = None) -> Graph:
    lowered = lower(graph, options)
    verify(lowered)
    expected, got = evaluate(graph, feeds), run(lowered, feeds)
    for name in expected:
        assert np.isfinite(expected[name]).all()
        assert got[name].shape == expected[name].shape
        # Sums of up to 11 products of magnitude 1 in another order: some ulps of a few units.
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-5)
    return lowered


@pytest.mark.parametrize("groups", [HEADS, 2, 1], ids=["each", "grouped", "one"])
@pytest.mark.parametrize("flat", [True, False], ids=["hidden", "heads"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_written_out_and_means_the_same(form: str, flat: bool, groups: int) -> None:
    graph = attention(flat, groups, **FORMS[form])
    lowered = check(graph, feeds_of(graph))
    assert "Attention" not in Counter(n.op for n in lowered.walk())


@pytest.mark.parametrize("groups", [HEADS, 2])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize(
    "mask", [None, boolean(BATCH, 1, 1, PAST + K), real(BATCH, 1, Q, PAST + K)]
)
def test_a_cache_is_read_and_returned(
    flat: bool, groups: int, causal: int, mask: TensorType | None
) -> None:
    graph = attention(flat, groups, mask, past=True, results=3, is_causal=causal)
    feeds = feeds_of(graph)
    lowered = check(graph, feeds)
    assert "Attention" not in Counter(n.op for n in lowered.walk())


@pytest.mark.parametrize("attention_option", ["unfused", "mha"])
@pytest.mark.parametrize("flat", [True, False])
def test_a_row_whose_keys_are_all_masked_gives_zeros(flat: bool, attention_option: str) -> None:
    graph = attention(flat, mask=boolean(BATCH, 1, 1, K))
    feeds = feeds_of(graph)
    feeds["mask"][1] = False
    check(graph, feeds, LowerOptions(attention=attention_option))
    assert not evaluate(graph, feeds)["y"][1].any()


@pytest.mark.parametrize("kind", [boolean, real])
def test_a_masked_query_gives_zeros_in_multi_head_attention_too(kind: Any) -> None:
    graph = attention(mask=kind(BATCH, 1, Q, K))
    feeds = feeds_of(graph)
    feeds["mask"][1, :, 2] = False if kind is boolean else -np.inf
    check(graph, feeds, LowerOptions(attention="mha"))
    assert not evaluate(graph, feeds)["y"][1, 2].any()


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("groups", [HEADS, 2])
def test_a_row_of_minus_infinity_gives_zeros(groups: int, causal: int) -> None:
    graph = attention(False, groups, mask=real(BATCH, HEADS, Q, K), is_causal=causal)
    feeds = feeds_of(graph)
    feeds["mask"][1, 2] = -np.inf
    feeds["mask"][2, :, :, 0] = -np.inf  # The first row's only key, where it is causal.
    check(graph, feeds)
    assert not evaluate(graph, feeds)["y"][1, 2].any()


@pytest.mark.parametrize("option", ["unfused", "mha"])
@pytest.mark.parametrize("causal", [0, 1])
def test_the_lowest_float_is_more_than_minus_infinity(causal: int, option: str) -> None:
    """A row of both, as where two masks are added: keys of -inf have no part in the mean of the others."""
    graph = attention(mask=real(BATCH, 1, Q, K), is_causal=causal)
    feeds = feeds_of(graph)
    feeds["mask"][1, :, 3], feeds["mask"][1, :, 3, 2:5] = np.finfo(np.float32).min, -np.inf
    check(graph, feeds, LowerOptions(attention=option))
    finite = attention(mask=boolean(BATCH, 1, Q, K), is_causal=causal)
    zero, low = (finite.constant(np.float32(n), "n") for n in (0, np.finfo(np.float32).min))
    node = next(finite.nodes)
    with finite.at(node):
        finite.set_input(node, 3, finite.emit("Where", [node.inputs[3], zero, low]))
    feeds["mask"] = np.ones(feeds["mask"].shape, bool)
    feeds["mask"][0, :, 2, :3] = feeds["mask"][2] = (
        False  # Of the third row, all that a causal one sees.
    )
    check(finite, feeds, LowerOptions(attention=option))


def test_portable_lowering_uses_standard_ops_only() -> None:
    graph = attention(mask=boolean(BATCH, 1, 1, K))
    lowered = check(graph, feeds_of(graph), LowerOptions(attention="mha", portable=True))
    assert not [n.op for n in lowered.walk() if "." in n.op]


@pytest.mark.parametrize(
    ("form", "taken"),
    [
        ({"mask": boolean(BATCH, 1, 1, K)}, True),
        ({"mask": boolean(BATCH, 1, Q, K)}, True),
        ({"mask": real(1, 1, Q, K)}, True),
        ({"mask": boolean(BATCH, 1, Q, PAST + K), "past": True, "results": 3, "dv": D}, True),
        ({"mask": real(BATCH, 1, Q, PAST + K), "past": True, "results": 3, "dv": D}, True),
        ({"past": True, "results": 3, "dv": D}, True),
        ({"past": True, "dv": D}, False),
        ({"past": True, "results": 3}, False),
        ({"mask": boolean(BATCH, 1, 1, PAST + K), "past": True, "results": 3}, False),
        ({"mask": boolean(BATCH, HEADS, Q, K)}, False),
        ({"mask": real(BATCH, 1, 1, K)}, False),
        ({"mask": boolean(Q, K)}, False),
        ({"is_causal": 1}, False),
        ({"is_causal": 1, "past": True, "results": 3}, False),
        ({"groups": 2}, False),
        ({"softcap": 2.0}, False),
    ],
)
def test_multi_head_attention_takes_what_it_can_say(form: dict[str, Any], taken: bool) -> None:
    graph = attention(**form)
    lowered = check(graph, feeds_of(graph), LowerOptions(attention="mha"))
    counts = Counter(n.op for n in lowered.walk())
    assert bool(counts["com.microsoft.MultiHeadAttention"]) is taken


@pytest.mark.parametrize("read", [1, 2])
def test_a_past_is_read_where_what_it_becomes_is_not(read: int) -> None:
    # ONNX Runtime's MultiHeadAttention without its second and third result ignores the past.
    graph = attention(past=True, results=3, dv=D)
    graph.set_outputs(graph.outputs[:read], graph.output_names[:read])
    check(graph, feeds_of(graph), LowerOptions(attention="mha"))


@pytest.mark.parametrize("attention_option", ["unfused", "mha"])
def test_an_empty_past_is_no_past(attention_option: str) -> None:
    graph = attention(mask=boolean(BATCH, 1, Q, PAST + K), past=True, results=3, dv=D)
    feeds = feeds_of(graph, {**SIZES, "past": 0})
    check(graph, feeds, LowerOptions(attention=attention_option))


def test_double_precision_is_written_out_too() -> None:
    graph = attention(dtype=DType.F64, is_causal=1)
    assert "Attention" not in Counter(n.op for n in check(graph, feeds_of(graph)).walk())


def test_a_fourth_result_keeps_the_standard_op() -> None:
    graph = attention()
    q, k, v = graph.inputs
    attrs = {"q_num_heads": HEADS, "kv_num_heads": HEADS}
    node = graph.emit_node("Attention", [q, k, v], attrs, names=["z", "a", "b", "scores"])
    graph.set_outputs([node.outputs[3]], ["scores"])
    lowered = check(graph, feeds_of(graph))
    assert Counter(n.op for n in lowered.walk())["Attention"] == 1


def test_layers_share_one_prepared_mask() -> None:
    graph = attention(mask=boolean(BATCH, 1, 1, K))
    q, k, v, mask = graph.inputs
    attrs = {"q_num_heads": HEADS, "kv_num_heads": HEADS}
    again = graph.emit("Attention", [q, k, v, mask], {**attrs, "scale": 0.1})
    graph.set_outputs([graph.outputs[0], again], ["y", "again"])
    lowered = check(graph, feeds_of(graph))
    assert Counter(n.op for n in lowered.walk())["Where"] == 1


@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
def test_a_mask_of_one_row_holds_for_all_queries(dtype: str) -> None:
    """Found by random graphs: the runtime's own kernel refuses it, so the op is written out."""
    graph = parse(
        f"""
        graph main(%q: {dtype}[batch, 2, seq, 4], %mask: {dtype}[1, 3]) -> (y = %y) {{
          @k: {dtype}[1, 2, 3, 4] = dense normal(1)
          @v: {dtype}[1, 2, 3, 4] = dense normal(2)
          %y: {dtype}[batch, 2, seq, 4] = Attention(%q, @k, @v, %mask)
        }}
        """,
        TABLE,
    )
    numpy = DType(dtype).numpy
    rng = np.random.default_rng(0)
    feed = {"q": rng.standard_normal((1, 2, 5, 4)).astype(numpy), "mask": np.ones((1, 3), numpy)}
    for portable in (False, True):
        choice = ort.Choice(LowerOptions(portable=portable))
        got = ort.open_session(ort.build(graph, choice)).run(feed)["y"]
        want = evaluate(graph, feed)["y"]
        # f16 keeps three digits of numbers of about one.
        np.testing.assert_allclose(got, want, atol=5e-3 if dtype == "f16" else 1e-5)


def test_what_is_written_out_is_taken_in_again() -> None:
    """A portable file of ours is an input like any other, rows without keys included."""
    text = """
        graph main(%q: f32[batch, 2, seq, 4], %k: f32[batch, 2, keys, 4], %v: f32[batch, 2, keys, 4], %mask: bool[batch, 1, 1, keys]) -> (y = %y) {
          %y: f32[batch, 2, seq, 4] = Attention(%q, %k, %v, %mask)
        }"""
    rng = np.random.default_rng(0)
    feed = {
        n: rng.standard_normal((3, 2, s, 4)).astype("f") for n, s in (("q", 5), ("k", 7), ("v", 7))
    }
    feed["mask"] = np.stack([np.ones(7, bool), np.zeros(7, bool), np.arange(7) < 3])[:, None, None]
    graph = parse(text, TABLE)
    written = lower(graph, LowerOptions(portable=True))
    assert "Attention" not in Counter(n.op for n in written.walk())
    back = Pipeline(registry.optimization()).run(import_model(export_model(written)))
    assert Counter(n.op for n in back.walk()) == {"Attention": 1}
    want, got = evaluate(graph, feed)["y"], evaluate(back, feed)["y"]
    assert not want[1].any()
    np.testing.assert_allclose(got, want, atol=1e-6)
