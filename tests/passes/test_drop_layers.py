"""Layers that are dropped: which ones, what stands in their place, and where none can go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.backends import ort
from tersor.driver.recipe import build_pass
from tersor.errors import InvalidOption
from tersor.ir import Graph, Value, parse, print_graph, verify, weights_of
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.prune.drop_layers import DropLayers, angular_distances
from tersor.pipeline import Pipeline
from tersor.pipeline.report import PassReport, Remark

T = "f32[batch, seq, 4]"
HEAD = f"""graph main(%ids: i64[batch, seq], %mask: i64[batch, seq]) -> (y = %y) {{
  @table: f32[9, 4] = dense normal(0)
  @g: f32[4] = dense [1.0, 2.0, 1.0, 0.5]
  @b: f32[4] = dense [0.0, 0.5, 1.0, -0.5]
  @w0: f32[4, 4] = dense normal(1)
  @w1: f32[4, 4] = dense normal(2)
  @w2: f32[4, 4] = dense normal(3)
  %x0: {T} = Gather(@table, %ids) {{axis = 0}}
"""
NORM = "{axis = -1, epsilon = 0.001}"
# s1 = x0 + norm(x0) w0;  s2 = s1 + norm(s1) w1;  y = norm(s2 + norm(s2) w2)
PRE_NORM = f"""{HEAD}
  %n0: {T} = LayerNormalization(%x0, @g, @b) {NORM}
  %f0: {T} = tersor.Linear(%n0, @w0) {{activation = "relu"}} scope "stack.0"
  %n1: {T}, %s1: {T} = tersor.AddLayerNormalization(%x0, %f0, @g, @b) {NORM}
  %f1: {T} = tersor.Linear(%n1, @w1) {{activation = "relu"}} scope "stack.1"
  %n2: {T}, %s2: {T} = tersor.AddLayerNormalization(%s1, %f1, @g, @b) {NORM}
  %f2: {T} = tersor.Linear(%n2, @w2) {{activation = "relu"}} scope "stack.2"
  %y: {T} = tersor.AddLayerNormalization(%s2, %f2, @g, @b) {NORM}
}}"""
WITHOUT = {
    0: f"""
  %n: {T} = LayerNormalization(%x0, @g, @b) {NORM}
  %f1: {T} = tersor.Linear(%n, @w1) {{activation = "relu"}} scope "stack.1"
  %n2: {T}, %s: {T} = tersor.AddLayerNormalization(%x0, %f1, @g, @b) {NORM}
  %f2: {T} = tersor.Linear(%n2, @w2) {{activation = "relu"}} scope "stack.2"
  %y: {T} = tersor.AddLayerNormalization(%s, %f2, @g, @b) {NORM}
}}""",
    1: f"""
  %n0: {T} = LayerNormalization(%x0, @g, @b) {NORM}
  %f0: {T} = tersor.Linear(%n0, @w0) {{activation = "relu"}} scope "stack.0"
  %n1: {T}, %s1: {T} = tersor.AddLayerNormalization(%x0, %f0, @g, @b) {NORM}
  %f2: {T} = tersor.Linear(%n1, @w2) {{activation = "relu"}} scope "stack.2"
  %y: {T} = tersor.AddLayerNormalization(%s1, %f2, @g, @b) {NORM}
}}""",
    2: f"""
  %n0: {T} = LayerNormalization(%x0, @g, @b) {NORM}
  %f0: {T} = tersor.Linear(%n0, @w0) {{activation = "relu"}} scope "stack.0"
  %n1: {T}, %s1: {T} = tersor.AddLayerNormalization(%x0, %f0, @g, @b) {NORM}
  %f1: {T} = tersor.Linear(%n1, @w1) {{activation = "relu"}} scope "stack.1"
  %y: {T} = tersor.AddLayerNormalization(%s1, %f1, @g, @b) {NORM}
}}""",
}
POST_NORM = f"""{HEAD}
  %f0: {T} = tersor.Linear(%x0, @w0) {{activation = "relu"}}
  %x1: {T} = tersor.AddLayerNormalization(%x0, %f0, @g, @b) {NORM}
  %f1: {T} = tersor.Linear(%x1, @w1) {{activation = "relu"}}
  %x2: {T} = tersor.AddLayerNormalization(%f1, %x1, @g, @b) {NORM}
  %f2: {T} = tersor.Linear(%x2, @w2) {{activation = "relu"}}
  %y: {T} = tersor.AddLayerNormalization(%f2, %x2, @g, @b) {NORM}
}}"""


def feed(batch: int = 3, seq: int = 5) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, 9, (batch, seq))
    return {"ids": ids, "mask": np.ones((batch, seq), np.int64)}


def drop(graph: Graph, step: DropLayers, feeds: Any = None) -> tuple[Graph, PassReport]:
    pipeline = Pipeline([step], "text", calibration=feeds or [feed()], evaluate=evaluate)
    after = pipeline.run(graph)
    verify(after)
    assert after.signature() == graph.signature()
    return after, pipeline.reports[0]


def refusal(graph: Graph, step: DropLayers) -> str:
    with pytest.raises(InvalidOption) as caught:
        drop(graph, step)
    return str(caught.value)


def with_small(text: str, *small: str) -> Graph:
    """The graph with weights that hardly do anything, those called ``small``."""
    graph = parse(text, TABLE)
    for name in small:
        old = graph.constants[name]
        new = graph.constant(old.numpy() * 1e-3, name)
        graph.replace(old, new)
        graph.erase_constant(old)
    return graph


def shapes(graph: Graph) -> list[tuple[str, int]]:
    return [(node.op, len(node.outputs)) for node in graph.nodes]


# -- which layers, and what is left ----------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_layer_that_does_least_goes_as_if_it_had_never_been_there(which: int) -> None:
    graph = with_small(PRE_NORM, f"w{which}")
    after, report = drop(graph, DropLayers(count=1))
    wanted = parse(HEAD + WITHOUT[which], TABLE)
    assert shapes(after) == shapes(wanted)
    assert [n.scope for n in after.nodes if n.op == "tersor.Linear"] == [
        n.scope for n in wanted.nodes if n.op == "tersor.Linear"
    ]
    np.testing.assert_array_equal(
        evaluate(after, feed(2, 7))["y"], evaluate(wanted, feed(2, 7))["y"]
    )
    assert report.rewrites == 1
    assert (report.notes[0].method, report.notes[0].layer) == ("dropped", f"stack.{which}")
    assert report.notes[-1].reason == "2 of 3 layers are left"
    assert not any(name.startswith(f"w{which}") for name in after.constants)


def test_post_norm_drops_the_norm_with_its_layer() -> None:
    after, _ = drop(with_small(POST_NORM, "w1"), DropLayers(count=1))
    assert [n.op for n in after.nodes].count("tersor.AddLayerNormalization") == 2
    wanted = POST_NORM.replace("tersor.Linear(%x2, @w2)", "tersor.Linear(%x1, @w2)")
    wanted = wanted.replace("(%f2, %x2, @g", "(%f2, %x1, @g")
    np.testing.assert_array_equal(
        evaluate(after, feed())["y"], evaluate(parse(wanted, TABLE), feed())["y"]
    )


def test_consecutive_layers_go_at_once_others_one_by_one() -> None:
    graph = with_small(PRE_NORM, "w0", "w2")
    _, together = drop(graph, DropLayers(count=2))
    _, apart = drop(graph, DropLayers(count=2, consecutive=False))
    dropped = [[n.layer for n in r.notes if n.method == "dropped"] for r in (together, apart)]
    assert dropped[0] in (["stack.0", "stack.1"], ["stack.1", "stack.2"])
    assert sorted(dropped[1]) == ["stack.0", "stack.2"]


def test_a_share_of_the_layers_is_rounded() -> None:
    for amount, left in ((0.3, 2), (0.5, 1), (0.6, 1)):
        _, report = drop(parse(PRE_NORM, TABLE), DropLayers(amount=amount))
        assert report.notes[-1].reason == f"{left} of 3 layers are left"


# -- distances -------------------------------------------------------------------------------------


def pair(text: str) -> tuple[Graph, tuple[Value, Value]]:
    graph = parse(text, TABLE)
    values = {v.name: v for v in graph.values()}
    return graph, (values["u"], values["v"])


def test_distances_are_those_of_the_angle_with_the_mean_cosine_and_padding_has_none() -> None:
    graph, found = (
        pair("""graph main(%x: f32[b, s, 2], %d: f32[b, s, 2], %mask: i64[b, s]) -> (y = %v, m = %mask) {
  %u: f32[b, s, 2] = Neg(%x)
  %v: f32[b, s, 2] = Add(%u, %d)
}""")
    )
    u = np.array([[[1, 0], [0, 2], [5, 5]], [[3, 0], [5, 5], [5, 5]]], np.float32)
    v = np.array([[[0, 3], [0, 1], [-9, 7]], [[2, 2], [-1, 7], [0, 0]]], np.float32)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    distances = angular_distances(graph, [found], [{"x": -u, "d": v - u, "mask": mask}], evaluate)
    expected = np.arccos((0 + 1 + np.sqrt(0.5)) / 3) / np.pi
    np.testing.assert_allclose(distances, [expected], rtol=1e-6)  # f32 activations


def test_rows_of_zeros_or_nan_count_for_nothing_and_none_at_all_for_the_largest_distance() -> None:
    text = """graph main(%x: f32[n, 2], %d: f32[n, 2]) -> (y = %v) {
  %u: f32[n, 2] = Neg(%x)
  %v: f32[n, 2] = Add(%u, %d)
}"""
    graph, found = pair(text)
    x, d = np.array([[-1, 0], [0, 0], [np.nan, 1]], np.float32), np.zeros((3, 2), np.float32)
    assert angular_distances(graph, [found], [{"x": x, "d": d}], evaluate) == [0.0]
    assert angular_distances(graph, [found], [{"x": x[1:], "d": d[1:]}], evaluate) == [1.0]


def test_maps_of_pixels_are_compared_as_a_whole() -> None:
    graph, found = pair("""graph main(%x: f32[n, 2, 1, 2], %d: f32[n, 2, 1, 2]) -> (y = %v) {
  %u: f32[n, 2, 1, 2] = Neg(%x)
  %v: f32[n, 2, 1, 2] = Add(%u, %d)
}""")
    u = np.array([1, 2, 3, 4], np.float32).reshape(1, 2, 1, 2)
    v = np.array([4, 3, 2, 1], np.float32).reshape(1, 2, 1, 2)
    distances = angular_distances(graph, [found], [{"x": -u, "d": v - u}], evaluate)
    np.testing.assert_allclose(distances, [np.arccos(20 / 30) / np.pi], rtol=1e-6)


def test_a_layer_that_makes_nan_is_the_last_to_go() -> None:
    graph = parse(PRE_NORM, TABLE)
    old = graph.constants["w2"]
    graph.replace(old, graph.constant(np.full((4, 4), np.nan, np.float32), "broken"))
    graph.erase_constant(old)
    _, report = drop(graph, DropLayers(count=1))
    assert report.notes[0].layer != "stack.2"


# -- where nothing goes ----------------------------------------------------------------------------


def test_nothing_happens_where_no_layers_repeat() -> None:
    text = f'{HEAD}\n  %y: {T} = tersor.Linear(%x0, @w0) {{activation = "relu"}}\n}}'
    graph = parse(text.replace("  @w1: f32[4, 4] = dense normal(2)\n", ""), TABLE)
    after, report = drop(graph, DropLayers(count=1))
    assert print_graph(after) == print_graph(parse(print_graph(graph), TABLE, weights_of(graph)))
    assert report.notes == [Remark("no block repeats: nothing to drop")]
    assert report.rewrites == 0


@pytest.mark.parametrize("step", [DropLayers(), DropLayers(amount=0.1)])
def test_a_count_of_none_changes_nothing(step: DropLayers) -> None:
    graph = parse(PRE_NORM, TABLE)
    after, report = drop(graph, step)
    assert print_graph(after) == print_graph(graph)
    assert report.rewrites == 0
    assert report.notes == [Remark("0 of 3 layers to drop: set count or amount")]
    assert refusal(graph, DropLayers(count=1, amount=0.5)).endswith("set count or amount, not both")


@pytest.mark.parametrize("options", [{"count": 3}, {"count": 9}, {"amount": 1.0}])
def test_one_layer_has_to_stay(options: dict[str, Any]) -> None:
    step = DropLayers(**options)
    gone = options.get("count", 3)
    message = refusal(parse(PRE_NORM, TABLE), step)
    assert message == f"{step.label}: cannot drop {gone} of 3 layers: one has to stay"


def test_layers_whose_inner_values_the_model_returns_stay() -> None:
    text = PRE_NORM.replace("(y = %y)", "(y = %y, key = %f1)")
    graph = parse(text, TABLE)
    after, report = drop(graph, DropLayers(count=1))
    (skip,) = report.skips
    assert skip.reason == "the model also returns 'key' from inside it"
    assert skip.method == "layer stack.1 stays"
    assert "stack.1" not in [note.layer for note in report.notes]
    assert len(after.outputs) == 2
    message = refusal(graph, DropLayers(count=2))
    assert message.endswith("there are no 2 consecutive layers that can all be dropped")
    after, _ = drop(graph, DropLayers(count=2, consecutive=False))
    assert [n.scope for n in after.nodes if n.op == "tersor.Linear"] == ["stack.1"]


def test_where_all_layers_are_pinned_nothing_goes_and_where_too_many_are_the_reason_is_told() -> (
    None
):
    graph = parse(PRE_NORM.replace("(y = %y)", "(y = %y, a = %f0, b = %f1, c = %f2)"), TABLE)
    after, report = drop(graph, DropLayers(count=1))
    assert print_graph(after) == print_graph(graph)
    assert report.notes == [Remark("no layer can be dropped: nothing to drop")]
    assert len(report.skips) == 3
    graph = parse(PRE_NORM.replace("(y = %y)", "(y = %y, a = %f0, b = %f1)"), TABLE)
    assert refusal(graph, DropLayers(count=2)).endswith(
        "2 of 3 layers: 2 have to stay, stack.0 because the model also returns 'a' from inside it"
    )


def test_calibration_is_asked_for() -> None:
    with pytest.raises(InvalidOption, match="drop-layers needs calibration, and none"):
        Pipeline([DropLayers()], evaluate=evaluate).run(parse(PRE_NORM, TABLE))


@pytest.mark.parametrize(
    ("options", "wrong"),
    [({"count": -1}, "count"), ({"amount": 1.5}, "amount"), ({"unit": "head"}, "unit")],
)
def test_options_are_checked(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InvalidOption, match=f"pass drop-layers: {wrong}"):
        build_pass("drop-layers", options)


# -- real models -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_minilm_without_a_block_runs_at_any_size() -> None:
    import tersor
    from tersor.models.minilm import build, data
    from tersor.numerics.fidelity import fidelity
    from tersor.pipeline.registry import optimization

    module, run = build.build(), ort.Evaluator()
    graph = tersor.frontends.load_model(
        module, example_inputs=build.example_inputs(), dynamic_shapes=build.DYNAMIC_SHAPES
    ).graph
    fused = Pipeline(optimization()).run(graph)
    pipeline = Pipeline([DropLayers(count=1)], calibration=data.calibration()[:2], evaluate=run)
    after = pipeline.run(fused)
    assert pipeline.reports[0].notes[-1].reason == "5 of 6 layers are left"
    feeds = [data.encode(data.sentences()[500:532]), data.encode(data.sentences()[500:501])]
    told = fidelity([run(fused, f) for f in feeds], [run(after, f) for f in feeds])
    # 0.93 on 192 sentences; a layer more, or one at random, is below 0.9.
    assert told.mean_cosine is not None and told.mean_cosine > 0.9


@pytest.mark.slow
def test_a_decoder_with_cross_attention_and_one_with_a_cache() -> None:
    from tersor.frontends import load_model
    from tersor.models.gpt2_tiny import build as gpt2
    from tersor.models.gpt2_tiny import shape
    from tersor.models.t5_tiny import build as t5
    from tersor.models.t5_tiny import data
    from tersor.pipeline.registry import optimization

    fused = Pipeline(optimization()).run(
        load_model(
            t5.module(), example_inputs=t5.example_inputs(), dynamic_shapes=t5.DYNAMIC_SHAPES
        ).graph
    )
    run = ort.Evaluator()
    pipeline = Pipeline([DropLayers(count=2, unit="sublayer", consecutive=False)], calibration=data.calibration()[:1], evaluate=run)  # fmt: skip
    after = pipeline.run(fused)
    assert pipeline.reports[0].notes[-1].reason == "8 of 10 layers are left"
    assert run(after, data.calibration()[1]).keys() == run(fused, data.calibration()[1]).keys()

    examples = {k: v.numpy() for k, v in gpt2.example_inputs().items()}
    cached = Pipeline(optimization()).run(
        load_model(
            gpt2.module(), example_inputs=gpt2.example_inputs(), dynamic_shapes=shape.DYNAMIC_SHAPES
        ).graph
    )
    pipeline = Pipeline(
        [DropLayers(count=1, unit="sublayer")], calibration=[examples], evaluate=run
    )
    after = pipeline.run(cached)
    assert len(pipeline.reports[0].skips) == 2
    assert all("the model also returns" in skip.reason for skip in pipeline.reports[0].skips)
    assert ".mlp" in pipeline.reports[0].notes[0].layer
    assert {k: v.shape for k, v in run(after, examples).items()} == {
        k: v.shape for k, v in run(cached, examples).items()
    }
