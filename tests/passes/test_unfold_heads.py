"""Attention over batch and heads in one axis, as bmm takes it, is the one op like any other."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.ir import Graph, parse
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.canonicalize import canonicalization
from tersor.passes.fuse.fuse_attention import FuseAttention
from tersor.passes.fuse.unfold_heads import UnfoldHeads
from tersor.pipeline import Pipeline

# q, k and v [b, 2, s, 4] as [2*b, s, 4]; ``middle`` goes from %product to %weights, both [2*b, s, s].
BMM = """graph g(%q: f32[b, 2, s, 4], %k: f32[b, 2, s, 4], %v: f32[b, 2, s, 4], %mask: f32[b, 1, 1, s], %bias: f32[2*b, s, s]) -> (y = %y{more}) {{
    @half: f32[] = dense [0.5]
    @two: i64[1] = dense [2]
    @four: i64[1] = dense [4]
    %b: i64[1] = Shape(%q) {{start = 0, end = 1}}
    %s: i64[1] = Shape(%q) {{start = 2, end = 3}}
    %bh: i64[1] = Mul(%b, @two)
    %merged: i64[3] = Concat(%bh, %s, @four) {{axis = 0}}
    %square: i64[3] = Concat(%bh, %s, %s) {{axis = 0}}
    %wide: i64[4] = Concat(%b, @two, %s, %s) {{axis = 0}}
    %heads: i64[4] = Concat(%b, @two, %s, @four) {{axis = 0}}
    %qm: f32[2*b, s, 4] = Reshape(%q, %merged)
    %qs: f32[2*b, s, 4] = Mul(%qm, @half)
    %km: f32[2*b, s, 4] = Reshape(%k, %merged)
    %vm: f32[2*b, s, 4] = Reshape(%v, %merged)
    %kt: f32[2*b, 4, s] = Transpose(%km) {{perm = [0, 2, 1]}}
    %product: f32[2*b, s, s] = MatMul(%qs, %kt)
    {middle}
    %made: f32[2*b, s, 4] = MatMul(%weights, %vm)
    %y: f32[b, 2, s, 4] = Reshape(%made, %heads)
}}"""
SOFTMAX = "%weights: f32[2*b, s, s] = Softmax(%scores) {axis = -1}"
MASKED = """%apart: f32[b, 2, s, s] = Reshape(%product, %wide)
    %sum: f32[b, 2, s, s] = Add(%apart, %mask)
    """
MIDDLES = {
    "nothing between": "%weights: f32[2*b, s, s] = Softmax(%product) {axis = 2}",
    "masked by heads, a softmax over both": f"{MASKED}%scores: f32[2*b, s, s] = Reshape(%sum, %square)\n{SOFTMAX}",
    "masked and a softmax by heads": MASKED
    + "%soft: f32[b, 2, s, s] = Softmax(%sum) {axis = -1}\n%weights: f32[2*b, s, s] = Reshape(%soft, %square)",
    "a bias for both in one": f"%scores: f32[2*b, s, s] = Add(%bias, %product)\n{SOFTMAX}",
}
FEEDS = {
    name: np.random.default_rng(i).standard_normal(shape).astype(np.float32)
    for i, (name, shape) in enumerate(
        {**dict.fromkeys("qkv", (3, 2, 5, 4)), "mask": (3, 1, 1, 5), "bias": (6, 5, 5)}.items()
    )
}


def unfolded(middle: str, more: str = "") -> Graph:
    text = BMM.format(middle=middle, more=more)
    passes = [canonicalization(), UnfoldHeads(), FuseAttention(), canonicalization()]
    pipeline = Pipeline(passes, level="values", feeds=[FEEDS], evaluate=evaluate)
    return pipeline.run(parse(text, TABLE))


@pytest.mark.parametrize("middle", MIDDLES)
def test_products_over_batch_and_heads_are_one_attention(middle: str) -> None:
    made = unfolded(MIDDLES[middle])
    (attention,) = (n for n in made.nodes if n.op == "Attention")
    assert [v.name for v in attention.inputs[:3] if v is not None] == ["q", "k", "v"]
    assert not [n.op for n in made.nodes if n.op in ("MatMul", "Softmax")]
    assert attention.attrs["scale"] == 0.5


def test_what_others_read_stays_as_it_is() -> None:
    more = ", scores = %product, weights = %weights"
    made = unfolded(MIDDLES["nothing between"], more)
    assert [n.op for n in made.nodes if n.op in ("MatMul", "Softmax")] == [
        "MatMul",
        "Softmax",
        "MatMul",
    ]


@pytest.mark.parametrize("op", ["Tanh", "Sign", "Swish"])
def test_any_op_on_single_elements_is_taken_apart(op: str) -> None:
    """A cap on the scores, as Gemma 2 has one."""
    middle = f"%capped: f32[2*b, s, s] = {op}(%product)\n%weights: f32[2*b, s, s] = Softmax(%capped) {{axis = -1}}"
    made = unfolded(middle)
    assert [n.output.tensor.rank for n in made.nodes if n.op in (op, "Softmax")] == [4, 4]


BEHIND = """graph g(%x: f32[s, b, 8]) -> (y = %y) {
    @two: i64[1] = dense [2]
    @four: i64[1] = dense [4]
    %s: i64[1] = Shape(%x) {start = 0, end = 1}
    %b: i64[1] = Shape(%x) {start = 1, end = 2}
    %bh: i64[1] = Mul(%b, @two)
    %parts: i64[4] = Concat(%s, %b, @two, @four) {axis = 0}
    %merged: i64[3] = Concat(%s, %bh, @four) {axis = 0}
    %heads: i64[4] = Concat(%b, @two, %s, @four) {axis = 0}
    %p: f32[s, b, 2, 4] = Reshape(%x, %parts)
    %m: f32[s, 2*b, 4] = Reshape(%p, %merged)
    %t: f32[2*b, s, 4] = Transpose(%m) {perm = [1, 0, 2]}
    %y: f32[b, 2, s, 4] = Reshape(%t, %heads)
}"""


def test_heads_merged_behind_the_length_are_split_there() -> None:
    feeds = {"x": np.arange(120, dtype=np.float32).reshape(3, 5, 8)}
    passes = [canonicalization(), UnfoldHeads(), canonicalization()]
    made = Pipeline(passes, level="values", feeds=[feeds], evaluate=evaluate).run(
        parse(BEHIND, TABLE)
    )
    *_, last = made.nodes
    assert (last.op, last.attrs["perm"]) == ("Transpose", (1, 2, 0, 3))


ITS_OWN = """graph g(%x: f32[s, b, 8], %k: f32[s, b, 8]) -> (y = %y) {
    @two: i64[1] = dense [2]
    @four: i64[1] = dense [4]
    @hidden: i64[2] = dense [-1, 8]
    %s: i64[1] = Shape(%x) {start = 0, end = 1}
    %b: i64[1] = Shape(%x) {start = 1, end = 2}
    %bh: i64[1] = Mul(%b, @two)
    %merged: i64[3] = Concat(%s, %bh, @four) {axis = 0}
    %q: f32[s, 2*b, 4] = Reshape(%x, %merged)
    %v: f32[s, 2*b, 4] = Reshape(%k, %merged)
    %qt: f32[2*b, s, 4] = Transpose(%q) {perm = [1, 0, 2]}
    %kt: f32[2*b, 4, s] = Transpose(%v) {perm = [1, 2, 0]}
    %vt: f32[2*b, s, 4] = Transpose(%v) {perm = [1, 0, 2]}
    %scores: f32[2*b, s, s] = MatMul(%qt, %kt)
    %weights: f32[2*b, s, s] = Softmax(%scores) {axis = -1}
    %made: f32[2*b, s, 4] = MatMul(%weights, %vt)
    %back: f32[s, 2*b, 4] = Transpose(%made) {perm = [1, 0, 2]}
    %y: f32[b*s, 8] = Reshape(%back, @hidden)
}"""


def test_heads_that_no_view_tells_apart_are_told_by_the_hidden_size() -> None:
    """torch's MultiheadAttention where it is asked for its weights, which is what it is by default."""
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((5, 3, 8)).astype(np.float32) for name in "xk"}
    passes = [canonicalization(), UnfoldHeads(), FuseAttention(), canonicalization()]
    pipeline = Pipeline(passes, level="values", feeds=[feeds], evaluate=evaluate)
    made = pipeline.run(parse(ITS_OWN, TABLE))
    assert [n.op for n in made.nodes if n.op in ("MatMul", "Softmax", "Attention")] == ["Attention"]
