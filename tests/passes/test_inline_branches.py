"""Branches that give other ranks: what their readers take tells which one is taken."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.analysis.ranks import RankProofs
from tersor.ir import Graph, parse, verify
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.canonicalize import canonicalization
from tersor.passes.canonicalize.inline_branches import InlineBranches
from tersor.pipeline import Pipeline

# x.squeeze(2), then a layer that adds a batch dim where x has two dims, as torch writes both.
SQUEEZED = """graph main(%x: f32[b, 4, t], %flag: bool[]) -> (y = %y{more}) {{
  @two: i64[] = dense [2]
  @one: i64[] = dense [1]
  @zero: i64[] = dense [0]
  @first: i64[1] = dense [0]
  @axis: i64[1] = dense [2]
  @rank: i64[] = dense [2]
  @r: f32[1, 12, 4] = dense normal(1)
  @u: f32[1, 12, 3] = dense normal(2)
  %shape: i64[3] = Shape(%x) {{start = 0}}
  %size: i64[] = Gather(%shape, {tested}) {{axis = 0}}
  %is_one: bool[] = Equal(%size, @one)
  {condition}
  %a: f32[*] = If({read}) {{else_branch = graph other() -> (o = {other}) {{
    {other_line}
  }}, then_branch = graph taken() -> (t = {taken}) {{
    {taken_line}
  }}}}
  {readers}
}}"""
SQUEEZE = "%s: f32[b, 4] = Squeeze(%x, @axis)"
LSTM = """%as: i64[?] = Shape(%a) {start = 0}
  %dims: i64[] = Size(%as)
  %two_dims: bool[] = Equal(%dims, @rank)
  %c: f32[*] = If(%two_dims) {else_branch = graph batched() -> (o = %q) {
    %q: f32[*] = Unsqueeze(%a, @first)
  }, then_branch = graph as_it_is() -> (t = %a) {
  }}
  %d: f32[*] = Unsqueeze(%c, @first)
  %l: f32[?, 1, ?, 3], %y: f32[1, ?, 3] = LSTM(%d, @r, @u) {hidden_size = 3}"""


def squeezed(
    tested: str = "@two", condition: str = "", read: str = "%is_one", readers: str = LSTM,
    swapped: bool = False, more: str = "",
) -> Graph:  # fmt: skip
    taken, other = ("%s", SQUEEZE), ("%x", "")
    if swapped:
        taken, other = other, taken
    return parse(
        SQUEEZED.format(
            tested=tested, condition=condition, read=read, readers=readers, more=more,
            taken=taken[0], taken_line=taken[1], other=other[0], other_line=other[1],
        ),
        TABLE,
    )  # fmt: skip


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def feed(size: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((2, 4, size)).astype(np.float32)
    return {"x": x, "flag": np.array(True)}


@pytest.mark.parametrize("swapped", [False, True], ids=["Equal", "Not"])
def test_a_squeeze_by_branches_is_a_squeeze_where_its_reader_takes_no_other_rank(
    swapped: bool,
) -> None:
    negated = {"condition": "%n: bool[] = Not(%is_one)", "read": "%n"} if swapped else {}
    before = squeezed(swapped=swapped, **negated)
    graph = Pipeline([canonicalization()], level="text").run(before)
    assert ops(graph) == ["Squeeze", "Unsqueeze", "LSTM"]
    assert str(graph.outputs[0].type) == "f32[1, b, 3]"
    # The branches may have been told apart by torch alone: what it computes is the same.
    np.testing.assert_array_equal(evaluate(graph, feed(1))["y"], evaluate(before, feed(1))["y"])
    for each in (before, graph):  # Of another size, both fail.
        with pytest.raises(Exception, match=r".+"):
            evaluate(each, feed(2))


def test_one_sweep_goes_through_the_whole_chain() -> None:
    pipeline = Pipeline([InlineBranches()], level="text")
    graph = pipeline.run(squeezed())
    verify(graph)
    assert not {"If"} & set(ops(graph))


@pytest.mark.parametrize(
    "changed",
    [
        {"readers": "%y: f32[*] = Relu(%a)"},  # Takes both ranks.
        {"read": "%flag"},  # Where it says otherwise the model fails; a Squeeze alone would not.
        {"tested": "@zero"},  # Another size than the one that is squeezed.
        {"condition": "%n: bool[] = Not(%is_one)", "read": "%n"},  # The other way round.
        {
            # A reader that may never run proves nothing.
            "readers": """%y: f32[*] = If(%flag) {else_branch = graph p() -> (p = %a) {
  }, then_branch = graph q() -> (q = %lq) {
    %d: f32[*] = Unsqueeze(%a, @first)
    %l: f32[?, 1, ?, 3], %lq: f32[1, ?, 3] = LSTM(%d, @r, @u) {hidden_size = 3}
  }}"""
        },
    ],
    ids=["any-rank", "flag", "other-size", "negated", "reader-in-a-branch"],
)
def test_branches_stay_where_both_may_be_taken(changed: dict[str, str]) -> None:
    graph = Pipeline([InlineBranches()], level="text").run(squeezed(**changed))
    assert "If" in ops(graph)


def test_a_condition_on_a_rank_is_known_with_the_rank() -> None:
    """Shape -> Size -> Equal of a value that is typed only when a branch has been put in place."""
    text = """graph main(%x: f32[b, 3]) -> (y = %y) {
  @yes: bool[] = dense [true]
  @two: i64[] = dense [2]
  @first: i64[1] = dense [0]
  %a: f32[*] = If(@yes) {else_branch = graph o() -> (o = %q) {
    %q: f32[1, b, 3] = Unsqueeze(%x, @first)
  }, then_branch = graph t() -> (t = %x) {
  }}
  %s: i64[?] = Shape(%a) {start = 0}
  %n: i64[] = Size(%s)
  %e: bool[] = Equal(%n, @two)
  %y: f32[*] = If(%e) {else_branch = graph p() -> (p = %a) {
  }, then_branch = graph q() -> (q = %r) {
    %r: f32[*] = Relu(%a)
  }}
}"""
    graph = Pipeline([InlineBranches()], level="text").run(parse(text, TABLE))
    assert [op for op in ops(graph) if op not in ("Shape", "Size", "Equal")] == ["Relu"]
    assert str(graph.outputs[0].type) == "f32[b, 3]"


@pytest.mark.parametrize(
    "op", ["Relu(%a)", "Swish(%a)", "Mul(%a, @half)", "RMSNormalization(%a, @scale)"]
)
def test_what_keeps_a_rank_is_what_the_op_table_says(op: str) -> None:
    graph = parse(
        f"""graph g(%a: f32[*], %w: f32[4, 3]) -> (y = %y) {{
  @half: f32[] = dense [0.5]
  @scale: f32[4] = dense [1, 2, 3, 4]
  %b: f32[*] = {op}
  %y: f32[?, 3] = Gemm(%b, %w)
}}""",
        TABLE,
    )
    assert RankProofs().needed(graph.inputs[0]) == {2}


def test_ranks_follow_through_views_and_branches_both_ways() -> None:
    graph = squeezed()
    values = {v.name: v for v in graph.values()}
    proofs = RankProofs()
    assert proofs.possible(values["a"]) == {2, 3}
    assert proofs.possible(values["c"]) == {2, 3, 4}
    assert proofs.needed(values["d"]) == {3}
    assert proofs.needed(values["c"]) == {2}
    assert proofs.needed(values["a"]) == {2}
    assert proofs.needed(values["x"]) is None
