"""Fusion, pass by pass: what exporters write out, in, and one op out."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.ir import Graph, parse, print_graph, verify, weights_of
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes import optimization
from tersor.passes.canonicalize.dead_code import DeadCode
from tersor.passes.fuse.attention_cache import AttentionCache
from tersor.passes.fuse.attention_to_hidden import AttentionToHidden
from tersor.passes.fuse.fuse_attention import FuseAttention
from tersor.passes.fuse.fuse_bias_activation import FuseBiasActivation
from tersor.passes.fuse.fuse_embedding_norm import FuseEmbeddingNorm
from tersor.passes.fuse.fuse_gelu import FuseGelu
from tersor.passes.fuse.fuse_layer_norm import FuseLayerNorm
from tersor.passes.fuse.fuse_rms_norm import FuseRmsNorm
from tersor.passes.fuse.fuse_skip_norm import FuseSkipNorm
from tersor.passes.fuse.merge_linears import MergeLinears
from tersor.pipeline import Pass, Pipeline

SIZES = {"batch": 2, "seq": 3, "n": 3, "keys": 5, "past": 4, "other": 1, "total": 1}


def feed(graph: Graph) -> dict[str, np.ndarray]:
    """Normal numbers; small ids; masks of which some are false, the first never."""
    rng, found = np.random.default_rng(0), {}
    for value in graph.inputs:
        shape, dtype = value.tensor.at(SIZES), value.tensor.dtype
        if dtype.value == "bool":
            array = rng.integers(0, 2, shape).astype(bool)
            array[..., :1] = True
        elif dtype.is_integer:
            array = rng.integers(0, 2, shape)
        else:
            array = rng.standard_normal(shape)
        found[value.name] = array.astype(dtype.numpy)
    return found


def run(step: Pass, text: str) -> tuple[Graph, list[str]]:
    """The graph after ``step``, its claim to keep values checked, and DeadCode; the step's reasons."""
    graph = parse(text, TABLE)
    verify(graph)
    pipeline = Pipeline([step, DeadCode()], "values", [feed(graph)], evaluate)
    after = pipeline.run(graph)
    return after, [skip.reason for skip in pipeline.reports[0].skips]


def expect(step: Pass, before: str, after: str) -> None:
    graph, skips = run(step, before)
    wanted = print_graph(parse(after, TABLE, weights_of(graph)))
    assert print_graph(graph) == wanted
    assert not skips


def expect_unchanged(step: Pass, text: str, reason: str | None = None) -> None:
    graph, skips = run(step, text)
    assert print_graph(graph) == print_graph(parse(text, TABLE, weights_of(graph)))
    assert skips == ([reason] if reason else [])


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


# -- FuseLayerNorm ---------------------------------------------------------------------------------

LAYER_NORM = """graph main(%x: f32[batch, seq, 4]) -> (y = %y) {
  @axes: i64[1] = dense [-1]
  @two: f32[] = dense [2.0]
  @eps: f32[] = dense [0.0009765625]
  @scale: f32[4] = dense [1.0, 2.0, 3.0, 4.0]
  @bias: f32[4] = dense [0.5, 0.25, 0.0, 1.0]
  %m: f32[batch, seq, 1] = ReduceMean(%x, @axes)
  %d: f32[batch, seq, 4] = Sub(%x, %m)
  %p: f32[batch, seq, 4] = Pow(%d, @two)
  %v: f32[batch, seq, 1] = ReduceMean(%p, @axes)
  %e: f32[batch, seq, 1] = Add(%v, @eps)
  %s: f32[batch, seq, 1] = Sqrt(%e)
  %n: f32[batch, seq, 4] = Div(%d, %s)
  %g: f32[batch, seq, 4] = Mul(%n, @scale) scope "norm"
  %y: f32[batch, seq, 4] = Add(%g, @bias) scope "norm"
}"""
LAYER_NORM_AFTER = """graph main(%x: f32[batch, seq, 4]) -> (y = %layernormalization) {
  @scale: f32[4] = dense [1.0, 2.0, 3.0, 4.0]
  @bias: f32[4] = dense [0.5, 0.25, 0.0, 1.0]
  %layernormalization: f32[batch, seq, 4] = LayerNormalization(%x, @scale, @bias) {axis = -1, epsilon = 0.0009765625} scope "norm"
}"""
INVERSE = "%i: f32[batch, seq, 1] = Reciprocal(%s)\n%n: f32[batch, seq, 4] = Mul(%d, %i)"
OTHER_INVERSE = INVERSE.replace("(%d, %i)", "(%i, %d)")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Pow(%d, @two)": "Mul(%d, %d)"},
        {"%n: f32[batch, seq, 4] = Div(%d, %s)": INVERSE},
        {"%n: f32[batch, seq, 4] = Div(%d, %s)": OTHER_INVERSE},
        {"Mul(%n, @scale)": "Mul(@scale, %n)", "Add(%g, @bias)": "Add(@bias, %g)", "Add(%v, @eps)": "Add(@eps, %v)"},
        {"dense [-1]": "dense [2]"},
    ],
    ids=["Pow and Div", "square by Mul", "Reciprocal", "Reciprocal first", "other way round", "positive axis"],
)  # fmt: skip
def test_layer_norm_written_out_is_one_op(changes: dict[str, str]) -> None:
    text = LAYER_NORM
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    expect(FuseLayerNorm(), text, LAYER_NORM_AFTER)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@two: f32[] = dense [2.0]", "@two: f32[] = dense [4.0]"),
        ("dense [-1]", "dense [1]"),
        ("Sub(%x, %m)", "Sub(%m, %x)"),
        ("Div(%d, %s)", "Div(%x, %s)"),
        ("Div(%d, %s)", "Div(%s, %d)"),
        ("Sqrt(%e)", "Exp(%e)"),
        ("Add(%v, @eps)", "Mul(%v, @eps)"),
        ("Add(%v, @eps)", "Add(%v, %m)"),
        ("Mul(%n, @scale)", "Mul(%n, %x)"),
        ("Add(%g, @bias)", "Add(%g, %x)"),
        ("%v: f32[batch, seq, 1] = ReduceMean(%p", "%v: f32[batch, seq, 1] = ReduceSum(%p"),
    ],
)
def test_what_is_no_layer_norm_stays(old: str, new: str) -> None:
    assert old in LAYER_NORM
    text = LAYER_NORM.replace(old, new)
    if new == "dense [1]":
        text = text.replace("[batch, seq, 1]", "[batch, 1, 4]")
    if "Add(%v, %m)" in new:
        text = text.replace("@eps: f32[] = dense [0.0009765625]\n", "")
    graph, _ = run(FuseLayerNorm(), text)
    assert "LayerNormalization" not in ops(graph)


@pytest.mark.parametrize("shape", ["[1]", "[4, 1]", "[]"])
def test_a_scale_that_is_no_vector_is_a_reason(shape: str) -> None:
    numbers = "[1.0]" if shape in ("[1]", "[]") else "[1.0, 2.0, 3.0, 4.0]"
    text = LAYER_NORM.replace(
        "@scale: f32[4] = dense [1.0, 2.0, 3.0, 4.0]", f"@scale: f32{shape} = dense {numbers}"
    )
    expect_unchanged(FuseLayerNorm(), text, "its scale or bias is not a vector of the last axis")


def test_a_moment_that_is_read_elsewhere_stays_beside_the_fused_op() -> None:
    text = LAYER_NORM.replace("-> (y = %y)", "-> (y = %y, mean = %m)")
    graph, _ = run(FuseLayerNorm(), text)
    assert ops(graph) == ["ReduceMean", "LayerNormalization"]


JAX_LAYER_NORM = """graph main(%x: f32[batch, seq, 4]) -> (y = %y) {
  @scale: f32[1, 1, 4] = dense [1.0, 2.0, -1.0, 0.5]
  @bias: f32[1, 4] = dense [0.0, 1.0, 2.0, 3.0]
  @axis: i64[1] = dense [2]
  @share: f32[] = dense [0.25]
  @zero: f32[] = dense [0.0]
  @eps: f32[] = dense [0.0009765625]
  @kept: i64[3] = dense [0, 0, 1]
  %sum: f32[batch, seq] = ReduceSum(%x, @axis) {keepdims = 0}
  %mean: f32[batch, seq] = Mul(%sum, @share)
  %squares: f32[batch, seq, 4] = Mul(%x, %x)
  %total: f32[batch, seq] = ReduceSum(%squares, @axis) {keepdims = 0}
  %of_squares: f32[batch, seq] = Mul(@share, %total)
  %square: f32[batch, seq] = Mul(%mean, %mean)
  %difference: f32[batch, seq] = Sub(%of_squares, %square)
  %variance: f32[batch, seq] = Max(@zero, %difference)
  %v: f32[batch, seq, 1] = Reshape(%variance, @kept)
  %e: f32[batch, seq, 1] = Add(%v, @eps)
  %root: f32[batch, seq, 1] = Sqrt(%e)
  %inverse: f32[batch, seq, 1] = Reciprocal(%root)
  %factor: f32[batch, seq, 4] = Mul(%inverse, @scale)
  %m: f32[batch, seq, 1] = Unsqueeze(%mean, @axis)
  %centred: f32[batch, seq, 4] = Sub(%x, %m)
  %product: f32[batch, seq, 4] = Mul(%centred, %factor)
  %y: f32[batch, seq, 4] = Add(%product, @bias)
}"""


def test_layer_norm_by_the_mean_of_squares_is_one_op() -> None:
    graph, _ = run(FuseLayerNorm(), JAX_LAYER_NORM)
    assert ops(graph) == ["LayerNormalization"]
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    (want,), (got,) = (
        evaluate(g, {"x": x}).values() for g in (parse(JAX_LAYER_NORM, TABLE), graph)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # Their sums round differently.


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@share: f32[] = dense [0.25]", "@share: f32[] = dense [0.5]"),  # Not 1/n.
        ("Mul(%x, %x)", "Mul(%x, %y0)"),  # Not a square.
        ("Sub(%of_squares, %square)", "Sub(%square, %of_squares)"),
        ("@zero: f32[] = dense [0.0]", "@zero: f32[] = dense [1.0]"),  # A variance of at least 1.
        ("Mul(%mean, %mean)", "Mul(%mean, %of_squares)"),
    ],
)
def test_what_is_no_variance_by_the_mean_of_squares_stays(old: str, new: str) -> None:
    assert old in JAX_LAYER_NORM
    text = JAX_LAYER_NORM.replace(old, new)
    if "%y0" in text:
        text = text.replace("%sum:", "%y0: f32[batch, seq, 4] = Neg(%x)\n%sum:")
    graph, _ = run(FuseLayerNorm(), text)
    assert "LayerNormalization" not in ops(graph)


# -- FuseRmsNorm -----------------------------------------------------------------------------------

RMS_NORM = """graph main(%x: f32[batch, seq, 4]) -> (y = %y) {
  @axes: i64[1] = dense [-1]
  @two: f32[] = dense [2.0]
  @eps: f32[] = dense [0.0009765625]
  @half: f32[] = dense [-0.5]
  @scale: f32[4] = dense [1.0, 2.0, 3.0, 4.0]
  %p: f32[batch, seq, 4] = Pow(%x, @two)
  %v: f32[batch, seq, 1] = ReduceMean(%p, @axes)
  %e: f32[batch, seq, 1] = Add(%v, @eps)
  %s: f32[batch, seq, 1] = Sqrt(%e)
  %i: f32[batch, seq, 1] = Reciprocal(%s)
  %n: f32[batch, seq, 4] = Mul(%x, %i)
  %y: f32[batch, seq, 4] = Mul(@scale, %n)
}"""
RMS_NORM_AFTER = """graph main(%x: f32[batch, seq, 4]) -> (y = %rmsnormalization) {
  @scale: f32[4] = dense [1.0, 2.0, 3.0, 4.0]
  %rmsnormalization: f32[batch, seq, 4] = RMSNormalization(%x, @scale) {axis = -1, epsilon = 0.0009765625}
}"""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Mul(%x, %i)": "Mul(%i, %x)", "Mul(@scale, %n)": "Mul(%n, @scale)"},
        {"Mul(%x, %i)": "Div(%x, %s)"},
        {"Reciprocal(%s)": "Pow(%e, @half)"},
        {"Pow(%x, @two)": "Mul(%x, %x)"},
    ],
    ids=["Reciprocal", "other way round", "Div", "Pow -0.5", "square by Mul"],
)
def test_rms_norm_written_out_is_one_op(changes: dict[str, str]) -> None:
    text = RMS_NORM
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    expect(FuseRmsNorm(), text, RMS_NORM_AFTER)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dense [2.0]", "dense [3.0]"),
        ("Mul(%x, %i)", "Mul(%p, %i)"),
        ("Mul(%x, %i)", "Div(%x, %i)"),
        ("Sqrt(%e)", "Tanh(%e)"),
        ("ReduceMean", "ReduceMax"),
    ],
)
def test_what_is_no_rms_norm_stays(old: str, new: str) -> None:
    assert old in RMS_NORM
    graph, _ = run(FuseRmsNorm(), RMS_NORM.replace(old, new))
    assert "RMSNormalization" not in ops(graph)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(y = %y)", "(y = %n)"),
        ("Mul(@scale, %n)", "Mul(%x, %n)"),
        ("@scale: f32[4] = dense [1.0, 2.0, 3.0, 4.0]", "@scale: f32[] = dense [1.5]"),
    ],
    ids=["none", "computed", "a number"],
)
def test_an_rms_norm_without_a_vector_of_scales_has_ones(old: str, new: str) -> None:
    assert old in RMS_NORM
    graph, _ = run(FuseRmsNorm(), RMS_NORM.replace(old, new))
    (norm,) = (n for n in graph.nodes if n.op == "RMSNormalization")
    np.testing.assert_array_equal(norm.inputs[1].numpy(), np.ones(4, np.float32))  # type: ignore[union-attr]
    assert ops(graph) in (["RMSNormalization"], ["RMSNormalization", "Mul"])


# -- FuseGelu --------------------------------------------------------------------------------------

ERF = """graph main(%x: f32[batch, 4]) -> (y = %y) {{
  @root: f32[] = dense [{root}]
  @one: f32[] = dense [1.0]
  @half: f32{half} = dense [0.5]
  %d: f32[batch, 4] = {inner}
  %e: f32[batch, 4] = Erf(%d)
  %a: f32[batch, 4] = {plus}
  {product}
}}"""
GELU_AFTER = """graph main(%x: f32[batch, 4]) -> (y = %gelu) {{
  %gelu: f32[batch, 4] = Gelu(%x) {{approximate = "{form}"}}
}}"""
PRODUCTS = {
    "(x a) half": "%p: f32[batch, 4] = Mul(%x, %a)\n%y: f32[batch, 4] = Mul(%p, @half)",
    "x (a half)": "%p: f32[batch, 4] = Mul(%a, @half)\n%y: f32[batch, 4] = Mul(%x, %p)",
    "(half x) a": "%p: f32[batch, 4] = Mul(@half, %x)\n%y: f32[batch, 4] = Mul(%p, %a)",
    "(x a) / 2": "@two: f32[] = dense [2.0]\n%p: f32[batch, 4] = Mul(%x, %a)\n%y: f32[batch, 4] = Div(%p, @two)",
}


def erf_text(**parts: str) -> str:
    given = {
        "root": "1.4142135", "half": "[]", "inner": "Div(%x, @root)", "plus": "Add(%e, @one)",
        "product": PRODUCTS["(x a) half"], **parts,
    }  # fmt: skip
    return ERF.format(**given)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"root": "0.70710677", "inner": "Mul(@root, %x)"},
        {"plus": "Add(@one, %e)"},
        {"half": "[1]"},
        {"half": "[1, 1]"},
    ],
    ids=["Div", "Mul", "one first", "half as a vector", "half as a matrix"],
)
def test_the_erf_form_is_gelu(product: str, parts: dict[str, str]) -> None:
    text = erf_text(product=PRODUCTS[product], **parts)
    expect(FuseGelu(), text, GELU_AFTER.format(form="none"))


@pytest.mark.parametrize(
    "parts",
    [
        {"root": "1.5"},
        {"inner": "Mul(%x, @root)"},
        {"plus": "Sub(%e, @one)"},
        {"plus": "Add(%e, @root)"},
        {"product": "%t: f32[batch, 4] = Tanh(%x)\n%p: f32[batch, 4] = Mul(%t, %a)\n%y: f32[batch, 4] = Mul(%p, @half)"},
        {"product": "%p: f32[batch, 4] = Mul(%x, %a)\n%y: f32[batch, 4] = Mul(%p, @root)"},
        {"product": "%y: f32[batch, 4] = Mul(%x, %a)"},
        {"half": "[1, 1, 1]", "product": "%p: f32[batch, 4] = Mul(%x, %a)\n%y: f32[1, batch, 4] = Mul(%p, @half)"},
    ],
    ids=["root", "times root", "minus one", "plus root", "another x", "another half", "no half", "more axes"],
)  # fmt: skip
def test_what_is_no_gelu_stays(parts: dict[str, str]) -> None:
    graph, _ = run(FuseGelu(), erf_text(**parts))
    assert "Gelu" not in ops(graph)


TANH = """graph main(%x: f32[batch, 4]) -> (y = %y) {{
  @three: f32[] = dense [3.0]
  @c: f32[] = dense [{c}]
  @k: f32[] = dense [0.7978846]
  @one: f32[] = dense [1.0]
  @half: f32[] = dense [0.5]
  {cube}
  %w: f32[batch, 4] = Add(%x, %v)
  %z: f32[batch, 4] = Mul(@k, %w)
  %t: f32[batch, 4] = Tanh(%z)
  %a: f32[batch, 4] = Add(@one, %t)
  {product}
}}"""
POW_CUBE = "%u: f32[batch, 4] = Pow(%x, @three)\n%v: f32[batch, 4] = Mul(%u, @c)"
MUL_CUBE = "%s: f32[batch, 4] = Mul(%x, %x)\n%u: f32[batch, 4] = Mul(%x, %s)\n%v: f32[batch, 4] = Mul(@c, %u)"


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("cube", [POW_CUBE, MUL_CUBE], ids=["Pow", "Mul"])
def test_the_tanh_form_is_gelu(cube: str, product: str) -> None:
    text = TANH.format(c="0.044715", cube=cube, product=PRODUCTS[product])
    expect(FuseGelu(), text, GELU_AFTER.format(form="tanh"))


def test_another_cubic_is_not_gelu() -> None:
    text = TANH.format(c="0.05", cube=POW_CUBE, product=PRODUCTS["(x a) half"])
    graph, _ = run(FuseGelu(), text)
    assert "Gelu" not in ops(graph)


def test_silu_is_swish_and_a_gate_of_something_else_is_not() -> None:
    text = """graph main(%x: f32[batch, 4], %g: f32[batch, 4]) -> (y = %y) {
      %s: f32[batch, 4] = Sigmoid(%x)
      %y: f32[batch, 4] = Mul(%s, %x)
    }"""
    expect(
        FuseGelu(),
        text,
        """graph main(%x: f32[batch, 4], %g: f32[batch, 4]) -> (y = %swish) {
          %swish: f32[batch, 4] = Swish(%x) {alpha = 1.0}
        }""",
    )
    expect_unchanged(FuseGelu(), text.replace("Sigmoid(%x)", "Sigmoid(%g)"))


# -- FuseAttention ---------------------------------------------------------------------------------

ATTENTION = """graph main(%q: f32[batch, 2, seq, 4], %kt: f32[batch, 2, 4, keys], %v: f32[batch, 2, keys, 4], %mask: f32[batch, 1, 1, keys], %keep: bool[batch, 1, 1, keys], %rows: bool[batch, 1, seq, 1]) -> (y = {out}{more}) {{
  @last: i64[1] = dense [-1]
  @c: f32{number} = dense [{c}]
  @zero: f32[] = dense [0.0]
  @low: f32[] = dense [{low}]
  {before}
  %s: f32[batch, 2, seq, keys] = MatMul({q}, {kt})
  {between}
  %w: f32[batch, 2, seq, keys] = Softmax({scores}) {{axis = {axis}}}
  {guard}
  %y: f32[batch, 2, seq, 4] = MatMul({weights}, %v)
  {after}
}}"""  # fmt: skip


def attention_text(**parts: str) -> str:
    given = {
        "out": "%y", "more": "", "number": "[]", "c": "0.5", "low": "-inf", "before": "", "q": "%q", "kt": "%kt", "between": "",
        "scores": "%s", "axis": "-1", "guard": "", "weights": "%w", "after": "", **parts,
    }  # fmt: skip
    return ATTENTION.format(**given)


def attention_of(text: str) -> tuple[float, list[str]]:
    """Scale of the one Attention that is left, and what it reads after its keys."""
    graph, skips = run(FuseAttention(), text)
    assert not skips
    left = [n for n in graph.nodes if n.op in ("Softmax", "MatMul", "Attention")]
    assert [n.op for n in left] == ["Attention"]
    scale = left[0].attrs["scale"]
    assert isinstance(scale, float)
    return scale, [v.name for v in left[0].inputs[2:] if v is not None]


SCALINGS = {
    "none": ({}, 1.0),
    "scores times c": ({"between": "%t: f32[batch, 2, seq, keys] = Mul(%s, @c)", "scores": "%t"}, 0.5),
    "c times scores": ({"between": "%t: f32[batch, 2, seq, keys] = Mul(@c, %s)", "scores": "%t"}, 0.5),
    "scores over c": ({"between": "%t: f32[batch, 2, seq, keys] = Div(%s, @c)", "scores": "%t", "c": "4.0"}, 0.25),
    "c as [1, 1, 1, 1]": ({"between": "%t: f32[batch, 2, seq, keys] = Mul(%s, @c)", "scores": "%t", "number": "[1, 1, 1, 1]"}, 0.5),
    "query times c": ({"before": "%p: f32[batch, 2, seq, 4] = Mul(%q, @c)", "q": "%p"}, 0.5),
    "query over c": ({"before": "%p: f32[batch, 2, seq, 4] = Div(%q, @c)", "q": "%p", "c": "4.0"}, 0.25),
    "keys times c": ({"before": "%p: f32[batch, 2, 4, keys] = Mul(@c, %kt)", "kt": "%p"}, 0.5),
    "both and the scores": (
        {
            "before": "%p: f32[batch, 2, seq, 4] = Mul(%q, @c)\n%r: f32[batch, 2, 4, keys] = Mul(%kt, @c)",
            "q": "%p", "kt": "%r", "between": "%t: f32[batch, 2, seq, keys] = Div(%s, @c)", "scores": "%t",
        },
        0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALINGS)
def test_scores_may_be_scaled_before_and_after_the_product(name: str) -> None:
    parts, scale = SCALINGS[name]
    assert attention_of(attention_text(**parts)) == (scale, ["v"])


ADD = "%t: f32[batch, 2, seq, keys] = Add(%s, {mask})"
WHERE = "%b: f32[batch, 1, 1, keys] = Where(%keep, @zero, @low)\n%t: f32[batch, 2, seq, keys] = Add(%b, %s)"
# Some padded queries have no key: the guard does not see it, since the lowest float is finite.
BY_QUERY = "%k: bool[batch, 1, seq, keys] = And(%keep, %rows)\n" + WHERE.replace(
    "%keep", "%k"
).replace("%b: f32[batch, 1, 1, keys]", "%b: f32[batch, 1, seq, keys]")
GUARD = "%nan: bool[batch, 2, seq, keys] = IsNaN(%w)\n%u: f32[batch, 2, seq, keys] = Where(%nan, @zero, %w)"


@pytest.mark.parametrize(
    ("parts", "reads"),
    [
        ({"between": ADD.format(mask="%mask"), "scores": "%t"}, ["v", "mask"]),
        ({"between": WHERE, "scores": "%t"}, ["v", "keep"]),
        ({"between": WHERE, "scores": "%t", "low": "-3.4028234663852886e+38"}, ["v", "b"]),
        ({"between": WHERE, "scores": "%t", "low": "-10000.0"}, ["v", "b"]),
        ({"between": WHERE, "scores": "%t", "guard": GUARD, "weights": "%u"}, ["v", "keep"]),
        ({"between": WHERE, "scores": "%t", "guard": GUARD, "weights": "%u", "low": "-3.4028234663852886e+38"}, ["v", "keep"]),
        ({"between": BY_QUERY, "scores": "%t", "guard": GUARD, "weights": "%u", "low": "-3.4028234663852886e+38"}, ["v", "b"]),
        ({"guard": GUARD, "weights": "%u", "axis": "3"}, ["v"]),
    ],
    ids=["added", "-inf", "lowest", "-10000", "guarded -inf", "guarded lowest", "guarded lowest by query", "guarded, no mask"],
)  # fmt: skip
def test_masks_are_taken_as_what_they_say(parts: dict[str, str], reads: list[str]) -> None:
    assert attention_of(attention_text(**parts))[1] == reads


LEFT = """%real: f32[batch, 1, 1, keys] = Cast(%keep) {to = 1}
%left: f32[batch, 1, 1, 1] = ReduceMax(%real, @last) {keepdims = 1}
%z: f32[batch, 2, seq, 4] = Mul(%left, %y)"""


def guarded_by_a_product(*changes: tuple[str, str], low: str = "-3.4028234663852886e+38") -> Graph:
    """An attention whose rows without keys are multiplied by zero, as Tersor writes it."""
    text = attention_text(between=WHERE, scores="%t", low=low, after=LEFT, out="%z")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return run(FuseAttention(), text)[0]


@pytest.mark.parametrize("low", ["-3.4028234663852886e+38", "-inf"])
def test_a_guard_that_multiplies_goes_with_its_mask(low: str) -> None:
    graph = guarded_by_a_product(low=low)
    assert ops(graph) == ["Transpose", "Attention"]
    attention = next(n for n in graph.walk() if n.op == "Attention")
    assert [v.name for v in attention.inputs[2:] if v is not None] == ["v", "keep"]


@pytest.mark.parametrize(
    "change",
    [
        ("Cast(%keep)", "Cast(%mask)"),
        ("ReduceMax", "ReduceMin"),
        ("(y = %z", "(x = %y, y = %z"),
        ("Mul(%left, %y)", "Add(%left, %y)"),
    ],
    ids=["of another mask", "of all keys", "read without it", "added"],
)
def test_what_is_no_guard_stays(change: tuple[str, str]) -> None:
    graph = guarded_by_a_product(change)
    attention = next(n for n in graph.walk() if n.op == "Attention")
    assert attention.inputs[3] is not None and attention.inputs[3].name == "b"
    assert ops(graph)[-1] in ("Mul", "Add")


def test_a_mask_of_keys_alone_gets_the_axes_that_attention_takes() -> None:
    """Found by random graphs: the runtime refuses a mask of one axis."""
    text = attention_text(between=ADD.format(mask="%mask"), scores="%t")
    after, _ = run(
        FuseAttention(), text.replace("%mask: f32[batch, 1, 1, keys]", "%mask: f32[keys]")
    )
    node = next(n for n in after.walk() if n.op == "Attention")
    assert str(node.inputs[3].type) == "f32[1, keys]"  # type: ignore[union-attr]


def test_a_scaled_and_masked_attention_in_text() -> None:
    parts = {
        "before": "%p: f32[batch, 2, seq, 4] = Mul(%q, @c)",
        "q": "%p",
        "between": ADD.format(mask="%mask"),
        "scores": "%t",
    }
    head = attention_text().splitlines()[0].replace("(y = %y)", "(y = %attention)")
    expect(
        FuseAttention(),
        attention_text(**parts),
        f"""{head}
          %transpose: f32[batch, 2, keys, 4] = Transpose(%kt) {{perm = [0, 1, 3, 2]}}
          %attention: f32[batch, 2, seq, 4] = Attention(%q, %transpose, %v, %mask) {{is_causal = 0, left_window_size = -1, qk_matmul_output_mode = 0, right_window_size = -1, scale = 0.5, softcap = 0.0}}
        }}""",
    )


@pytest.mark.parametrize(
    "parts",
    [
        {"axis": "2"},
        {"between": "%t: f32[batch, 2, seq, keys] = Tanh(%s)", "scores": "%t"},
        {"between": "%t: f32[batch, 2, seq, keys] = Mul(%s, %mask)", "scores": "%t"},
        {"between": "%t: f32[batch, 2, seq, keys] = Div(@c, %s)", "scores": "%t"},
        {"between": "%t: f32[batch, 2, seq, keys] = Mul(%s, @zero)", "scores": "%t"},
        {"guard": GUARD.replace("@zero, %w", "@c, %w"), "weights": "%u"},
        {"guard": GUARD.replace("IsNaN(%w)", "IsNaN(%s)"), "weights": "%u"},
    ],
    ids=[
        "axis",
        "Tanh",
        "by a tensor",
        "c over scores",
        "times zero",
        "guard to c",
        "guard of scores",
    ],
)
def test_what_is_no_attention_stays(parts: dict[str, str]) -> None:
    graph, _ = run(FuseAttention(), attention_text(**parts))
    assert "Attention" not in ops(graph)


def skipped(text: str) -> list[str]:
    """The reasons why nothing changes."""
    graph, skips = run(FuseAttention(), text)
    before = Pipeline([DeadCode()]).run(parse(text, TABLE, weights_of(graph)))
    assert print_graph(graph) == print_graph(before)
    once = Pipeline([FuseAttention()]).run(parse(text, TABLE))
    assert len(once) == len(parse(text, TABLE)), "a rule that does not apply has left a node behind"
    return skips


def test_attention_stays_with_a_reason() -> None:
    assert skipped(attention_text(more=", w = %w")) == ["the attention weights have another user"]
    narrow = attention_text(between=ADD.format(mask="%mask"), scores="%t")
    narrow = narrow.replace("%mask: f32[batch, 1, 1, keys]", "%mask: f32[batch, 1, seq, 1]")
    assert skipped(narrow) == ["its mask has no axis of keys"]
    number = attention_text(between=ADD.format(mask="@c"), scores="%t")
    assert skipped(number) == ["its mask has no axis of keys"]
    one_head = attention_text().replace("%kt: f32[batch, 2,", "%kt: f32[batch, 1,")
    assert skipped(one_head) == ["its operands have different batches or heads"]
    one_batch = attention_text().replace("%v: f32[batch, 2,", "%v: f32[1, 2,")
    assert skipped(one_batch) == ["its operands have different batches or heads"]
    two_batches = attention_text().replace("%v: f32[batch, 2,", "%v: f32[other, 2,")
    assert skipped(two_batches) == ["its operands have different batches or heads"]
    unknown = attention_text().replace("%q: f32[batch, 2, seq, 4]", "%q: f32[batch, 2, seq, n]")
    unknown = unknown.replace("%kt: f32[batch, 2, 4, keys]", "%kt: f32[batch, 2, n, keys]")
    assert skipped(unknown) == ["heads or head size of %q: f32[batch, 2, seq, n] are unknown"]


def test_a_mask_whose_length_has_a_name_of_its_own_may_be_one_element() -> None:
    text = attention_text(between=ADD.format(mask="%mask"), scores="%t")
    text = text.replace("%mask: f32[batch, 1, 1, keys]", "%mask: f32[batch, 1, 1, total]")
    graph, skips = run(FuseAttention(), text)  # On inputs where it is.
    assert not skips
    (attention,) = [n for n in graph.nodes if n.op == "Attention"]
    mask = attention.inputs[3]
    assert mask is not None and str(mask.type) == "f32[batch, 1, 1, keys]"
    (shape,) = [n for n in graph.nodes if n.op == "Shape"]
    assert shape.inputs[0] in graph.inputs, "layers do not share it"


def grouped_text(repeat_v: bool = True) -> str:
    v = (
        """%vu: f32[batch, 2, 1, keys, 2] = Unsqueeze(%v, @at)
           %ve: f32[batch, 2, 2, keys, 2] = Expand(%vu, %wide)
           %vr: f32[batch, 4, keys, 2] = Reshape(%ve, %heads)"""
        if repeat_v
        else ""
    )
    given = "%v: f32[batch, 2, keys, 2]" if repeat_v else "%vr: f32[batch, 4, keys, 2]"
    return f"""graph main(%q: f32[batch, 4, seq, 2], %k: f32[batch, 2, keys, 2], {given}) -> (y = %y) {{
      @zero: i64[1] = dense [0]
      @one: i64[1] = dense [1]
      @two: i64[1] = dense [2]
      @three: i64[1] = dense [3]
      @four: i64[1] = dense [4]
      @at: i64[1] = dense [2]
      %ks: i64[4] = Shape(%k)
      %b: i64[1] = Slice(%ks, @zero, @one)
      %n: i64[1] = Slice(%ks, @two, @three)
      %wide: i64[5] = Concat(%b, @two, @two, %n, @two) {{axis = 0}}
      %heads: i64[4] = Concat(%b, @four, %n, @two) {{axis = 0}}
      %ku: f32[batch, 2, 1, keys, 2] = Unsqueeze(%k, @at)
      %ke: f32[batch, 2, 2, keys, 2] = Expand(%ku, %wide)
      %kr: f32[batch, 4, keys, 2] = Reshape(%ke, %heads)
      {v}
      %kt: f32[batch, 4, 2, keys] = Transpose(%kr) {{perm = [0, 1, 3, 2]}}
      %s: f32[batch, 4, seq, keys] = MatMul(%q, %kt)
      %w: f32[batch, 4, seq, keys] = Softmax(%s) {{axis = -1}}
      %y: f32[batch, 4, seq, 2] = MatMul(%w, %vr)
    }}"""


def test_repeated_heads_are_left_out() -> None:
    graph, _ = run(FuseAttention(), grouped_text())
    assert ops(graph) == ["Attention"]
    assert [v.name for v in next(graph.nodes).inputs if v is not None] == ["q", "k", "v"]


def test_heads_are_left_repeated_where_only_the_keys_are() -> None:
    graph, _ = run(FuseAttention(), grouped_text(repeat_v=False))
    attention = next(n for n in graph.nodes if n.op == "Attention")
    assert [v.tensor.dims[1] for v in attention.inputs if v is not None] == [4, 4, 4]  # type: ignore[index]


# -- AttentionToHidden -----------------------------------------------------------------------------

HEADS = """graph main(%q: f32[batch, seq, 8], %k: f32[batch, keys, {kv}], %v: f32[batch, keys, {kv}]) -> (y = %y{more}) {{
  @qs: i64[4] = dense [0, 0, 2, 4]
  @ks: i64[4] = dense [0, 0, -1, 4]
  @out: i64[3] = dense [0, 0, {merged}]
  %q1: f32[batch, seq, 2, 4] = Reshape(%q, @qs)
  %q2: f32[batch, 2, seq, 4] = Transpose(%q1) {{perm = [0, 2, 1, 3]}}
  %k1: f32[batch, keys, {g}, 4] = Reshape(%k, @ks)
  %k2: f32[batch, {g}, keys, 4] = Transpose(%k1) {{perm = [0, 2, 1, 3]}}
  %v1: f32[batch, keys, {g}, 4] = Reshape(%v, @ks)
  %v2: f32[batch, {g}, keys, 4] = Transpose(%v1) {{perm = [0, 2, 1, 3]}}
  %a: f32[batch, 2, seq, 4] = Attention(%q2, %k2, %v2) {{scale = 0.25}}
  %t: f32[batch, seq, 2, 4] = Transpose(%a) {{perm = [{perm}]}}
  %y: f32[batch, seq, {merged}] = Reshape(%t, @out)
}}"""


def heads_text(**parts: str) -> str:
    given = {"kv": "8", "g": "2", "more": "", "merged": "8", "perm": "0, 2, 1, 3", **parts}
    return HEADS.format(**given)


@pytest.mark.parametrize(("kv", "g"), [("8", "2"), ("4", "1")], ids=["all heads", "grouped"])
def test_attention_moves_to_the_hidden_axis(kv: str, g: str) -> None:
    expect(
        AttentionToHidden(),
        heads_text(kv=kv, g=g),
        f"""graph main(%q: f32[batch, seq, 8], %k: f32[batch, keys, {kv}], %v: f32[batch, keys, {kv}]) -> (y = %attention) {{
          %attention: f32[batch, seq, 8] = Attention(%q, %k, %v) {{is_causal = 0, kv_num_heads = {g}, left_window_size = -1, q_num_heads = 2, qk_matmul_output_mode = 0, right_window_size = -1, scale = 0.25, softcap = 0.0}}
        }}""",
    )


def test_attention_stays_on_heads_where_something_else_reads_them() -> None:
    for name in ("a", "t"):
        expect_unchanged(
            AttentionToHidden(), heads_text(more=f", z = %{name}"), "its result has another user"
        )
    straight = heads_text().replace("Attention(%q2, %k2, %v2)", "Attention(%q2, %k2, %other)")
    straight = straight.replace(") -> (y", ", %other: f32[batch, 2, keys, 4]) -> (y")
    _, skips = run(AttentionToHidden(), straight)
    assert skips == ["an operand was not split from the hidden axis"]


def test_the_scores_of_attention_stay_on_heads() -> None:
    keys = "f32[batch, 2, keys, 4]"
    scored = heads_text(more=", z = %w").replace(
        "%a: f32[batch, 2, seq, 4] =",
        f"%a: f32[batch, 2, seq, 4], %pk: {keys}, %pv: {keys}, %w: f32[batch, 2, seq, keys] =",
    )
    why = "its scores are used, or it reads the lengths of a padded cache"
    expect_unchanged(AttentionToHidden(), scored, why)


def test_a_merge_of_other_axes_stays() -> None:
    text = heads_text(perm="0, 2, 3, 1").replace(
        "%t: f32[batch, seq, 2, 4]", "%t: f32[batch, seq, 4, 2]"
    )
    expect_unchanged(AttentionToHidden(), text)


# -- AttentionCache --------------------------------------------------------------------------------

CACHED = """graph main(%q: f32[batch, 2, seq, 4], %k: f32[batch, 2, seq, 4], %v: f32[batch, 2, seq, 4], %pk: f32[batch, 2, past, 4], %pv: f32[batch, 2, past, 4], %m: bool[batch, 1, seq, past + seq]) -> (y = %a, k = %ks, v = %vs{more}) {{
  %ks: f32[batch, 2, past + seq, 4] = Concat(%pk, %k) {{axis = {axis}}}
  %vs: f32[batch, 2, past + seq, 4] = Concat(%pv, %v) {{axis = {axis}}}
  %a: f32[batch, 2, seq, 4] = Attention(%q, %ks, %vs, {mask}) {{scale = 0.25, is_causal = {causal}}}{line}
}}"""


def cached(**parts: str) -> str:
    given = {"more": "", "axis": "2", "mask": "%m", "causal": "0", "line": "", **parts}
    return CACHED.format(**given)


@pytest.mark.parametrize("axis", ["2", "-2"])
@pytest.mark.parametrize("mask", ["%m", "_"])
def test_attention_over_joined_keys_has_a_past(axis: str, mask: str) -> None:
    graph, skips = run(AttentionCache(), cached(axis=axis, mask=mask))
    (node,) = graph.nodes
    assert [v.name if v else None for v in node.inputs] == [
        "q", "k", "v", "m" if mask == "%m" else None, "pk", "pv",
    ]  # fmt: skip
    assert graph.outputs == list(node.outputs)
    assert not skips


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (
            {"causal": "1"},
            "its positions count from the first key; with a past they would count from the last",
        ),
        (
            {"more": ", t = %t", "line": "\n  %t: f32[batch, 2, past + seq, 4] = Tanh(%ks)"},
            "its keys or values have another user",
        ),
    ],
)
def test_joined_keys_stay_joined_where_more_depends_on_them(
    parts: dict[str, str], reason: str
) -> None:
    expect_unchanged(AttentionCache(), cached(**parts), reason)


def test_keys_joined_along_their_heads_are_no_cache() -> None:
    text = cached(axis="1", mask="_").replace("past", "seq").replace("seq + seq", "seq")
    text = text.replace("s: f32[batch, 2, seq, 4] = C", "s: f32[batch, 4, seq, 4] = C")
    text = text.replace("%q: f32[batch, 2,", "%q: f32[batch, 4,")
    expect_unchanged(AttentionCache(), text.replace("%a: f32[batch, 2,", "%a: f32[batch, 4,"))


def test_a_past_moves_along_to_the_hidden_axis() -> None:
    text = heads_text(more=", k = %pk1").replace(
        "%v: f32[batch, keys, 8])",
        "%v: f32[batch, keys, 8], %pk: f32[batch, 2, past, 4], %pv: f32[batch, 2, past, 4])",
    )
    text = text.replace(
        "%a: f32[batch, 2, seq, 4] = Attention(%q2, %k2, %v2)",
        "%a: f32[batch, 2, seq, 4], %pk1: f32[batch, 2, past + keys, 4], %pv1: f32[batch, 2, past + keys, 4] = Attention(%q2, %k2, %v2, _, %pk, %pv)",
    )
    graph, skips = run(AttentionToHidden(), text)
    (node,) = graph.nodes
    assert [v.name if v else None for v in node.inputs] == ["q", "k", "v", None, "pk", "pv"]
    assert graph.outputs[1] is node.outputs[1]
    assert not skips


# -- FuseBiasActivation ----------------------------------------------------------------------------

ACTIVATED = """graph main(%x: f32[batch, 2]) -> (y = %y{more}) {{
  @w: f32[2, 3] = dense arange
  @b: f32[3] = dense [1.0, 2.0, 3.0]
  %l: f32[batch, 3] = tersor.Linear(%x, @w, @b) {{activation = "{first}"}} scope "fc"
  %y: f32[batch, 3] = {op}
}}"""


@pytest.mark.parametrize(
    ("op", "activation"),
    [
        ('Gelu(%l) {approximate = "none"}', "gelu"),
        ('Gelu(%l) {approximate = "tanh"}', "gelu_tanh"),
        ("Swish(%l) {alpha = 1.0}", "silu"),
        ("Relu(%l)", "relu"),
        ("Tanh(%l)", "tanh"),
        ("Sigmoid(%l)", "sigmoid"),
    ],
)
def test_an_activation_becomes_part_of_the_linear_layer(op: str, activation: str) -> None:
    expect(
        FuseBiasActivation(),
        ACTIVATED.format(more="", first="none", op=op),
        f"""graph main(%x: f32[batch, 2]) -> (y = %y_1) {{
          @w: f32[2, 3] = dense arange
          @b: f32[3] = dense [1.0, 2.0, 3.0]
          %y_1: f32[batch, 3] = tersor.Linear(%x, @w, @b) {{activation = "{activation}"}} scope "fc"
        }}""",
    )


def test_an_activation_stays_where_the_layer_has_one_or_is_read_elsewhere() -> None:
    expect_unchanged(FuseBiasActivation(), ACTIVATED.format(more="", first="relu", op="Tanh(%l)"))
    expect_unchanged(
        FuseBiasActivation(), ACTIVATED.format(more="", first="none", op="Swish(%l) {alpha = 1.5}")
    )
    expect_unchanged(FuseBiasActivation(), ACTIVATED.format(more="", first="none", op="Sin(%l)"))
    text = ACTIVATED.format(more=", l = %l", first="none", op="Relu(%l)")
    expect_unchanged(FuseBiasActivation(), text, "the linear layer has another user")


# -- FuseEmbeddingNorm -----------------------------------------------------------------------------

EMBEDDING = """graph main(%ids: i64[batch, seq], %places: i64[1, seq], %x: f32[batch, seq, 4]) -> (y = %y) {{
  @small: f32[2, 4] = dense [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
  @large: f32[3, 4] = dense arange
  @row: f32{row} = dense [{numbers}]
  @scale: f32[4] = dense [1.0, 2.0, 3.0, 4.0]
  @bias: f32[4] = dense [0.0, 0.0, 1.0, 0.0]
  %a: f32[1, seq, 4] = Gather(@small, %places) {{axis = 0}}
  %b: f32[batch, seq, 4] = Gather(@large, %ids) {{axis = 0}}
  %s: f32[batch, seq, 4] = Add(%a, %b)
  %t: f32[{out}] = Add(%s, {added})
  %y: f32[{out}]{more} = LayerNormalization(%t, {scale}, @bias) {{epsilon = 0.001}} scope "embeddings"
}}"""


def embedding_text(**parts: str) -> str:
    given = {
        "row": "[1, 1, 4]", "numbers": "0.5, 1.0, 0.0, 0.0", "out": "batch, seq, 4", "added": "@row", "more": "",
        "scale": "@scale", **parts,
    }  # fmt: skip
    return EMBEDDING.format(**given)


def test_embeddings_and_their_norm_are_one_op_with_the_largest_table_first() -> None:
    expect(
        FuseEmbeddingNorm(),
        embedding_text(),
        """graph main(%ids: i64[batch, seq], %places: i64[1, seq], %x: f32[batch, seq, 4]) -> (y = %y_1) {
          @large: f32[3, 4] = dense arange
          @scale: f32[4] = dense [1.0, 2.0, 3.0, 4.0]
          @bias: f32[4] = dense [0.0, 0.0, 1.0, 0.0]
          @small_1: f32[2, 4] = dense [0.5, 2.0, 2.0, 3.0, 4.5, 6.0, 6.0, 7.0]
          %y_1: f32[batch, seq, 4] = tersor.EmbeddingLayerNormalization(@scale, @bias, %ids, @large, %places, @small_1) {epsilon = 0.001} scope "embeddings"
        }""",
    )


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"added": "%x"}, None),
        (
            {"row": "[1, 1, 1, 4]", "out": "1, batch, seq, 4"},
            "the sum has more axes than the lookups",
        ),
        ({"more": ", %m: f32[batch, seq, 1]"}, None),
        ({"row": "[1]", "numbers": "0.5"}, None),
    ],
    ids=["another addend", "more axes", "unread mean", "a number for a row"],
)
def test_other_sums_of_embeddings(parts: dict[str, str], reason: str | None) -> None:
    graph, skips = run(FuseEmbeddingNorm(), embedding_text(**parts))
    stays = reason is not None or parts.get("added") == "%x"
    assert ("LayerNormalization" in ops(graph)) is stays
    assert skips == ([reason] if reason else [])


def test_an_embedding_norm_whose_mean_is_read_stays() -> None:
    text = embedding_text(more=", %m: f32[batch, seq, 1]").replace(
        "(y = %y)", "(y = %y, mean = %m)"
    )
    expect_unchanged(FuseEmbeddingNorm(), text, "its mean or deviation is used")


# -- FuseSkipNorm ----------------------------------------------------------------------------------

SKIP = """graph main(%x: f32[batch, 4], %r: f32[{r}], %g: f32[4]) -> (y = %y{more}) {{
  @scale: f32[4] = dense [1.0, 2.0, 3.0, 4.0]
  @c: f32[1, 4] = dense [1.0, 2.0, 3.0, 4.0]
  %s: f32[batch, 4] = Add(%x, {r_name})
  {middle}
  %y: f32[batch, 4]{outputs} = {norm}
}}"""


def skip_text(**parts: str) -> str:
    given = {
        "r": "batch, 4", "more": "", "r_name": "%r", "middle": "", "outputs": "",
        "norm": "LayerNormalization(%s, @scale) {axis = 1, epsilon = 0.5}", **parts,
    }  # fmt: skip
    return SKIP.format(**given)


@pytest.mark.parametrize(
    ("op", "fused"),
    [
        ("LayerNormalization", "tersor.AddLayerNormalization"),
        ("RMSNormalization", "tersor.AddRMSNormalization"),
    ],
)
def test_a_residual_and_its_norm_are_one_op(op: str, fused: str) -> None:
    graph, _ = run(FuseSkipNorm(), skip_text(norm=f"{op}(%s, @scale) {{epsilon = 0.001}}"))
    (node,) = graph.nodes
    assert (node.op, node.attrs) == (fused, {"axis": -1, "epsilon": 0.001})
    assert [v.name for v in node.inputs if v is not None] == ["x", "r", "scale"]
    assert len(node.outputs) == 1


def test_other_readers_of_the_sum_read_the_second_result() -> None:
    expect(
        FuseSkipNorm(),
        skip_text(middle="%t: f32[batch, 4] = Tanh(%s)", more=", t = %t, s = %s"),
        """graph main(%x: f32[batch, 4], %r: f32[batch, 4], %g: f32[4]) -> (y = %y_1, t = %t, s = %s_1) {
          @scale: f32[4] = dense [1.0, 2.0, 3.0, 4.0]
          %y_1: f32[batch, 4], %s_1: f32[batch, 4] = tersor.AddLayerNormalization(%x, %r, @scale) {axis = 1, epsilon = 0.5}
          %t: f32[batch, 4] = Tanh(%s_1)
        }""",
    )


def test_the_sum_is_gone_with_the_pass_itself() -> None:
    text = skip_text(more=", s = %s")
    graph = Pipeline([FuseSkipNorm()]).run(parse(text, TABLE))
    assert ops(graph) == ["tersor.AddLayerNormalization"]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"r": "1, 4"}, "the addends are of different types"),
        ({"r_name": "@c"}, "the addends are of different types"),
        ({"outputs": ", %m: f32[batch, 1]", "more": ", m = %m"}, "its mean or deviation is used"),
        (
            {"middle": "%h: f32[4] = Tanh(%g)", "norm": "LayerNormalization(%s, %h)"},
            "its scale or bias is not a constant",
        ),
    ],
)
def test_a_residual_stays_with_a_reason(parts: dict[str, str], reason: str) -> None:
    graph, skips = run(FuseSkipNorm(), skip_text(**parts))
    assert "Add" in ops(graph)
    assert "LayerNormalization" in ops(graph)
    assert skips == [reason]


# -- MergeLinears ----------------------------------------------------------------------------------

LINEARS = """graph main(%x: f32[batch, 2]) -> (q = %q, k = %k, v = %v) {{
  @wq: f32[2, 1] = dense [1.0, 2.0]
  @wk: f32[2, 2] = dense [3.0, 4.0, 5.0, 6.0]
  @wv: f32[2, 1] = dense [7.0, 8.0]
  @bq: f32[1] = dense [1.0]
  @bk: f32[2] = dense [2.0, 3.0]
  %q: f32[batch, 1] = tersor.Linear(%x, @wq, @bq) {{activation = "none"}}
  %k: f32[batch, 2] = tersor.Linear(%x, @wk, @bk) {{activation = "{activation}"}}
  %v: f32[batch, 1] = tersor.Linear(%x, @wv) {{activation = "none"}}
}}"""


def test_linear_layers_of_one_operand_are_one() -> None:
    graph, _ = run(MergeLinears(), LINEARS.format(activation="none"))
    assert ops(graph) == ["tersor.Linear", "Split", "tersor.Linear"]
    wide, split, other = graph.nodes
    assert wide.inputs[1].numpy().tolist() == [[1, 3, 4], [2, 5, 6]]  # type: ignore[union-attr]
    assert wide.inputs[2].numpy().tolist() == [1, 2, 3]  # type: ignore[union-attr]
    assert split.inputs[1].numpy().tolist() == [1, 2]  # type: ignore[union-attr]
    assert other.input(2) is None, "a layer without a bias is not merged with those that have one"
    assert not set(graph.constants) & {"wq", "wk", "bq", "bk"}


def test_linear_layers_of_different_activations_stay() -> None:
    expect_unchanged(MergeLinears(), LINEARS.format(activation="relu"))


FORMS = {
    "a scale a column, and one for all": (
        "affine(i8[2, 1] [1, -2], scale = f32[] [0.5], zero_point = i8[] [0])",
        "affine(i8[2, 2] [1, 2, 3, 4], scale = f32[2] [0.5, 0.25], zero_point = i8[2] [0, 0], axis = 1)",
        "affine(i8[2, 3] [1, 1, 2, -2, 3, 4], scale = f32[3] [0.5, 0.5, 0.25], zero_point = i8[3] [0, 0, 0], axis = 1)",
    ),
    "four bits in blocks of rows": (
        "affine(i4[2, 1] [1, -2], scale = f32[1, 1] [0.5], zero_point = i4[1, 1] [0], axis = 0, block = 2)",
        "affine(i4[2, 2] [1, 2, 3, 4], scale = f32[1, 2] [1.0, 2.0], zero_point = i4[1, 2] [0, 1], axis = 0, block = 2)",
        "affine(i4[2, 3] [1, 1, 2, -2, 3, 4], scale = f32[1, 3] [0.5, 1.0, 2.0], zero_point = i4[1, 3] [0, 0, 1], "
        "axis = 0, block = 2)",
    ),
    "one is pruned": (
        "masked(f32[2, 1] [1.0, 0.0], mask = bool[2, 1] [true, false])",
        "dense [1.0, 2.0, 3.0, 4.0]",
        "masked(f32[2, 3] [1.0, 1.0, 2.0, 0.0, 3.0, 4.0], mask = bool[2, 3] [true, true, true, false, true, true])",
    ),
    "half precision": (
        "cast(f16[2, 1] [1.0, 2.0], dtype = f32)",
        "cast(f16[2, 2] [3.0, 4.0, 5.0, 6.0], dtype = f32)",
        "cast(f16[2, 3] [1.0, 3.0, 4.0, 2.0, 5.0, 6.0], dtype = f32)",
    ),
    "of different bits": (
        "affine(i8[2, 1] [1, -2], scale = f32[] [0.5], zero_point = i8[] [0])",
        "affine(i4[2, 2] [1, 2, 3, 4], scale = f32[] [0.5], zero_point = i4[] [0])",
        "",
    ),
    "scales along the other axis": (
        "affine(i8[2, 1] [1, -2], scale = f32[2] [0.5, 1.0], zero_point = i8[2] [0, 0], axis = 0)",
        "affine(i8[2, 2] [1, 2, 3, 4], scale = f32[2] [0.5, 2.0], zero_point = i8[2] [0, 0], axis = 0)",
        "",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_linear_layers_are_merged_in_the_form_of_their_weights(name: str) -> None:
    first, second, wide = FORMS[name]
    text = f"""graph main(%x: f32[batch, 2]) -> (q = %q, k = %k) {{
  @wq: f32[2, 1] = {first}
  @wk: f32[2, 2] = {second}
  %q: f32[batch, 1] = tersor.Linear(%x, @wq) {{activation = "none"}}
  %k: f32[batch, 2] = tersor.Linear(%x, @wk) {{activation = "none"}}
}}
"""
    assert print_graph(parse(text, TABLE)) == text
    if not wide:
        expect_unchanged(MergeLinears(), text)
        return
    graph, _ = run(MergeLinears(), text)
    (merged, _) = graph.nodes
    assert f"f32[2, 3] = {wide}\n" in print_graph(graph)
    assert merged.inputs[1].tensor.shape == (2, 3)  # type: ignore[union-attr]


# -- all together ----------------------------------------------------------------------------------


def test_a_transformer_block_written_out_is_a_handful_of_ops() -> None:
    """Post-norm, as BERT has it: attention with mask arithmetic, erf GELU, layer norms taken apart."""
    graph = parse(BLOCK, TABLE)
    verify(graph)
    after = Pipeline(optimization(), "values", [feed(graph)], evaluate).run(graph)
    assert sorted(ops(after)) == sorted([
        "Unsqueeze", *["tersor.Linear"] * 6, "Attention", *["tersor.AddLayerNormalization"] * 2,
    ])  # fmt: skip


def _norm(x: str, y: str, p: str) -> str:
    h, r = "f32[batch, seq, 8]", "f32[batch, seq, 1]"
    return f"""
      %{p}m: {r} = ReduceMean(%{x}, @last)
      %{p}d: {h} = Sub(%{x}, %{p}m)
      %{p}p: {h} = Pow(%{p}d, @two)
      %{p}v: {r} = ReduceMean(%{p}p, @last)
      %{p}e: {r} = Add(%{p}v, @eps)
      %{p}s: {r} = Sqrt(%{p}e)
      %{p}n: {h} = Div(%{p}d, %{p}s)
      %{p}g: {h} = Mul(%{p}n, @scale)
      %{y}: {h} = Add(%{p}g, @bias)"""


def _heads(name: str, perm: str, out: str) -> str:
    return f"""
      @w{name}: f32[8, 8] = dense normal({ord(name)})
      %{name}0: f32[batch, seq, 8] = MatMul(%x, @w{name})
      %{name}1: f32[batch, seq, 8] = Add(@bias, %{name}0)
      %{name}2: f32[batch, seq, 2, 4] = Reshape(%{name}1, %split)
      %{name}: f32[{out}] = Transpose(%{name}2) {{perm = [{perm}]}}"""


BLOCK = f"""graph main(%x: f32[batch, seq, 8], %keep: bool[batch, seq]) -> (y = %y) {{
  @last: i64[1] = dense [-1]
  @two: f32[] = dense [2.0]
  @eps: f32[] = dense [1e-05]
  @one: f32[] = dense [1.0]
  @half: f32[] = dense [0.5]
  @root: f32[] = dense [1.4142135]
  @scale: f32[8] = dense [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]
  @bias: f32[8] = dense [0.5, 0.0, 0.5, 0.0, 0.5, 0.0, 0.5, 0.0]
  @zero: i64[1] = dense [0]
  @first: i64[1] = dense [1]
  @second: i64[1] = dense [2]
  @tail: i64[2] = dense [2, 4]
  @hidden: i64[1] = dense [8]
  @none: f32[] = dense [0.0]
  @low: f32[] = dense [-inf]
  @axes: i64[2] = dense [1, 2]
  @wo: f32[8, 8] = dense normal(1)
  @w1: f32[8, 16] = dense normal(2)
  @b1: f32[16] = dense normal(3)
  @w2: f32[16, 8] = dense normal(4)
  %shape: i64[3] = Shape(%x)
  %lead: i64[2] = Slice(%shape, @zero, @second)
  %split: i64[4] = Concat(%lead, @tail) {{axis = 0}}
  %merge: i64[3] = Concat(%lead, @hidden) {{axis = 0}}
  %k4: bool[batch, 1, 1, seq] = Unsqueeze(%keep, @axes)
  %mask: f32[batch, 1, 1, seq] = Where(%k4, @none, @low)
  {_heads("q", "0, 2, 1, 3", "batch, 2, seq, 4")}
  {_heads("k", "0, 2, 3, 1", "batch, 2, 4, seq")}
  {_heads("v", "0, 2, 1, 3", "batch, 2, seq, 4")}
  %s0: f32[batch, 2, seq, seq] = MatMul(%q, %k)
  %s1: f32[batch, 2, seq, seq] = Div(%s0, @two)
  %s2: f32[batch, 2, seq, seq] = Add(%s1, %mask)
  %s3: f32[batch, 2, seq, seq] = Softmax(%s2) {{axis = -1}}
  %a0: f32[batch, 2, seq, 4] = MatMul(%s3, %v)
  %a1: f32[batch, seq, 2, 4] = Transpose(%a0) {{perm = [0, 2, 1, 3]}}
  %a2: f32[batch, seq, 8] = Reshape(%a1, %merge)
  %o0: f32[batch, seq, 8] = MatMul(%a2, @wo)
  %o1: f32[batch, seq, 8] = Add(%o0, @bias)
  %r1: f32[batch, seq, 8] = Add(%o1, %x)
  {_norm("r1", "h", "n1")}
  %f0: f32[batch, seq, 16] = MatMul(%h, @w1)
  %f1: f32[batch, seq, 16] = Add(%f0, @b1)
  %e0: f32[batch, seq, 16] = Div(%f1, @root)
  %e1: f32[batch, seq, 16] = Erf(%e0)
  %e2: f32[batch, seq, 16] = Add(%e1, @one)
  %e3: f32[batch, seq, 16] = Mul(%f1, %e2)
  %e4: f32[batch, seq, 16] = Mul(%e3, @half)
  %f2: f32[batch, seq, 8] = MatMul(%e4, @w2)
  %f3: f32[batch, seq, 8] = Add(%f2, @bias)
  %r2: f32[batch, seq, 8] = Add(%f3, %h)
  {_norm("r2", "y", "n2")}
}}"""
