"""Weighted layers: weights and readers, reasons against a layer, and how passes select."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tersor.analysis.layers import Reader, WeightedLayer, by_weight, is_table, weight_readers
from tersor.analysis.selection import LayerPass, Selection
from tersor.errors import InvalidOption
from tersor.ir import Cast, Dense, DType, Graph, Value, parse
from tersor.numerics.affine import quantize_weight
from tersor.ops import TABLE
from tersor.pipeline import LOSSY, Context, Pipeline, registry
from tersor.pipeline.report import PassReport

TEXT = """graph main(%ids: i64[n, 5], %h: f32[n, 6, 9, 9], %c: bool[]) -> (y = %y, z = %z, i = %i, q = %q) {
  @table: f32[40, 16] = dense normal(0)
  @w: f32[16, 16] = dense normal(1)
  @b: f32[16] = dense normal(2)
  @v: f32[16, 16] = dense normal(3)
  @r: f32[1, 32, 16] = dense normal(4)
  @s: f32[1, 32, 8] = dense normal(5)
  @f: f32[8, 6, 3, 3] = dense normal(6)
  %e: f32[n, 5, 16] = Gather(@table, %ids) scope "encoder.words"
  %one: f32[n, 5, 16] = tersor.Linear(%e, @w, @b) {activation = "relu"} scope "encoder.0.first"
  %two: f32[n, 5, 16] = tersor.Linear(%one, @w) scope "encoder.1.first"
  %y: f32[n, 5, 16] = tersor.Linear(%two, @v) scope "encoder.1.second"
  %q: f32[n, 1, 5, 8] = LSTM(%y, @r, @s) {hidden_size = 8} scope "encoder.memory"
  %z: f32[n, 8, 7, 7] = Conv(%h, @f) scope "stem"
  %i: f32[n, 5, 16] = If(%c) {then_branch = graph then() -> (a = %a) {
    @inner: f32[16, 16] = dense normal(7)
    %a: f32[n, 5, 16] = tersor.Linear(%e, @inner) scope "branch"
  }, else_branch = graph else() -> (o = %o) {
    %o: f32[n, 5, 16] = Identity(%e)
  }}
}"""


def graph_of() -> Graph:
    return parse(TEXT, TABLE)


def layers_of(graph: Graph) -> dict[str, WeightedLayer]:
    found = by_weight([r for r in weight_readers(graph) if r.weight.is_constant])
    return {layer.name: layer for layer in found}


def test_a_layer_is_a_weight_with_all_its_readers() -> None:
    layers = layers_of(graph_of())
    assert list(layers) == ["table", "w", "v", "r", "s", "f", "inner"]
    assert [len(layer.readers) for layer in layers.values()] == [1, 2, 1, 1, 1, 1, 1]
    assert [layer.index for layer in layers.values()] == list(range(7))
    shared = layers["w"]
    assert (shared.label, shared.node.scope) == ("encoder.0.first", "encoder.0.first")
    assert [r.bias.name if r.bias else None for r in shared.readers] == ["b", None]
    assert layers["table"].readers[0].ids.name == "ids"
    # As [outputs, inputs]: the channels of a filter, place by place; one gate of an LSTM below the other.
    shapes = {name: layer.matrix().shape for name, layer in layers.items()}
    assert (shapes["table"], shapes["f"], shapes["s"]) == ((40, 16), (8, 54), (32, 8))
    np.testing.assert_array_equal(shared.matrix(), shared.weight.numpy().T)


def test_only_a_table_is_nothing_but_looked_up() -> None:
    graph = graph_of()
    assert [v.name for v in graph.constants.values() if is_table(v)] == ["table"]


def replaced(graph: Graph, name: str, held: Any) -> WeightedLayer:
    graph.set_encoding(graph.constants[name], held)
    return layers_of(graph)[name]


def with_number(graph: Graph, number: float) -> Dense:
    array = graph.constants["v"].numpy().copy()
    array[1, 2] = number
    return Dense(array)


def test_nothing_speaks_against_a_plain_layer() -> None:
    layer = layers_of(graph_of())["v"]
    assert not layer.fewer_than(256)
    for reason in (
        layer.empty, layer.encoded, layer.quantized, layer.narrow, layer.not_finite, layer.zero,
        layer.tied, layer.in_subgraph, layer.shared,
    ):  # fmt: skip
        assert reason == ""


def test_reasons_name_the_weight_and_what_it_is() -> None:
    layers = layers_of(graph_of())
    assert layers["v"].fewer_than(257) == "@v has fewer than 257 elements"
    assert layers["inner"].in_subgraph == "it is in a subgraph, which calibration does not observe"

    graph = graph_of()
    for number in (np.nan, -np.inf):
        assert (
            replaced(graph, "v", with_number(graph, number)).not_finite
            == "@v contains NaN or infinity"
        )
    assert replaced(graph, "v", Dense(np.zeros((16, 16), np.float32))).zero == "@v is zero"

    graph = graph_of()
    held = quantize_weight(graph.constants["v"].numpy(), 1)
    assert replaced(graph, "v", held).quantized == "@v is affine(i8, axis=1)"

    graph = graph_of()
    half = Cast(graph.constants["v"].numpy().astype(np.float16), DType.F32)
    layer = replaced(graph, "v", half)
    assert (layer.quantized, layer.encoded) == ("", "@v is cast(f16)")

    graph = graph_of()
    graph.set_outputs([*graph.outputs, graph.constants["v"]], ["y", "z", "i", "q", "weight"])
    assert layers_of(graph)["v"].shared == "@v has other uses, which would not change"


def test_a_weight_that_is_computed_is_a_layer_that_no_pass_can_change() -> None:
    text = """graph main(%x: f32[n, 16], %w: f32[16, 16]) -> (y = %y) {
      %y: f32[n, 16] = tersor.Linear(%x, %w)
    }"""
    (reader,) = weight_readers(parse(text, TABLE))
    (layer,) = by_weight([reader])
    assert layer.encoded == layer.quantized == "%w is not a constant"


def test_views_of_one_array_are_tied() -> None:
    array = np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32)
    text = """graph main(%ids: i64[n], %x: f32[n, 32]) -> (e = %e, y = %y) {
      @table: f32[40, 32] = dense normal(0)
      @head: f32[32, 40] = dense normal(0)
      %e: f32[n, 32] = Gather(@table, %ids)
      %y: f32[n, 40] = tersor.Linear(%x, @head)
    }"""
    graph = parse(text, TABLE)
    graph.set_encoding(graph.constants["table"], Dense(array))
    graph.set_encoding(graph.constants["head"], Dense(array.T))
    assert layers_of(graph)["head"].tied == "@head is tied to @table, which would not change"


# -- how passes choose -----------------------------------------------------------------------------

CHOOSERS = {
    "decompose-conv": {},
    "factorize-embedding": {},
    "factorize-linear": {"method": "svd"},
    "prune-structure": {},
    "prune-weights": {"sparsity": 0.5},
    "quantize-dynamic": {},
    "quantize-embedding": {},
    "quantize-weights": {},
    "smooth-activations": {},
    "tensor-train-embedding": {},
    "widen-linear": {},
}  # fmt: skip


def run(step: Selection, graph: Graph) -> tuple[Graph, PassReport]:
    pipeline = Pipeline([step], level="text")
    return pipeline.run(graph), pipeline.reports[0]


def test_these_are_all_that_choose() -> None:
    found = [name for name, kind in registry.passes().items() if issubclass(kind, Selection)]
    options = {"scopes", "ignored_scopes"}
    assert found == list(CHOOSERS)
    for name, kind in registry.passes().items():
        mine = set(kind.__dataclass_fields__)
        assert options <= mine or not options & mine, name


@pytest.mark.parametrize("option", ["scopes", "ignored_scopes"])
@pytest.mark.parametrize("name", CHOOSERS)
def test_a_pattern_that_fits_nothing_is_refused_in_one_way(name: str, option: str) -> None:
    kind: Any = registry.find_pass(name)
    step = kind(**CHOOSERS[name], **{option: ("decoder.*.first",)})
    with pytest.raises(InvalidOption) as refused:
        run(step, graph_of())
    message = str(refused.value)
    assert message.startswith("no layer's scope matches 'decoder.*.first'")
    assert "; there are " in message
    assert "\n" not in message


@pytest.mark.parametrize("name", CHOOSERS)
def test_what_is_ignored_may_be_a_layer_of_another_kind(name: str) -> None:
    """So that a recipe's passes can all be given the same patterns."""
    kind: Any = registry.find_pass(name)
    for pattern in ("stem", "encoder.words", "encoder.1.*"):
        run(kind(**CHOOSERS[name], ignored_scopes=(pattern,)), graph_of())


def test_a_close_name_is_suggested() -> None:
    with pytest.raises(InvalidOption, match=r"did you mean 'encoder\.1\.second'\?; there are "):
        run(HalfWeights(scopes=("encoder.1.secnd",)), graph_of())


@dataclass(frozen=True)
class HalfWeights(LayerPass):
    """All that a pass over layers needs: what speaks against one, and what it does with it."""

    keeps = LOSSY

    def against(self, layer: WeightedLayer) -> str:
        return layer.encoded or layer.shared or layer.not_finite

    def run(self, graph: Graph, context: Context) -> None:
        for layer in self.layers(graph, context):
            half = layer.weight.numpy().astype(np.float16)
            layer.weight.graph.set_encoding(layer.weight, Cast(half, DType.F32))
            context.rewrote()


def test_a_pass_over_layers_is_one_class() -> None:
    step = HalfWeights(
        scopes=("encoder.*", "branch"), ignored_scopes=("*.memory",), min_elements=20
    )
    after, report = run(step, graph_of())
    held = {v.name for g in after.all_graphs() for v in g.constants.values() if is_half(v)}
    assert held == {
        "w",
        "v",
        "inner",
    }  # The shared one whole; no table, and no @f, which was not asked for.
    assert [skip.reason for skip in report.skips] == ["its scope is in ignored_scopes"]
    # Of a shared weight one reader is ignored: it would be changed under it.
    _, report = run(HalfWeights(ignored_scopes=("encoder.1.first",)), graph_of())
    assert "@w has other uses, which would not change" in [skip.reason for skip in report.skips]
    _, report = run(HalfWeights(min_elements=10**6), graph_of())
    assert report.rewrites == 0
    assert "@r has fewer than 1000000 elements" in [skip.reason for skip in report.skips]


def is_half(value: Value) -> bool:
    return isinstance(value.encoding, Cast)


def test_what_is_of_another_kind_is_not_mentioned() -> None:
    @dataclass(frozen=True)
    class Convolutions(HalfWeights):
        def wants(self, reader: Reader) -> bool:
            return reader.node.op == "Conv"

    after, report = run(Convolutions(), graph_of())
    assert [v.name for v in after.constants.values() if is_half(v)] == ["f"]
    assert report.skips == []
