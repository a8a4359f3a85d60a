"""Gradients of all rows: each has its own, something that stands in for it, or says that none passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tersor.errors import Unsupported
from tersor.ir import Value, parse, print_graph
from tersor.ops import TABLE
from tersor.ops.evaluate import run, to_torch
from tersor.ops.fisher import fisher
from tersor.ops.gradients import gradients
from tersor.ops.samples import Case, cases, feeds, one_node

CASES = [
    case
    for case in cases()
    if any(a is not None and a.dtype in (np.float32, np.float64) for a in case.sample.inputs)
]
ROWS = sorted({case.row.op for case in CASES})


def passes(case: Case, straight_through: bool) -> bool:
    """Whether the first result's gradient with respect to the float operands is anything but zero."""
    graph = one_node(case.row.op, case.sample)
    (node,) = graph.nodes
    given = feeds(case.sample)
    values: dict[Value, Any] = {v: to_torch(given[v.name]) for v in graph.inputs}
    values |= {v: to_torch(v.numpy()) for v in graph.constants.values()}
    leaves = []
    with torch.enable_grad():
        for value in dict.fromkeys(v for v in node.inputs if v is not None):
            if values[value].is_floating_point():
                values[value] = values[value].clone().requires_grad_()
                leaves.append(values[value])
        run(graph, values, straight_through=straight_through)
        result = values[node.outputs[0]]
        if not (isinstance(result, torch.Tensor) and result.requires_grad):
            return False
        weights = torch.from_numpy(np.random.default_rng(0).standard_normal(result.shape))
        found = torch.autograd.grad((result * weights).sum(), leaves, allow_unused=True)
    return any(g is not None and bool((g != 0).any()) for g in found)


@pytest.mark.parametrize("op", ROWS)
def test_a_row_has_a_gradient_or_a_stand_in_or_says_that_none_passes(op: str) -> None:
    own = [case for case in CASES if case.row.op == op]
    row = own[0].row
    if row.traits & {"discrete", "shape"}:
        assert row.straight_through is None
        if op != "Unique":  # Its evaluation asks numpy.
            assert not any(passes(case, straight_through=True) for case in own)
    elif row.straight_through is None:
        assert any(passes(case, straight_through=False) for case in own), (
            f"{op} passes no gradient: its row needs straight_through, or the trait discrete"
        )
    elif op not in ("Cast", "CastLike"):  # Some of which round, and some do not.
        assert not any(passes(case, straight_through=False) for case in own), "its own would serve"
        assert any(passes(case, straight_through=True) for case in own)


def test_a_row_that_rounds_has_a_stand_in() -> None:
    for row in TABLE:
        if "rounding" in row.traits:
            assert row.straight_through is not None, row.op


@pytest.mark.parametrize("case", [c for c in CASES if c.row.straight_through], ids=lambda c: c.name)
def test_values_stay_and_the_stand_in_is_a_step_away_at_most(case: Case) -> None:
    graph = one_node(case.row.op, case.sample)
    (node,) = graph.nodes
    soft = TABLE.straight_through(node)
    if soft is None:
        return
    values: dict[Value, Any] = {v: to_torch(feeds(case.sample)[v.name]) for v in graph.inputs}
    run(graph, values)
    given = [values[v] for v in (*node.inputs, *node.outputs) if v is not None]
    inner = dict(zip(soft.inputs, given, strict=True))
    run(soft, inner)
    hard, made = values[node.outputs[0]].double(), inner[soft.outputs[0]].double()
    halves = {"QuantizeLinear", "DynamicQuantizeLinear", "tersor.DynamicQuantizeRows", "Round"}
    # Halves of a step, and what f32 makes of 255 of them.
    limit = 0.5 + 1e-4 if case.row.op in halves | {"QLinearMatMul"} else 1.0
    assert float((hard - made).abs().max()) <= limit


def test_a_quantizer_passes_gradients_within_its_range_by_the_scale_of_its_channel() -> None:
    text = """graph main(%x: f32[2, 3]) -> (q = %q) {
      @s: f32[2] = dense [0.5, 0.25]
      @z: i8[2] = dense [0, 1]
      %q: i8[2, 3] = QuantizeLinear(%x, @s, @z) {axis = 0}
    }"""
    graph = parse(text, TABLE)
    x = torch.tensor([[1.0, -0.3, 64.0], [31.0, 32.0, -40.0]], requires_grad=True)
    values: dict[Value, Any] = {graph.inputs[0]: x}
    run(graph, values, straight_through=True)
    codes = values[graph.outputs[0]]
    assert codes.tolist() == [[2, -1, 127], [125, 127, -128]]
    codes.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[2, 2, 0], [4, 0, 0]]
    (node,) = graph.nodes
    made = TABLE.straight_through(node)
    assert made is not None
    assert [n.op for n in made.nodes] == ["Reshape", "Div", "Reshape", "CastLike", "Add", "Clip"]
    assert print_graph(parse(print_graph(made), TABLE)) == print_graph(made)


QUANTIZED = """graph main(%x: f32[n, 4]) -> (y = %y) {
  @w: f32[4, 3] = dense normal(1)
  @v: f32[3, 2] = dense normal(2)
  %h: f32[n, 3] = MatMul(%x, @w)
  %a: f32[n, 3] = Identity(%h)
  %y: f32[n, 2] = MatMul(%a, @v)
}"""


def test_weights_before_a_quantizer_count_as_much_as_without_it() -> None:
    """By its own gradient, which is zero, rounding would leave nothing before it that counts."""
    x = {"x": np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)}
    steps = """%q: u8[n, 3], %t: f32[], %u: u8[] = DynamicQuantizeLinear(%h)
  %a: f32[n, 3] = DequantizeLinear(%q, %t, %u)"""
    found = []
    for text in (QUANTIZED, QUANTIZED.replace("%a: f32[n, 3] = Identity(%h)", steps)):
        graph = parse(text, TABLE)
        found.append(fisher(graph, [graph.constants["w"]], [x])[graph.constants["w"]])
    assert found[1].any()
    # Codes that end the range move with it, and a step is 1 / 255 of the range.
    np.testing.assert_allclose(found[1], found[0], rtol=0.1, atol=0.1 * found[0].max())


def test_a_cast_to_few_bits_passes_gradients_and_one_to_what_may_be_an_index_does_not() -> None:
    x = {"x": np.array([0.4, -1.6, 3.0], np.float32)}
    for to, known in (("i8", True), ("u8", True), ("i64", False), ("f16", True)):
        codes = {"i8": 3, "u8": 2, "i64": 7, "f16": 10}
        text = f"""graph main(%x: f32[3]) -> (y = %y) {{
          %q: {to}[3] = Cast(%x) {{to = {codes[to]}}}
          %y: f32[3] = Cast(%q) {{to = 1}}
        }}"""
        graph = parse(text, TABLE)
        (found,) = next(gradients(graph, graph.inputs, [x])).values()
        assert (np.abs(found) == 1).all() == known, to


def test_a_quantizer_by_blocks_of_an_open_dim_is_refused_by_name() -> None:
    text = """graph main(%x: f32[n, 2], %s: f32[m, 2]) -> (q = %q) {
      %q: u8[n, 2] = QuantizeLinear(%x, %s) {axis = 0, block_size = 4}
    }"""
    (node,) = parse(text, TABLE).nodes
    with pytest.raises(Unsupported, match="a quantizer by blocks of an open dim has no gradient"):
        TABLE.straight_through(node)
