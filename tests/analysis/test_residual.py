"""Layers are found by what repeats on a stream, in any dress, and pinned where something else reads them."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.analysis.residual import Unit, find_layers
from tersor.ir import Graph, parse, verify
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.transforms.skip_norm import fuse_skip_norms, split_skip_norms

T = "f32[n, 4]"


def graph_of(lines: list[str], result: str, more: str = "", inputs: str = "") -> Graph:
    text = [f"graph main(%x0: {T}{inputs}) -> (y = %{result}{more}) {{"]
    text += [f"@w{i}: f32[4, 4] = dense normal({i})" for i in range(8)]
    text += [
        "@g: f32[4] = dense normal(8)",
        "@b: f32[4] = dense normal(9)",
        "@half: f32[] = dense [0.5]",
    ]
    graph = parse("\n".join([*text, *lines, "}"]), TABLE)
    verify(graph)
    return graph


def pre_norm(i: int, x: str, y: str, activation: str = "relu") -> list[str]:
    """y = x + relu(norm(x) w) w'"""
    return [
        f"%n{i}: {T} = LayerNormalization(%{x}, @g, @b) {{axis = -1, epsilon = 0.001}}",
        f'%h{i}: {T} = tersor.Linear(%n{i}, @w{2 * i}) {{activation = "{activation}"}} scope "stack.{i}.up"',
        f'%f{i}: {T} = tersor.Linear(%h{i}, @w{2 * i + 1}) {{activation = "none"}} scope "stack.{i}.down"',
        f"%{y}: {T} = Add(%{x}, %f{i})",
    ]


def post_norm(i: int, x: str, y: str) -> list[str]:
    """y = norm(x w + x)"""
    return [
        f'%h{i}: {T} = tersor.Linear(%{x}, @w{i}) {{activation = "relu"}} scope "stack.{i}"',
        f"%s{i}: {T} = Add(%h{i}, %{x})",
        f"%{y}: {T} = LayerNormalization(%s{i}, @g, @b) {{axis = -1, epsilon = 0.001}}",
    ]


def two_kinds(i: int, x: str, y: str) -> list[str]:
    """m = x + relu(x w);  y = m + relu((m w') w'')"""
    return [
        f'%p{i}: {T} = tersor.Linear(%{x}, @w{i}) {{activation = "relu"}} scope "stack.{i}.first"',
        f"%m{i}: {T} = Add(%p{i}, %{x})",
        f"%q{i}: {T} = MatMul(%m{i}, @w{i + 2})",
        f"%r{i}: {T} = MatMul(%q{i}, @w{i + 4})",
        f"%t{i}: {T} = Relu(%r{i})",
        f"%{y}: {T} = Add(%m{i}, %t{i})",
    ]


def stack(layer: object, count: int) -> list[str]:
    assert callable(layer)
    return [line for i in range(count) for line in layer(i, f"x{i}", f"x{i + 1}")]


FINAL = f"%z: {T} = LayerNormalization(%x3, @g, @b) {{axis = -1, epsilon = 0.001}}"


def spans(graph: Graph, unit: Unit = "block") -> list[list[str]]:
    return [[f"{p.entry.name}-{p.exit.name}" for p in part] for part in find_layers(graph, unit)]


def test_pre_norm_layers_end_at_the_sum_and_the_last_norm_is_none_of_theirs() -> None:
    graph = graph_of([*stack(pre_norm, 3), FINAL], "z")
    assert spans(graph) == [["x0-x1", "x1-x2", "x2-x3"]]
    assert [layer.where for layer in find_layers(graph, "block")[0]] == [
        "stack.0",
        "stack.1",
        "stack.2",
    ]


def test_post_norm_layers_end_at_the_norm() -> None:
    assert spans(graph_of(stack(post_norm, 3), "x3")) == [["x0-x1", "x1-x2", "x2-x3"]]


def test_one_norm_more_behind_post_norm_is_none_of_its_layers() -> None:
    assert spans(graph_of([*stack(post_norm, 3), FINAL], "z")) == [["x0-x1", "x1-x2", "x2-x3"]]


def test_blocks_are_the_smallest_group_that_repeats_and_sublayers_its_parts() -> None:
    graph = graph_of(stack(two_kinds, 2), "x2")
    assert spans(graph) == [["x0-x1", "x1-x2"]]
    assert spans(graph, "sublayer") == [["x0-m0", "m0-x1", "x1-m1", "m1-x2"]]


def test_what_stands_before_the_repetition_is_no_block() -> None:
    odd = [
        f"%a: {T} = MatMul(%x0, @w7)",
        f"%c: {T} = Tanh(%a)",
        f"%d: {T} = MatMul(%c, @w7)",
        f"%e: {T} = MatMul(%d, @w7)",
        f"%x1: {T} = Add(%x0, %e)",
    ]
    rest = [line for i in (1, 2) for line in two_kinds(i, f"x{i}", f"x{i + 1}")]
    graph = graph_of([*odd, *rest], "x3")
    assert spans(graph) == [["x1-x2", "x2-x3"]]
    assert spans(graph, "sublayer") == [["x1-m1", "m1-x2", "x2-m2", "m2-x3"]]


@pytest.mark.parametrize(
    "lines",
    [
        ["%a: f32[n, 4] = MatMul(%x0, @w0)", "%x2: f32[n, 4] = MatMul(%a, @w1)"],
        pre_norm(0, "x0", "x2"),
        ["%a: f32[n, 4] = Add(%x0, @b)", "%c: f32[n, 4] = Relu(%a)", "%x2: f32[n, 4] = Add(%c, @b)"],
    ],
    ids=["no way around", "only one", "no weights"],
)  # fmt: skip
def test_no_layers(lines: list[str]) -> None:
    graph = graph_of(lines, "x2")
    assert spans(graph) == spans(graph, "sublayer") == []


def test_a_gate_by_the_stream_is_no_way_around() -> None:
    gated = [
        line
        for i in range(2)
        for line in (f"%h{i}: {T} = MatMul(%x{i}, @w{i})", f"%x{i + 1}: {T} = Mul(%x{i}, %h{i})")
    ]
    assert spans(graph_of(gated, "x2")) == []


@pytest.mark.parametrize("op", ["Relu", "HardSwish", "Sigmoid"])
def test_an_activation_behind_the_sum_lets_the_stream_through(op: str) -> None:
    def layer(i: int, x: str, y: str) -> list[str]:
        return [
            f"%h{i}: {T} = MatMul(%{x}, @w{i})",
            f"%s{i}: {T} = Add(%h{i}, %{x})",
            f"%{y}: {T} = {op}(%s{i})",
        ]

    assert spans(graph_of(stack(layer, 2), "x2")) == [["x0-x1", "x1-x2"]]


def test_scaled_sums_and_parallel_branches_are_layers() -> None:
    def layer(i: int, x: str, y: str) -> list[str]:
        return [
            f"%h{i}: {T} = MatMul(%{x}, @w{i})",
            f"%k{i}: {T} = MatMul(%{x}, @w{i + 2})",
            f"%s{i}: {T} = Mul(%{x}, @half)",
            f"%u{i}: {T} = Add(%h{i}, %s{i})",
            f"%{y}: {T} = Add(%k{i}, %u{i})",
        ]

    assert spans(graph_of(stack(layer, 2), "x2")) == [["x0-x1", "x1-x2"]]


def test_masks_from_the_side_and_shapes_do_not_hide_layers() -> None:
    def layer(i: int, x: str, y: str) -> list[str]:
        return [
            f"%h{i}: {T} = MatMul(%{x}, @w{i})",
            f"%k{i}: {T} = Mul(%h{i}, %mask)",
            f"%s{i}: i64[2] = Shape(%x0)",
            f"%r{i}: {T} = Reshape(%k{i}, %s{i})",
            f"%{y}: {T} = Add(%{x}, %r{i})",
        ]

    graph = graph_of(stack(layer, 2), "x2", inputs=f", %mask: {T}")
    assert spans(graph) == [["x0-x1", "x1-x2"]]
    assert not any(layer.pinned for layer in find_layers(graph, "block")[0])


def test_a_layer_inside_of_a_layer_is_not_found_apart() -> None:
    def layer(i: int, x: str, y: str) -> list[str]:
        return [
            f"%a{i}: {T} = MatMul(%{x}, @w{i})",
            f"%p{i}: {T} = MatMul(%a{i}, @w{i})",
            f"%b{i}: {T} = Add(%a{i}, %p{i})",
            f"%q{i}: {T} = MatMul(%b{i}, @w{i})",
            f"%c{i}: {T} = Add(%b{i}, %q{i})",
            f"%{y}: {T} = Add(%{x}, %c{i})",
        ]

    assert spans(graph_of(stack(layer, 2), "x2"), "sublayer") == [["x0-x1", "x1-x2"]]


def test_a_layer_of_which_the_model_returns_a_part_is_pinned() -> None:
    graph = graph_of(stack(pre_norm, 2), "x2", ", present = %h1")
    first, second = find_layers(graph, "block")[0]
    assert (first.pinned, second.pinned) == ("", "the model also returns 'present' from inside it")


def test_a_layer_of_which_a_later_one_reads_a_part_is_pinned() -> None:
    lines = [*stack(pre_norm, 3), f"%v: {T} = Add(%h0, %h0)", f"%z: {T} = Add(%x3, %v)"]
    graph = graph_of(lines, "x3", ", z = %z")
    reasons = [layer.pinned for layer in find_layers(graph, "block")[0]]
    assert reasons == ["the model also returns 'z', computed from its %h0, from inside it", "", ""]


def test_values_of_the_stream_may_be_returned() -> None:
    graph = graph_of(stack(pre_norm, 3), "x3", ", first = %x1, second = %x2")
    assert not any(layer.pinned for layer in find_layers(graph, "block")[0])
    assert spans(graph) == [["x0-x1", "x1-x2", "x2-x3"]]


def test_fused_sums_are_taken_apart_and_put_together_again() -> None:
    text = f"""graph main(%x0: {T}, %a: {T}) -> (y = %y1, s = %s0) {{
  @w: f32[4, 4] = dense normal(0)
  @g: f32[4] = dense normal(8)
  @b: f32[4] = dense normal(9)
  %y0: {T}, %s0: {T} = tersor.AddLayerNormalization(%x0, %a, @g, @b) {{axis = -1, epsilon = 0.001}}
  %h: {T} = MatMul(%y0, @w)
  %y1: {T} = tersor.AddRMSNormalization(%s0, %h, @g) {{axis = -1, epsilon = 0.01}}
}}"""
    graph = parse(text, TABLE)
    norms = split_skip_norms(graph)
    assert [n.op for n in graph.nodes] == [
        "Add", "LayerNormalization", "MatMul", "Add", "RMSNormalization"
    ]  # fmt: skip
    fuse_skip_norms(graph, norms)
    verify(graph)
    before = parse(text, TABLE)
    assert [(n.op, n.attrs, len(n.outputs)) for n in graph.nodes] == [
        (n.op, n.attrs, len(n.outputs)) for n in before.nodes
    ]
    feed = {
        k: np.random.default_rng(i).standard_normal((3, 4), np.float32)
        for i, k in enumerate(("x0", "a"))
    }
    for name, expected in evaluate(before, feed).items():
        np.testing.assert_array_equal(evaluate(graph, feed)[name], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Bert", "Roberta", "Albert", "DistilBert", "GPT2", "Llama"])
def test_architectures(name: str) -> None:
    import torch
    import transformers

    from tersor.frontends import load_model
    from tersor.pipeline import Pipeline
    from tersor.pipeline.registry import optimization

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    others = {
        "DistilBert": {"dim": 32, "hidden_dim": 64, "n_layers": 3, "n_heads": 4},
        "GPT2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "use_cache": False},
        "Llama": {**sizes, "num_key_value_heads": 2, "use_cache": False},
    }
    config = getattr(transformers, f"{name}Config")(vocab_size=90, **others.get(name, sizes))
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(config).eval()
    ids = {"input_ids": torch.full((3, 17), 5)}
    graph = load_model(
        model, example_inputs=ids, dynamic_shapes={"input_ids": {0: "batch", 1: "sequence"}}
    ).graph
    graph = Pipeline(optimization()).run(graph)
    split_skip_norms(graph)
    for unit, count in (("block", 3), ("sublayer", 6)):
        (layers,) = find_layers(graph, unit)
        assert len(layers) == count
        assert not any(layer.pinned for layer in layers)
