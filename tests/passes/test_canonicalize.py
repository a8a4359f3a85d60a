"""Canonicalization, pass by pass: IR text in, IR text out."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.backends import ort
from tersor.ir import Affine, Graph, parse, print_graph, verify, weights_of
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes.canonicalize import canonicalization
from tersor.passes.canonicalize.common_subexpressions import CommonSubexpressions
from tersor.passes.canonicalize.dead_code import DeadCode
from tersor.passes.canonicalize.drop_kept_dims import DropKeptDims
from tersor.passes.canonicalize.eliminate_identity import EliminateIdentity
from tersor.passes.canonicalize.fold_batch_norm import FoldBatchNorm
from tersor.passes.canonicalize.fold_constants import FoldConstants
from tersor.passes.canonicalize.fold_conv_bias import FoldConvBias
from tersor.passes.canonicalize.inline_branches import InlineBranches
from tersor.passes.canonicalize.matmul_to_linear import MatMulToLinear
from tersor.passes.canonicalize.shape_arithmetic import ShapeArithmetic
from tersor.passes.canonicalize.simplify_masks import SimplifyMasks
from tersor.passes.canonicalize.simplify_transpose import SimplifyTranspose
from tersor.passes.canonicalize.slices_to_split import SlicesToSplit
from tersor.passes.canonicalize.zero_states import ZeroStates
from tersor.pipeline import Pass, Pipeline
from tersor.pipeline.report import Remark


def run(step: Pass, text: str) -> tuple[Graph, list[Remark]]:
    """The graph after ``step`` and DeadCode, and the step's skips."""
    graph = parse(text, TABLE)
    verify(graph)
    pipeline = Pipeline([step, DeadCode()], level="text")
    return pipeline.run(graph), pipeline.reports[0].skips


def lines(graph: Graph) -> list[str]:
    return [line.strip() for line in print_graph(graph).splitlines()]


def expect(step: Pass, before: str, after: str) -> None:
    graph, skips = run(step, before)
    wanted = print_graph(parse(after, TABLE, weights_of(graph)))
    assert lines(graph) == [line.strip() for line in wanted.splitlines()]
    assert not skips


def expect_unchanged(step: Pass, text: str, reason: str | None = None) -> None:
    graph, skips = run(step, text)
    before = parse(text, TABLE, weights_of(graph))
    assert print_graph(graph) == print_graph(Pipeline([DeadCode()]).run(before))
    assert [skip.reason for skip in skips] == ([reason] if reason else [])


# -- EliminateIdentity -----------------------------------------------------------------------------

IDENTITIES = {
    "identity": "%y: f32[n, 4] = Identity(%x)",
    "dropout": "%y: f32[n, 4] = Dropout(%x)",
    "dropout that is off": "@r: f32[] = dense [0.5]\n@t: bool[] = dense [false]\n%y: f32[n, 4] = Dropout(%x, @r, @t)",
    "cast to itself": "%y: f32[n, 4] = Cast(%x) {to = 1}",
    "plus zero": "@c: f32[4] = dense [0.0, 0.0, 0.0, 0.0]\n%y: f32[n, 4] = Add(%x, @c)",
    "zero plus": "@c: f32[] = dense [0.0]\n%y: f32[n, 4] = Add(@c, %x)",
    "minus zero": "@c: f32[1, 1] = dense [0.0]\n%y: f32[n, 4] = Sub(%x, @c)",
    "times one": "@c: f32[] = dense [1.0]\n%y: f32[n, 4] = Mul(@c, %x)",
    "over one": "@c: f32[1] = dense [1.0]\n%y: f32[n, 4] = Div(%x, @c)",
    "to the power of one": "@c: f32[] = dense [1.0]\n%y: f32[n, 4] = Pow(%x, @c)",
    "transposed in place": "%y: f32[n, 4] = Transpose(%x) {perm = [0, 1]}",
    "transposed twice": "%a: f32[4, n] = Transpose(%x)\n%y: f32[n, 4] = Transpose(%a) {perm = [1, 0]}",
    "squeezed again": "@i: i64[1] = dense [1]\n%a: f32[n, 1, 4] = Unsqueeze(%x, @i)\n%y: f32[n, 4] = Squeeze(%a, @i)",
    "sliced whole": "@s: i64[1] = dense [0]\n@e: i64[1] = dense [9223372036854775807]\n@a: i64[1] = dense [1]\n%y: f32[n, 4] = Slice(%x, @s, @e, @a)",
    "padded by nothing": "@p: i64[4] = dense [0, 0, 0, 0]\n%y: f32[n, 4] = Pad(%x, @p)",
    "concatenated alone": "%y: f32[n, 4] = Concat(%x) {axis = 0}",
    "split into one": "@s: i64[1] = dense [4]\n%y: f32[n, 4] = Split(%x, @s) {axis = 1}",
    "negated twice": "%a: f32[n, 4] = Neg(%x)\n%y: f32[n, 4] = Neg(%a)",
    "chosen always": "@c: bool[2, 1, 1] = dense [true, true]\n@o: f32[] = dense [5.0]\n%a: f32[n, 4] = Tanh(%x)\n@t: bool[1] = dense [true]\n%y: f32[n, 4] = Where(@t, %x, @o)",
}  # fmt: skip


@pytest.mark.parametrize("name", IDENTITIES)
def test_what_changes_nothing_goes(name: str) -> None:
    text = f"graph main(%x: f32[n, 4]) -> (y = %y) {{\n{IDENTITIES[name]}\n}}"
    graph, _ = run(EliminateIdentity(), text)
    assert lines(graph) == ["graph main(%x: f32[n, 4]) -> (y = %x) {", "}"]


NO_IDENTITIES = {
    "dropout in training": "@r: f32[] = dense [0.5]\n@t: bool[] = dense [true]\n%y: f32[n, 4] = Dropout(%x, @r, @t)",
    "dropout of unknown training": "@r: f32[] = dense [0.5]\n%t: bool[] = Not(%flag)\n%y: f32[n, 4] = Dropout(%x, @r, %t)",
    "cast to another": "%y: f16[n, 4] = Cast(%x) {to = 10}",
    "cast there and back": "%a: f16[n, 4] = Cast(%x) {to = 10}\n%y: f32[n, 4] = Cast(%a) {to = 1}",
    "zero minus": "@c: f32[] = dense [0.0]\n%y: f32[n, 4] = Sub(@c, %x)",
    "one over": "@c: f32[] = dense [1.0]\n%y: f32[n, 4] = Div(@c, %x)",
    "one to the power": "@c: f32[] = dense [1.0]\n%y: f32[n, 4] = Pow(@c, %x)",
    "plus mostly zero": "@c: f32[4] = dense [0.0, 0.0, 0.0, 1.0]\n%y: f32[n, 4] = Add(%x, @c)",
    "plus zeros of more axes": "@c: f32[1, 1, 1] = dense [0.0]\n%y: f32[1, n, 4] = Add(%x, @c)",
    "times ones that widen": "@c: f32[3, 1, 1] = dense [1.0, 1.0, 1.0]\n%y: f32[3, n, 4] = Mul(%x, @c)",
    "transposed once": "%y: f32[4, n] = Transpose(%x)",
    "sliced backwards": "@s: i64[1] = dense [-1]\n@e: i64[1] = dense [-9223372036854775807]\n@a: i64[1] = dense [1]\n@t: i64[1] = dense [-1]\n%y: f32[n, 4] = Slice(%x, @s, @e, @a, @t)",
    "padded": "@p: i64[4] = dense [0, 1, 0, 0]\n%y: f32[n, 5] = Pad(%x, @p)",
    "cropped and padded": "@p: i64[4] = dense [0, 1, 0, -1]\n%y: f32[n, 4] = Pad(%x, @p)",
    "concatenated": "%y: f32[n, 8] = Concat(%x, %x) {axis = 1}",
    "chosen by a mask": "@m: bool[4] = dense [true, true, false, true]\n@o: f32[] = dense [5.0]\n%y: f32[n, 4] = Where(@m, %x, @o)",
    "chosen by a wide condition": "@t: bool[2, 1, 1] = dense [true, true]\n@o: f32[] = dense [5.0]\n%y: f32[2, n, 4] = Where(@t, %x, @o)",
    "of unknown size": "@c: f32[] = dense [0.0]\n%a: f32[*] = custom.Op(%x)\n%y: f32[*] = Add(%a, @c)",
}  # fmt: skip


@pytest.mark.parametrize("name", NO_IDENTITIES)
def test_what_changes_something_stays(name: str) -> None:
    text = f"graph main(%x: f32[n, 4], %flag: bool[]) -> (y = %y) {{\n{NO_IDENTITIES[name]}\n}}"
    expect_unchanged(EliminateIdentity(), text)


@pytest.mark.parametrize(("first", "second"), [(10, 11), (7, 1), (9, 7)])
def test_casts_through_a_narrower_type_stay(first: int, second: int) -> None:
    kinds = {1: "f32", 7: "i64", 9: "bool", 10: "f16", 11: "f64"}
    expect_unchanged(
        EliminateIdentity(),
        f"""graph main(%x: f32[n]) -> (y = %y) {{
          %a: {kinds[first]}[n] = Cast(%x) {{to = {first}}}
          %y: {kinds[second]}[n] = Cast(%a) {{to = {second}}}
        }}""",
    )


def test_a_cast_through_a_wider_type_is_one() -> None:
    expect(
        EliminateIdentity(),
        """graph main(%x: i32[n]) -> (y = %y, z = %z) {
          %a: i64[n] = Cast(%x) {to = 7}
          %y: f32[n] = Cast(%a) {to = 1}
          %b: f64[n] = Cast(%x) {to = 11}
          %z: bool[n] = Cast(%b) {to = 9}
        }""",
        """graph main(%x: i32[n]) -> (y = %cast, z = %cast_1) {
          %cast: f32[n] = Cast(%x) {to = 1}
          %cast_1: bool[n] = Cast(%x) {to = 9}
        }""",
    )


def test_a_cast_keeps_how_it_saturates() -> None:
    graph, _ = run(
        EliminateIdentity(),
        """graph main(%x: f16[n]) -> (y = %y) {
          %a: f32[n] = Cast(%x) {to = 1}
          %y: f8e4m3fn[n] = Cast(%a) {to = 17, saturate = 0}
        }""",
    )
    (cast,) = graph.nodes
    assert (cast.attrs["to"], cast.attrs["saturate"]) == (17, 0)


def test_a_number_is_not_written_as_another_word() -> None:
    expect_unchanged(
        EliminateIdentity(),
        """graph main(%x: i8[n]) -> (y = %y) {
          %a: f32[n] = Cast(%x) {to = 1}
          %y: string[n] = Cast(%a) {to = 8}
        }""",
    )


def test_two_transposes_are_one_by_their_product() -> None:
    expect(
        EliminateIdentity(),
        """graph main(%x: f32[a, b, c]) -> (y = %y) {
          %t: f32[b, c, a] = Transpose(%x) {perm = [1, 2, 0]}
          %y: f32[c, b, a] = Transpose(%t) {perm = [1, 0, 2]}
        }""",
        """graph main(%x: f32[a, b, c]) -> (y = %transpose) {
          %transpose: f32[c, b, a] = Transpose(%x) {perm = [2, 1, 0]}
        }""",
    )


def test_a_view_of_a_view_is_one_where_copied_dims_agree() -> None:
    text = """graph main(%x: f32[n, 6]) -> (y = %y) {
      @a: i64[3] = dense [0, 2, 3]
      @b: i64[3] = dense [0, 3, 2]
      %v: f32[n, 2, 3] = Reshape(%x, @a)
      %y: f32[n, 3, 2] = Reshape(%v, @b)
    }"""
    expect(
        EliminateIdentity(),
        text,
        """graph main(%x: f32[n, 6]) -> (y = %reshape) {
          @b: i64[3] = dense [0, 3, 2]
          %reshape: f32[n, 3, 2] = Reshape(%x, @b)
        }""",
    )
    # A 0 that copies a dim which only the view has cannot be read from the source.
    expect_unchanged(
        EliminateIdentity(),
        """graph main(%x: f32[6]) -> (y = %y) {
          @a: i64[2] = dense [2, 3]
          @b: i64[3] = dense [0, 3, 1]
          %v: f32[2, 3] = Reshape(%x, @a)
          %y: f32[2, 3, 1] = Reshape(%v, @b)
        }""",
    )


def only(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


@pytest.mark.parametrize(
    ("starts", "ends", "goes"),
    [
        ("[0, 0]", "[9223372036854775807, 1000000000]", True),
        ("[0, 0]", "[9223372036854775807, 4]", False),
        ("[0, 1]", "[9223372036854775807, 1000000000]", False),
    ],
)
def test_a_slice_to_the_end_of_axes_of_unknown_size_goes(
    starts: str, ends: str, goes: bool
) -> None:
    graph, _ = run(
        EliminateIdentity(),
        f"""graph main(%x: f32[n]) -> (y = %y) {{
          @s: i64[2] = dense {starts}
          @e: i64[2] = dense {ends}
          %a: f32[?, ?] = custom.Op(%x)
          %y: f32[?, ?] = Slice(%a, @s, @e)
        }}""",
    )
    assert only(graph) == (["custom.Op"] if goes else ["custom.Op", "Slice"])


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"])
def test_a_reduction_of_one_is_a_view(op: str) -> None:
    text = """graph main(%x: f32[n, 1, 4, 1]) -> (y = %y) {{
      @axes: i64[2] = dense {axes}
      %y: f32{out} = {op}(%x, @axes) {{keepdims = {keep}}}
    }}"""
    kept, _ = run(
        EliminateIdentity(), text.format(axes="[1, -1]", out="[n, 1, 4, 1]", op=op, keep=1)
    )
    assert kept.outputs == kept.inputs
    gone, _ = run(EliminateIdentity(), text.format(axes="[1, 3]", out="[n, 4]", op=op, keep=0))
    assert only(gone) == ["Squeeze"]
    expect_unchanged(EliminateIdentity(), text.format(axes="[1, 2]", out="[n, 1]", op=op, keep=0))


def test_a_cast_to_its_own_type_goes_at_whatever_size() -> None:
    graph, _ = run(
        EliminateIdentity(),
        """graph main(%x: f32[n]) -> (y = %y) {
          %a: f32[?, ?] = custom.Op(%x)
          %y: f32[?, ?] = Cast(%a) {to = 1}
        }""",
    )
    assert only(graph) == ["custom.Op"]


def test_a_row_that_is_picked_and_put_back_is_picked_with_its_axis() -> None:
    expect(
        EliminateIdentity(),
        """graph main(%x: f32[2, n, 4]) -> (y = %y) {
          @i: i64[] = dense [1]
          @axis: i64[1] = dense [0]
          %row: f32[n, 4] = Gather(%x, @i) {axis = 0}
          %y: f32[1, n, 4] = Unsqueeze(%row, @axis)
        }""",
        """graph main(%x: f32[2, n, 4]) -> (y = %gather) {
          @i_1: i64[1] = dense [1]
          %gather: f32[1, n, 4] = Gather(%x, @i_1) {axis = 0}
        }""",
    )
    expect_unchanged(
        EliminateIdentity(),
        """graph main(%x: f32[2, n, 4]) -> (y = %y) {
          @i: i64[] = dense [1]
          @axis: i64[1] = dense [1]
          %row: f32[n, 4] = Gather(%x, @i) {axis = 0}
          %y: f32[n, 1, 4] = Unsqueeze(%row, @axis)
        }""",
    )


SLICES = """graph main(%x: f32[n, 8, 6]) -> (y = %y{more}) {{
  @b: i64[1] = dense {starts}
  @e: i64[1] = dense [5]
  @one: i64[1] = dense [1]
  @two: i64[1] = dense [2]
  @step: i64[1] = dense [{step}]
  %h: f32[n, {rows}, 6] = Slice(%x, @b, @e, @one)
  %y: f32[n, {rows}, {last}] = Slice(%h, @b, @e, {axis}, @step)
}}"""


def test_slices_of_different_axes_are_one() -> None:
    given = {"more": "", "starts": "[1]", "rows": 4}
    for step, last in ((1, 4), (2, 2)):
        text = SLICES.format(**given, step=step, last=last, axis="@two")
        graph, _ = run(EliminateIdentity(), text)
        assert only(graph) == ["Slice"]
        feed = {"x": np.arange(96, dtype=np.float32).reshape(2, 8, 6)}
        want = evaluate(parse(text, TABLE), feed)["y"]
        np.testing.assert_array_equal(evaluate(graph, feed)["y"], want)
    same = SLICES.format(**given, step=1, last=6, axis="@one").replace(
        "%y: f32[n, 4,", "%y: f32[n, 3,"
    )
    read_twice = SLICES.format(**{**given, "more": ", h = %h"}, step=1, last=4, axis="@two")
    for text in (same, read_twice):
        graph, _ = run(EliminateIdentity(), text)
        assert only(graph) == ["Slice", "Slice"]


# -- SlicesToSplit ---------------------------------------------------------------------------------

GATES = """graph main(%x: f32[n, {size}]) -> (a = %a, b = %b, c = %c) {{
  @zero: i64[1] = dense [0]
  @two: i64[1] = dense [2]
  @five: i64[1] = dense [{five}]
  @end: i64[1] = dense [{end}]
  @axis: i64[1] = dense [-1]
  %c: f32[n, {rest}] = Slice(%x, @five, @end, @axis)
  %a: f32[n, 2] = Slice(%x, @zero, @two, @axis)
  %b: f32[n, {middle}] = Slice(%x, @two, @five, @axis)
}}"""


@pytest.mark.parametrize("end", [8, 9223372036854775807])
def test_slices_that_part_an_axis_are_a_split(end: int) -> None:
    text = GATES.format(size=8, five=5, end=end, rest=3, middle=3)
    graph, _ = run(SlicesToSplit(), text)
    assert only(graph) == ["Split"]
    feed = {"x": np.arange(16, dtype=np.float32).reshape(2, 8)}
    want, got = (evaluate(g, feed) for g in (parse(text, TABLE), graph))
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize(
    ("size", "five", "end", "rest", "middle"),
    [(8, 5, 7, 2, 3), (8, 2, 8, 6, 0), ("m", 5, 8, "?", 3)],
    ids=["a rest is left", "one is empty", "of no known size"],
)
def test_slices_that_do_not_part_an_axis_stay(
    size: object, five: int, end: int, rest: object, middle: int
) -> None:
    text = GATES.format(size=size, five=five, end=end, rest=rest, middle=middle)
    graph, _ = run(SlicesToSplit(), text)
    assert only(graph) == ["Slice"] * 3


# -- InlineBranches --------------------------------------------------------------------------------

BRANCHES = """graph main(%x: f32[n, 4], %c: bool[]) -> (y = %y, z = %z) {{
  {condition}
  %i: f32[n, 4], %z: f32[n, 4] = If({read}) {{else_branch = graph other() -> (e = %e, o = %x) {{
    @two: f32[] = dense [2.0]
    %e: f32[n, 4] = Mul(%x, @two)
  }}, then_branch = graph taken() -> (t = %t, o = %x) {{
    %h: f32[n, 4] = Tanh(%x)
    %t: f32[n, 4] = If(%c) {{else_branch = graph inner_other() -> (f = %f) {{
      %f: f32[n, 4] = Neg(%h)
    }}, then_branch = graph inner() -> (g = %g) {{
      %g: f32[n, 4] = Relu(%h)
    }}}}
  }}}}
  %y: f32[n, 4] = Abs(%i)
}}"""


@pytest.mark.parametrize(
    ("taken", "ops"), [("true", ["Tanh", "If", "Abs"]), ("false", ["Mul", "Abs"])]
)
def test_the_branch_that_is_known_to_be_taken_stands_in_the_place_of_the_if(
    taken: str, ops: list[str]
) -> None:
    text = BRANCHES.format(condition=f"@k: bool[] = dense [{taken}]", read="@k")
    before = parse(text, TABLE)
    graph, _ = run(InlineBranches(), text)
    verify(graph)
    assert only(graph) == ops
    for flag in (True, False):
        feed = {"x": np.array([[1, -2, 3, -4]], np.float32), "c": np.array(flag)}
        for name, want in evaluate(before, feed).items():
            np.testing.assert_array_equal(evaluate(graph, feed)[name], want)


def test_what_both_branches_return_is_read_where_it_is_made() -> None:
    graph, _ = run(InlineBranches(), BRANCHES.format(condition="", read="%c"))
    assert graph.outputs[1] is graph.inputs[0]
    assert only(graph) == ["If", "Abs"]  # Its other result differs.


# -- FoldConvBias ----------------------------------------------------------------------------------

CONV = """graph main(%x: f32[n, 2, 5, 5], %v: f32[1, 3, 1, 1]) -> (y = %y{more}) {{
  @w: f32{weight} = dense normal(1)
  @b: f32[3] = dense [1.0, 2.0, 3.0]
  @c: f32{added} = dense normal(2)
  %h: f32[n, 3, {size}, {size}] = {layer}
  %y: f32[n, 3, {size}, {size}] = Add({operands})
}}"""


@pytest.mark.parametrize("added", ["[1, 3, 1, 1]", "[3, 1, 1]", "[]", "[1]"])
@pytest.mark.parametrize("operands", ["%h, @c", "@c, %h"])
@pytest.mark.parametrize(
    ("layer", "weight", "size"),
    [
        ("Conv(%x, @w)", "[3, 2, 3, 3]", 3),
        ("Conv(%x, @w, @b)", "[3, 2, 3, 3]", 3),
        ("ConvTranspose(%x, @w, @b)", "[2, 3, 3, 3]", 7),
    ],
)
def test_what_is_added_to_each_channel_is_the_bias(
    added: str, operands: str, layer: str, weight: str, size: int
) -> None:
    text = CONV.format(
        more="", weight=weight, added=added, layer=layer, operands=operands, size=size
    )
    graph, _ = run(FoldConvBias(), text)
    assert only(graph) == [layer.partition("(")[0]]
    feed = {
        "x": np.random.default_rng(0).standard_normal((2, 2, 5, 5)).astype(np.float32),
        "v": np.zeros((1, 3, 1, 1), np.float32),
    }
    (want,), (got,) = (evaluate(g, feed).values() for g in (parse(text, TABLE), graph))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # The sum is of another order.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"added": "[1, 1, 3, 1]"}, None),  # Of rows, not of channels.
        ({"added": "[2, 3, 1, 1]"}, None),  # Of each of a batch.
        ({"operands": "%h, %v"}, None),
        ({"more": ", h = %h"}, "the Conv has another user than the bias"),
    ],
)
def test_what_is_no_bias_of_a_convolution_is_added_as_before(
    change: dict[str, str], reason: str | None
) -> None:
    given = {
        "more": "", "weight": "[3, 2, 3, 3]", "added": "[1, 3, 1, 1]", "layer": "Conv(%x, @w)",
        "operands": "%h, @c", "size": "3", **change,
    }  # fmt: skip
    text = CONV.format(**given)
    if given["added"].startswith("[2"):
        text = text.replace("[n, 2, 5, 5]", "[2, 2, 5, 5]").replace("[n, 3,", "[2, 3,")
    expect_unchanged(FoldConvBias(), text, reason)


# -- ShapeArithmetic -------------------------------------------------------------------------------


def test_the_shape_of_heads_is_written_as_a_constant() -> None:
    expect(
        ShapeArithmetic(),
        """graph main(%x: f32[batch, seq, 384]) -> (y = %y) {
          @zero: i64[] = dense [0]
          @one: i64[] = dense [1]
          @axis: i64[1] = dense [0]
          @rest: i64[2] = dense [12, 32]
          %s: i64[3] = Shape(%x)
          %b: i64[] = Gather(%s, @zero) {axis = 0}
          %n: i64[] = Gather(%s, @one) {axis = 0}
          %b1: i64[1] = Unsqueeze(%b, @axis)
          %n1: i64[1] = Unsqueeze(%n, @axis)
          %t: i64[4] = Concat(%b1, %n1, @rest) {axis = 0}
          %y: f32[batch, seq, 12, 32] = Reshape(%x, %t)
        }""",
        """graph main(%x: f32[batch, seq, 384]) -> (y = %reshape) {
          @shape: i64[4] = dense [0, 0, 12, 32]
          %reshape: f32[batch, seq, 12, 32] = Reshape(%x, @shape)
        }""",
    )


def test_what_follows_from_a_static_dim_is_a_number() -> None:
    graph, _ = run(
        ShapeArithmetic(),
        """graph main(%x: f32[batch, 6]) -> (y = %y, z = %h) {
          @one: i64[1] = dense [1]
          @two: i64[1] = dense [2]
          %s: i64[2] = Shape(%x)
          %n: i64[1] = Gather(%s, @one) {axis = 0}
          %h: i64[1] = Div(%n, @two)
          %y: i64[1] = Gather(%s, @one) {axis = 0}
        }""",
    )
    assert len(graph) == 0
    assert [v.numpy().tolist() for v in graph.outputs] == [[6], [3]]


def test_an_expand_to_its_own_shape_goes() -> None:
    text = """graph main(%x: f32[batch, 6]) -> (y = %y) {{
      %s: i64[2] = Shape(%x)
      %y: f32[batch, 6] = Expand({x}, %s)
    }}"""
    graph, _ = run(ShapeArithmetic(), text.format(x="%x"))
    assert graph.outputs == graph.inputs
    narrow = text.format(x="%r").replace("%s:", "%r: f32[6] = custom.Row(%x)\n%s:")
    graph, _ = run(ShapeArithmetic(), narrow)
    assert [n.op for n in graph.nodes] == ["custom.Row", "Shape", "Expand"]


def test_sizes_that_follow_from_new_constants_are_inferred() -> None:
    text = """graph main(%x: f32[batch, 1]) -> (y = %y) {{
      @s: i64[2] = dense [1, 6]
      %e: f32[batch, {size}] = Expand(%x, @s)
      %y: f32[batch, {size}] = Relu(%e)
    }}"""
    expect(ShapeArithmetic(), text.format(size="?"), text.format(size="6"))


@pytest.mark.parametrize(
    "target",
    [
        "[a, b]",  # two dims that are unknown
        "[0, a]",  # an empty dim that does not stand where the operand has one
    ],
)
def test_a_reshape_that_cannot_be_written_stays(target: str) -> None:
    expect_unchanged(
        ShapeArithmetic(),
        f"""graph main(%x: f32[n, m], %t: i64[2]) -> (y = %y) {{
          %y: f32{target} = Reshape(%x, %t)
        }}""",
    )


VIEW = """graph main(%x: f32{have}) -> (y = %y) {{
  @minus: i64[1] = dense [-1]
  @two: i64[1] = dense [2]
  @three: i64[1] = dense [3]
  @four: i64[1] = dense [4]
  %n: i64[1] = Shape(%x) {{start = 0, end = 1}}
  %a: i64[1] = Shape(%x) {{start = 1, end = 2}}
  %na: i64[1] = Mul(%n, %a)
  %a4: i64[1] = Mul(%a, @four)
  %t: i64[{rank}] = Concat({target}) {{axis = 0}}
  %y: f32{out} = Reshape(%x, %t)
}}"""


@pytest.mark.parametrize(
    ("have", "target", "out", "left"),
    [
        ("[n, a, 4]", "%n, %a4", "[n, 4*a]", "Flatten"),  # [0, -1] could be anything at n = 0.
        ("[n, a, 4]", "%na, @four", "[a*n, 4]", "[-1, 4]"),
        ("[n, a, 4]", "%n, @minus", "[n, 4*a]", "[0, -1]"),  # As the model has it.
        ("[n, a, 4]", "%n, %a, @two, @two", "[n, a, 2, 2]", "[0, 0, 2, 2]"),
        ("[n, a, 2, 2]", "%n, %a4, @two", "[n, 4*a, 2]", "Concat"),  # No one op says it.
        ("[n, a, 3]", "@three, %n, %a", "[3, n, a]", "Concat"),
        ("[n + 1, a, 4]", "%n, %a4", "[1 + n, 4*a]", "[0, -1]"),  # Never empty beside the -1.
    ],
)
def test_a_reshape_holds_at_sizes_of_zero(have: str, target: str, out: str, left: str) -> None:
    text = VIEW.format(have=have, target=target, out=out, rank=target.count(",") + 1)
    graph, _ = run(ShapeArithmetic(), text)
    last = graph.outputs[0].producer
    assert last is not None
    shape = last.input(1)
    if left == "Flatten":
        assert last.op == "Flatten"
    elif left == "Concat":
        assert shape is not None and shape.producer is not None and shape.producer.op == "Concat"
    else:
        assert shape is not None and str(shape.numpy().tolist()) == left


@pytest.mark.parametrize("sizes", [(2, 3), (0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("groups", ["%n, %a4", "%na, @four"])
def test_flattened_dims_run_at_sizes_of_zero(groups: str, sizes: tuple[int, int]) -> None:
    out = "[n, 4*a]" if groups == "%n, %a4" else "[a*n, 4]"
    graph = parse(VIEW.format(have="[n, a, 4]", target=groups, out=out, rank=2), TABLE)
    feed = {"x": np.zeros((*sizes, 4), np.float32)}
    after = Pipeline([canonicalization()], level="text").run(graph)
    sessions = [ort.open_session(ort.build(g)) for g in (graph, after)]
    shapes = [next(iter(session.run(feed).values())).shape for session in sessions]
    assert shapes[0] == shapes[1]


def test_what_overflows_is_left_to_the_runtime() -> None:
    expect_unchanged(
        ShapeArithmetic(),
        """graph main(%x: i32[2]) -> (y = %y) {
          @a: i32[1] = dense [2000000000]
          %y: i32[1] = Add(@a, @a)
        }""",
    )


# -- FoldConstants ---------------------------------------------------------------------------------


def test_arithmetic_on_constants_is_done_once() -> None:
    expect(
        FoldConstants(),
        """graph main(%x: f32[2]) -> (y = %y) {
          @a: f32[2] = dense [1.0, 2.0]
          @b: f32[2] = dense [0.5, 4.0]
          %s: f32[2] = Add(@a, @b)
          %t: f32[2] = Mul(%s, @b)
          %y: f32[2] = Add(%x, %t)
        }""",
        """graph main(%x: f32[2]) -> (y = %y) {
          @t_1: f32[2] = dense [0.75, 24.0]
          %y: f32[2] = Add(%x, @t_1)
        }""",
    )


BIG = """graph main(%x: f32[2]) -> (y = %y) {{
  @s: i64[2] = dense [100000, 100000]
  @c: f32[1, 3000] = dense normal(0)
  @r: f32[3000, 1] = dense normal(0)
  {line}
}}"""


@pytest.mark.parametrize(
    ("line", "bytes_more"),
    [
        ("%y: f32[100000, 100000] = ConstantOfShape(@s)", 40_000_000_000 - 16),
        ("%y: f32[3000, 3000] = Add(@c, @r)", 36_000_000 - 24_000),
        ("%y: f32[3000, 3000] = MatMul(@r, @c)", 36_000_000 - 24_000),
    ],
    ids=["ConstantOfShape", "Add", "MatMul"],
)
def test_what_makes_much_from_little_is_not_folded(line: str, bytes_more: int) -> None:
    text = BIG.format(line=line)
    expect_unchanged(FoldConstants(), text, "over the budget: 4096 bytes are left")
    _, skips = run(FoldConstants(), text)
    assert [skip.bytes for skip in skips] == [-bytes_more]


def test_the_budget_is_an_option_and_is_shared_by_all_nodes() -> None:
    text = """graph main(%x: f32[2]) -> (y = %y, z = %z) {
      @s: i64[1] = dense [100]
      %y: f32[100] = ConstantOfShape(@s)
      %z: f32[100] = ConstantOfShape(@s)
    }"""
    graph, skips = run(FoldConstants(byte_budget=500), text)
    assert [n.output.name for n in graph.nodes] == ["z"]
    why = "over the budget: 104 bytes are left"
    assert skips == [Remark(why, layer="ConstantOfShape %z", bytes=-392)]


def test_random_numbers_and_quantized_constants_are_not_folded() -> None:
    expect_unchanged(
        FoldConstants(),
        """graph main(%x: f32[2]) -> (y = %y, z = %z) {
          @q: i8[2] = dense [1, 2]
          @s: f32[] = dense [0.5]
          @p: f32[2] = dense [0.5, 0.5]
          %y: f32[2] = DequantizeLinear(@q, @s)
          %z: f32[2] = Bernoulli(@p)
        }""",
    )


def test_windows_are_not_folded() -> None:
    """ONNX's reference implementation adds up the groups of a ConvTranspose wrongly."""
    expect_unchanged(
        FoldConstants(),
        """graph main() -> (y = %y) {
          @x: f32[1, 2, 1, 1] = dense [1, 2]
          @w: f32[2, 1, 1, 1] = dense [1, 2]
          @b: f32[2] = dense [3, 4]
          %y: f32[1, 2, 1, 1] = ConvTranspose(@x, @w, @b) {group = 2}
        }""",
    )


def test_what_is_held_in_fewer_bits_stays_so() -> None:
    graph = TABLE.graph()
    x = graph.add_input("x", parse("graph m(%x: f32[2, 3]) -> () {\n}").inputs[0].type)
    q = Affine(np.ones((4, 3), np.int8), np.ones(4, np.float32), np.zeros(4, np.int8), axis=0)
    graph.set_outputs([graph.emit("MatMul", [x, graph.emit("Transpose", [graph.constant(q)])])])
    after = Pipeline([FoldConstants(byte_budget=0)]).run(graph)
    assert print_graph(after) == print_graph(graph)


# -- CommonSubexpressions and DeadCode -------------------------------------------------------------


def test_equal_nodes_and_constants_are_held_once() -> None:
    expect(
        CommonSubexpressions(),
        """graph main(%x: f32[n], %z: f32[n]) -> (y = %c, w = %d, c = @b) {
          @a: f32[2] = dense [1.0, 2.0]
          @b: f32[2] = dense [1.0, 2.0]
          %a1: f32[n] = Add(%x, %z)
          %a2: f32[n] = Add(%z, %x)
          %c: f32[n] = Mul(%a1, %a2)
          %s: f32[n] = Sub(%x, %z)
          %t: f32[n] = Sub(%z, %x)
          %d: f32[n] = Mul(%s, %t)
        }""",
        """graph main(%x: f32[n], %z: f32[n]) -> (y = %c, w = %d, c = @a) {
          @a: f32[2] = dense [1.0, 2.0]
          %a1: f32[n] = Add(%x, %z)
          %c: f32[n] = Mul(%a1, %a1)
          %s: f32[n] = Sub(%x, %z)
          %t: f32[n] = Sub(%z, %x)
          %d: f32[n] = Mul(%s, %t)
        }""",
    )


@pytest.mark.parametrize(
    "pair",
    [
        "%a: f32[n] = RandomNormalLike(%x)\n%b: f32[n] = RandomNormalLike(%x)",
        "%a: f32[n] = Elu(%x) {alpha = 1.0}\n%b: f32[n] = Elu(%x) {alpha = 2.0}",
        "%a: f32[n] = custom.Op(%x)\n%b: f32[n] = custom.Op(%x)",
    ],
    ids=["random", "attributes", "opaque"],
)
def test_nodes_that_may_differ_are_not_merged(pair: str) -> None:
    expect_unchanged(
        CommonSubexpressions(), f"graph main(%x: f32[n]) -> (y = %a, z = %b) {{\n{pair}\n}}"
    )


def test_constants_of_one_content_and_two_types_are_not_merged() -> None:
    expect_unchanged(
        CommonSubexpressions(),
        """graph main() -> (a = @a, b = @b, c = @c) {
          @a: f32[2] = dense [0.0, 0.0]
          @b: i32[2] = dense [0, 0]
          @c: f32[2, 1] = dense [0.0, 0.0]
        }""",
    )


def test_what_nothing_reads_goes_and_what_a_branch_reads_stays() -> None:
    expect(
        DeadCode(),
        """graph main(%x: f32[n], %flag: bool[]) -> (y = %r) {
          @c: f32[] = dense [1.0]
          %a: f32[n] = Tanh(%x)
          %b: f32[n] = Add(%a, @c)
          %d: f32[n] = Relu(%b)
          %k: f32[n] = Neg(%x)
          %r: f32[n] = If(%flag) {else_branch = graph else() -> (e = %x) {
            %dead: f32[n] = Neg(%k)
          }, then_branch = graph then() -> (t = %k) {
          }}
        }""",
        """graph main(%x: f32[n], %flag: bool[]) -> (y = %r) {
          %k: f32[n] = Neg(%x)
          %r: f32[n] = If(%flag) {else_branch = graph else() -> (e = %x) {
          }, then_branch = graph then() -> (t = %k) {
          }}
        }""",
    )


SHARED = """graph main(%x: f32[n, 16], %c: bool[]) -> (y = %y{more}) {{
  {outer}
  %y: f32[n, 16] = If(%c) {{else_branch = graph other() -> (e = %e) {{
    @v: f32[16, 16] = dense normal({seed})
    @k: f32[2] = dense [1.0, 2.0]
    @j: f32[2] = dense [1.0, 2.0]
    %e: f32[n, 16] = MatMul(%x, @v)
  }}, then_branch = graph taken() -> (t = %t) {{
    @w: f32[16, 16] = dense normal(1)
    %h: f32[n, 16] = MatMul(%x, @w)
    %t: f32[n, 16] = Tanh(%h)
  }}}}
}}"""


@pytest.mark.parametrize(
    ("outer", "more", "seed", "held"),
    [
        ("", "", 1, [1, 0, 0]),
        ("@u: f32[16, 16] = dense normal(1)\n%z: f32[n, 16] = MatMul(%x, @u)", ", z = %z", 1, [1, 0, 0]),
        ("", "", 2, [0, 1, 1]),
    ],
    ids=["two branches", "outside too", "different"],
)  # fmt: skip
def test_weights_that_are_equal_in_several_graphs_are_held_once(
    outer: str, more: str, seed: int, held: list[int]
) -> None:
    text = SHARED.format(outer=outer, more=more, seed=seed)
    graph, _ = run(CommonSubexpressions(), text)
    verify(graph)
    assert [len(g.constants) for g in graph.all_graphs()] == held
    for flag in (True, False):
        feed = {"x": np.ones((2, 16), np.float32), "c": np.array(flag)}
        want, got = (evaluate(g, feed) for g in (parse(text, TABLE), graph))
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])


# -- MatMulToLinear --------------------------------------------------------------------------------


def test_a_product_with_a_weight_and_its_bias_are_a_linear_layer() -> None:
    expect(
        MatMulToLinear(),
        """graph main(%x: f32[n, 3, 2]) -> (y = %y) {
          @w: f32[2, 4] = dense arange
          @b: f32[1, 1, 4] = dense [1.0, 2.0, 3.0, 4.0]
          %p: f32[n, 3, 4] = MatMul(%x, @w) scope "encoder.query"
          %y: f32[n, 3, 4] = Add(@b, %p)
        }""",
        """graph main(%x: f32[n, 3, 2]) -> (y = %y_1) {
          @w: f32[2, 4] = dense arange
          @b_1: f32[4] = dense [1.0, 2.0, 3.0, 4.0]
          %y_1: f32[n, 3, 4] = tersor.Linear(%x, @w, @b_1) {activation = "none"} scope "encoder.query"
        }""",
    )


def test_a_gemm_takes_up_its_factors_and_its_transposed_weight() -> None:
    expect(
        MatMulToLinear(),
        """graph main(%x: f32[n, 2]) -> (y = %y) {
          @w: f32[3, 2] = dense [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
          @b: f32[1] = dense [1.0]
          %y: f32[n, 3] = Gemm(%x, @w, @b) {transB = 1, alpha = 0.5, beta = 2.0}
        }""",
        """graph main(%x: f32[n, 2]) -> (y = %y_1) {
          @w_1: f32[2, 3] = dense [0.5, 1.5, 2.5, 1.0, 2.0, 3.0]
          @b_1: f32[3] = dense [2.0, 2.0, 2.0]
          %y_1: f32[n, 3] = tersor.Linear(%x, @w_1, @b_1) {activation = "none"}
        }""",
    )


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("%y: f32[2, 3] = Gemm(%x, @w) {transA = 1}", "its first operand is transposed"),
        ("@c: f32[2, 3] = dense [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]\n%y: f32[2, 3] = Gemm(%x, @w, @c)", "its bias is not one constant row"),
        ("%y: f32[2, 3] = Gemm(%x, @w, %v)", "its bias is not one constant row"),
        ("%y: f32[2, 2] = MatMul(%x, %x)", None),
        ("@k: f32[1, 2, 3] = dense arange\n%y: f32[1, 2, 3] = MatMul(%x, @k)", None),
        ("%y: f32[3] = MatMul(%u, @w)", None),
    ],
    ids=["transposed", "matrix", "variable", "no weight", "batched weight", "vector"],
)  # fmt: skip
def test_other_products_stay(lines: str, reason: str | None) -> None:
    text = f"""graph main(%x: f32[2, 2], %v: f32[3], %u: f32[2]) -> (y = %y) {{
      @w: f32[2, 3] = dense arange
      {lines}
    }}"""
    expect_unchanged(MatMulToLinear(), text, reason)


def test_a_bias_is_not_taken_where_the_product_is_read_elsewhere() -> None:
    graph, skips = run(
        MatMulToLinear(),
        """graph main(%x: f32[n, 2]) -> (y = %y, p = %p) {
          @w: f32[2, 3] = dense arange
          @b: f32[3] = dense [1.0, 2.0, 3.0]
          %p: f32[n, 3] = MatMul(%x, @w)
          %y: f32[n, 3] = Add(%p, @b)
        }""",
    )
    assert [n.op for n in graph.nodes] == ["tersor.Linear", "Add"]
    assert [skip.reason for skip in skips] == ["the product has another user than the bias"]


@pytest.mark.parametrize(
    "bias", ["f32[1] = dense [1.0]", "f32[2, 1, 3] = dense arange", "f32[] = dense [1.0]"]
)
def test_what_is_no_row_stays_an_addition(bias: str) -> None:
    shape = "2, n, 3" if "2, 1" in bias else "n, 3"
    graph, _ = run(
        MatMulToLinear(),
        f"""graph main(%x: f32[n, 2]) -> (y = %y) {{
          @w: f32[2, 3] = dense arange
          @b: {bias}
          %p: f32[n, 3] = MatMul(%x, @w)
          %y: f32[{shape}] = Add(%p, @b)
        }}""",
    )
    assert [n.op for n in graph.nodes] == ["tersor.Linear", "Add"]


# -- FoldBatchNorm ---------------------------------------------------------------------------------

BATCH_NORM = """graph main(%x: f32[{rank}2]) -> (y = %y{more}) {{
  @w: f32[2, 2] = dense [1.0, 2.0, 3.0, 4.0]
  @b: f32[2] = dense [0.5, 1.0]
  @gamma: f32[2] = dense [2.0, 3.0]
  @beta: f32[2] = dense [1.0, 1.0]
  @mean: f32[2] = dense [0.5, 2.0]
  @var: f32[2] = dense [4.0, 9.0]
  %l: f32[{rank}2] = tersor.Linear(%x, @w, @b) {{activation = "{activation}"}} scope "fc"
  %y: f32[{rank}2] = BatchNormalization(%l, @gamma, @beta, @mean, @var) {{epsilon = 0.0}}
}}"""


def test_batch_normalization_becomes_part_of_the_linear_layer() -> None:
    # s = gamma / sqrt(var) = 1, 1;  bias = (b - mean) s + beta = 1, 0
    expect(
        FoldBatchNorm(),
        BATCH_NORM.format(rank="n, ", more="", activation="none"),
        """graph main(%x: f32[n, 2]) -> (y = %y_1) {
          @w_1: f32[2, 2] = dense [1.0, 2.0, 3.0, 4.0]
          @w_bias: f32[2] = dense [1.0, 0.0]
          %y_1: f32[n, 2] = tersor.Linear(%x, @w_1, @w_bias) {activation = "none"} scope "fc"
        }""",
    )


@pytest.mark.parametrize(
    ("rank", "more", "activation", "reason"),
    [
        ("n, ", ", l = %l", "none", "the tersor.Linear has another user"),
        ("n, ", "", "relu", "its channels are not the columns of the linear layer"),
        ("n, 2, ", "", "none", "its channels are not the columns of the linear layer"),
    ],
)
def test_batch_normalization_stays(rank: str, more: str, activation: str, reason: str) -> None:
    text = BATCH_NORM.format(rank=rank, more=more, activation=activation)
    expect_unchanged(FoldBatchNorm(), text, reason)


def test_batch_normalization_in_training_or_with_variable_parameters_stays() -> None:
    text = BATCH_NORM.format(rank="n, ", more="", activation="none")
    training = text.replace(
        "%y: f32[n, 2] = BatchNormalization(%l, @gamma, @beta, @mean, @var) {epsilon = 0.0}",
        "%y: f32[n, 2], %m: f32[2], %v: f32[2] = BatchNormalization(%l, @gamma, @beta, @mean, @var) {epsilon = 0.0, training_mode = 1}",
    )
    expect_unchanged(FoldBatchNorm(), training, "it is in training mode")
    variable = text.replace("%x: f32[n, 2])", "%x: f32[n, 2], %g: f32[2])").replace(
        "(%l, @gamma,", "(%l, %g,"
    )
    expect_unchanged(FoldBatchNorm(), variable, "a parameter is not a constant")


def test_batch_normalization_becomes_part_of_a_depthwise_convolution() -> None:
    # s = gamma / sqrt(var) = 1, 2;  bias = beta - mean s = 0.5, -3: a channel each, whatever the groups.
    expect(
        FoldBatchNorm(),
        """graph main(%x: f32[n, 2, 3, 3]) -> (y = %y) {
          @w: f32[2, 1, 1, 1] = dense [5.0, 7.0]
          @gamma: f32[2] = dense [2.0, 6.0]
          @beta: f32[2] = dense [1.0, 1.0]
          @mean: f32[2] = dense [0.5, 2.0]
          @var: f32[2] = dense [4.0, 9.0]
          %c: f32[n, 2, 3, 3] = Conv(%x, @w) {group = 2, kernel_shape = [1, 1]}
          %y: f32[n, 2, 3, 3] = BatchNormalization(%c, @gamma, @beta, @mean, @var) {epsilon = 0.0}
        }""",
        """graph main(%x: f32[n, 2, 3, 3]) -> (y = %y_1) {
          @w_1: f32[2, 1, 1, 1] = dense [5.0, 14.0]
          @w_bias: f32[2] = dense [0.5, -3.0]
          %y_1: f32[n, 2, 3, 3] = Conv(%x, @w_1, @w_bias) {group = 2, kernel_shape = [1, 1]}
        }""",
    )


# -- SimplifyTranspose -----------------------------------------------------------------------------


def test_a_swap_in_merged_dims_is_a_transpose() -> None:
    text = """graph main(%x: f32[b, 2, 5, 3]) -> (y = %y) {
      @a: i64[3] = dense [-1, 5, 3]
      @c: i64[4] = dense [-1, 2, 3, 5]
      %r: f32[2*b, 5, 3] = Reshape(%x, @a)
      %t: f32[2*b, 3, 5] = Transpose(%r) {perm = [0, 2, 1]}
      %y: f32[b, 2, 3, 5] = Reshape(%t, @c)
    }"""
    expect(
        SimplifyTranspose(),
        text,
        """graph main(%x: f32[b, 2, 5, 3]) -> (y = %transpose) {
          %transpose: f32[b, 2, 3, 5] = Transpose(%x) {perm = [0, 1, 3, 2]}
        }""",
    )
    other_split = text.replace("[-1, 2, 3, 5]", "[-1, 2, 5, 3]").replace(
        "%y: f32[b, 2, 3, 5]", "%y: f32[b, 2, 5, 3]"
    )
    expect_unchanged(SimplifyTranspose(), other_split)
    other_swap = text.replace("[0, 2, 1]", "[1, 0, 2]").replace(
        "%t: f32[2*b, 3, 5]", "%t: f32[5, 2*b, 3]"
    )
    expect_unchanged(SimplifyTranspose(), other_swap)


BEHIND_A_RECURRENT_LAYER = """graph main(%x: f32[s, 2, b, 8]) -> (y = %y) {
  @a: i64[3] = dense [0, 0, -1]
  %t: f32[s, b, 2, 8] = Transpose(%x) {perm = [0, 2, 1, 3]}
  %r: f32[s, b, 16] = Reshape(%t, @a)
  %y: f32[b, s, 16] = Transpose(%r) {perm = [1, 0, 2]}
}"""


def test_dims_merged_between_transposes_are_merged_behind_both() -> None:
    merged_behind = """graph main(%x: f32[s, 2, b, 8]) -> (y = %reshape) {
      @shape: i64[3] = dense [0, 0, 16]
      %t: f32[s, b, 2, 8] = Transpose(%x) {perm = [0, 2, 1, 3]}
      %transpose: f32[b, s, 2, 8] = Transpose(%t) {perm = [1, 0, 2, 3]}
      %reshape: f32[b, s, 16] = Reshape(%transpose, @shape) {allowzero = 0}
    }"""
    expect(SimplifyTranspose(), BEHIND_A_RECURRENT_LAYER, merged_behind)


def test_merged_dims_that_move_to_the_front_stay_together() -> None:
    moved = BEHIND_A_RECURRENT_LAYER.replace("[1, 0, 2]", "[2, 1, 0]").replace(
        "f32[b, s, 16]", "f32[16, b, s]"
    )
    # Behind the merged dims only one size may be open: a Reshape tells one, by -1.
    expect_unchanged(SimplifyTranspose(), moved)
    known = moved.replace("f32[s, ", "f32[3, ").replace("[16, b, s]", "[16, b, 3]")
    graph, _ = run(SimplifyTranspose(), known)
    feed = {"x": np.arange(3 * 2 * 5 * 8, dtype=np.float32).reshape(3, 2, 5, 8)}
    (got,), (want,) = (evaluate(g, feed).values() for g in (graph, parse(known, TABLE)))
    assert np.array_equal(got, want)
    assert [n.op for n in graph.nodes] == ["Transpose", "Transpose", "Reshape"]


def test_dims_that_are_merged_for_another_reader_too_stay() -> None:
    text = BEHIND_A_RECURRENT_LAYER.replace("(y = %y)", "(y = %y, r = %r)")
    expect_unchanged(SimplifyTranspose(), text)


# -- ZeroStates ------------------------------------------------------------------------------------

LSTM_WITH_STATES = """graph main(%x: f32[s, b, 2]) -> (y = %y) {
  @w: f32[1, 4, 2] = dense [1, 2, 3, 4, 5, 6, 7, 8]
  @r: f32[1, 4, 1] = dense [1, 2, 3, 4]
  @one: i64[1] = dense [1]
  @fill: i64[1] = dense [1]
  %batch: i64[1] = Shape(%x) {start = 1, end = 2}
  %shape: i64[3] = Concat(@one, %batch, @one) {axis = 0}
  %h: f32[1, b, 1] = ConstantOfShape(%shape) {value = tensor f32[1] dense [0.0]}
  %y: f32[s, 1, b, 1] = LSTM(%x, @w, @r, _, _, %h, %h) {hidden_size = 1}
}"""


def test_states_that_begin_with_zeros_are_left_out() -> None:
    graph, _ = run(ZeroStates(), LSTM_WITH_STATES)
    (lstm,) = graph.nodes
    assert [v.name for v in lstm.inputs if v is not None] == ["x", "w", "r"]
    default = LSTM_WITH_STATES.replace(" {value = tensor f32[1] dense [0.0]}", "")
    assert [n.op for n in run(ZeroStates(), default)[0].nodes] == ["LSTM"]


def test_states_that_begin_with_anything_else_stay() -> None:
    ones = LSTM_WITH_STATES.replace("f32[1] dense [0.0]", "f32[1] dense [1.0]")
    expect_unchanged(ZeroStates(), ones)
    given = """graph main(%x: f32[s, b, 2], %h: f32[1, b, 1]) -> (y = %y) {
      @w: f32[1, 3, 2] = dense [1, 2, 3, 4, 5, 6]
      @r: f32[1, 3, 1] = dense [1, 2, 3]
      %y: f32[s, 1, b, 1] = GRU(%x, @w, @r, _, _, %h) {hidden_size = 1}
    }"""
    expect_unchanged(ZeroStates(), given)


# -- DropKeptDims ----------------------------------------------------------------------------------

POOLED = """graph main(%x: f32[b, 4, 2, 2]) -> (y = %y) {
  @axes: i64[2] = dense [-1, 2]
  @flat: i64[2] = dense [0, 4]
  %m: f32[b, 4, 1, 1] = ReduceMean(%x, @axes) {keepdims = 1}
  %y: f32[b, 4] = Reshape(%m, @flat)
}"""


@pytest.mark.parametrize("view", ["Reshape(%m, @flat)", "Squeeze(%m, @axes)", "Flatten(%m)"])
def test_dims_that_are_kept_to_be_dropped_are_not_kept(view: str) -> None:
    expect(
        DropKeptDims(),
        POOLED.replace("Reshape(%m, @flat)", view),
        """graph main(%x: f32[b, 4, 2, 2]) -> (y = %reducemean) {
          @axes: i64[2] = dense [-1, 2]
          %reducemean: f32[b, 4] = ReduceMean(%x, @axes) {keepdims = 0, noop_with_empty_axes = 0}
        }""",
    )


def test_kept_dims_that_are_read_stay() -> None:
    expect_unchanged(DropKeptDims(), POOLED.replace("(y = %y)", "(y = %y, m = %m)"))
    elsewhere = POOLED.replace("dense [0, 4]", "dense [-1, 2]").replace(
        "y: f32[b, 4]", "y: f32[2*b, 2]"
    )
    expect_unchanged(DropKeptDims(), elsewhere)


# -- SimplifyMasks ---------------------------------------------------------------------------------

MASK = """graph main(%m: bool[batch, seq], %x: f32[batch, 1, seq, seq]) -> (y = %y) {
  @zero: i64[] = dense [0]
  @one: i64[] = dense [1]
  @first: i64[1] = dense [0]
  @last: i64[1] = dense [-1]
  @batch_axes: i64[3] = dense [1, 2, 3]
  @seq_axes: i64[3] = dense [0, 1, 2]
  %s: i64[2] = Shape(%m)
  %b: i64[] = Gather(%s, @zero) {axis = 0}
  %n: i64[] = Gather(%s, @one) {axis = 0}
  %rb: i64[batch] = Range(@zero, %b, @one)
  %rn: i64[seq] = Range(@zero, %n, @one)
  %ub: i64[batch, 1, 1, 1] = Unsqueeze(%rb, @batch_axes)
  %un: i64[1, 1, 1, seq] = Unsqueeze(%rn, @seq_axes)
  %b1: i64[1] = Unsqueeze(%b, @first)
  %n1: i64[1] = Unsqueeze(%n, @first)
  @ones: i64[2] = dense [1, 1]
  %wide: i64[4] = Concat(%b1, @ones, %n1) {axis = 0}
  %eb: i64[batch, 1, 1, seq] = Expand(%ub, %wide)
  %en: i64[batch, 1, 1, seq] = Expand(%un, %wide)
  %cb: i64[batch, 1, 1, seq, 1] = Unsqueeze(%eb, @last)
  %cn: i64[batch, 1, 1, seq, 1] = Unsqueeze(%en, @last)
  %ids: i64[batch, 1, 1, seq, 2] = Concat(%cb, %cn) {axis = -1}
  %g: bool[batch, 1, 1, seq] = GatherND(%m, %ids)
  %always: bool[batch, 1, 1, 1] = GreaterOrEqual(%ub, @zero)
  %and: bool[batch, 1, 1, seq] = And(%always, %g)
  @masked: f32[] = dense [-inf]
  %y: f32[batch, 1, seq, seq] = Where(%and, %x, @masked)
}"""


def test_an_exporters_mask_is_a_view_of_the_mask() -> None:
    expect(
        SimplifyMasks(),
        MASK,
        """graph main(%m: bool[batch, seq], %x: f32[batch, 1, seq, seq]) -> (y = %y) {
          @masked: f32[] = dense [-inf]
          @axes: i64[2] = dense [1, 2]
          %unsqueeze: bool[batch, 1, 1, seq] = Unsqueeze(%m, @axes)
          %y: f32[batch, 1, seq, seq] = Where(%unsqueeze, %x, @masked)
        }""",
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Concat(%cb, %cn)", "Concat(%cn, %cb)"),  # m[j, i]
        ("Range(@zero, %b, @one)", "Range(@one, %b, @one)"),  # m[i + 1, j]
    ],
)
def test_a_lookup_elsewhere_is_no_view(old: str, new: str) -> None:
    graph, _ = run(SimplifyMasks(), MASK.replace(old, new))
    assert "GatherND" in [n.op for n in graph.nodes]


def test_a_comparison_that_may_fail_stays() -> None:
    text = MASK.replace("GreaterOrEqual(%ub, @zero)", "GreaterOrEqual(%ub, @one)")
    graph, _ = run(SimplifyMasks(), text)
    assert "And" in [n.op for n in graph.nodes]


UNIFORM = """graph main(%i: i64[n, 5], %x: f32[n, 5]) -> (y = %{returned}) {{
  @t: f32[20] = dense [{numbers}]
  %g: f32[n, 5] = Gather(@t, %i) {{axis = 0}}
  %y: f32[n, 5] = Add(%x, %g)
}}"""


def uniform(returned: str, number: float, size: int = 8) -> str:
    text = UNIFORM.format(returned=returned, numbers=", ".join([str(number)] * size))
    return text.replace("f32[20]", f"f32[{size}]")


def test_a_lookup_among_equal_numbers_is_that_number() -> None:
    expect(
        SimplifyMasks(),
        uniform("y", 0.5),
        """graph main(%i: i64[n, 5], %x: f32[n, 5]) -> (y = %y) {
          @g_1: f32[1, 1] = dense [0.5]
          %y: f32[n, 5] = Add(%x, @g_1)
        }""",
    )
    # Whoever sees its shape keeps it; so does whoever looks up among different numbers.
    expect_unchanged(SimplifyMasks(), uniform("g", 0.5))
    expect_unchanged(SimplifyMasks(), uniform("y", 0.5).replace("[0.5, ", "[0.25, "))


FILLED = """graph main(%x: f32[n, 5], %s: i64[2]) -> (y = %{returned}) {{
  %n: i64[2] = Shape(%x)
  %g: f32[n, 5] = ConstantOfShape(%n) {{value = tensor f32[1] dense [0.5]}}
  %y: f32[n, 5] = Min(%x, %g)
}}"""


def test_a_tensor_of_one_number_is_that_number_where_its_readers_broadcast() -> None:
    expect(
        SimplifyMasks(),
        FILLED.format(returned="y"),
        """graph main(%x: f32[n, 5], %s: i64[2]) -> (y = %y) {
          @g_1: f32[1, 1] = dense [0.5]
          %y: f32[n, 5] = Min(%x, @g_1)
        }""",
    )
    expect_unchanged(SimplifyMasks(), FILLED.format(returned="g"))
    larger = FILLED.format(returned="y").replace("Shape(%x)", "Shape(%z)").replace("%s", "%z")
    larger = larger.replace("i64[2])", "f32[m, 5])").replace("[n, 5] = C", "[m, 5] = C")
    expect_unchanged(SimplifyMasks(), larger.replace("%y: f32[n, 5]", "%y: f32[?, 5]"))


def test_large_integers_survive_the_lookup_among_equal_ones() -> None:
    graph, _ = run(
        SimplifyMasks(),
        """graph main(%i: i64[n, 5], %x: i64[n, 5]) -> (y = %y) {
          @t: i64[2] = dense [9223372036854775807, 9223372036854775807]
          %g: i64[n, 5] = Gather(@t, %i) {axis = 0}
          %y: i64[n, 5] = Add(%x, %g)
        }""",
    )
    (constant,) = graph.constants.values()
    assert constant.numpy().tolist() == [[2**63 - 1]]


def test_a_broadcast_is_left_out_only_where_every_reader_broadcasts() -> None:
    text = """graph main(%x: f32[1, 4], %z: f32[n, 4], %s: i64[2]) -> (y = %y) {{
      %n: i64[2] = Shape(%z)
      %e: f32[n, 4] = Expand(%x, %n)
      %y: f32[{shape}] = {reader}
    }}"""
    graph, _ = run(SimplifyMasks(), text.format(shape="n, 4", reader="Mul(%z, %e)"))
    assert [n.op for n in graph.nodes] == ["Mul"]
    for shape, reader in [
        ("1, 4", "ReduceSum(%e, @a) {keepdims = 1}"),
        ("n, 4", "Tanh(%e)"),
        ("n, 4", "Add(%e, %e)"),
        ("n, 8", "Concat(%e, %z) {axis = 1}"),
    ]:
        with_axis = text.replace("%n: i64[2] =", "@a: i64[1] = dense [0]\n%n: i64[2] =")
        expect_unchanged(SimplifyMasks(), with_axis.format(shape=shape, reader=reader))


def test_a_broadcast_to_unknown_sizes_stays() -> None:
    expect_unchanged(
        SimplifyMasks(),
        """graph main(%x: f32[1], %z: f32[?], %s: i64[1]) -> (y = %y) {
          %e: f32[?] = Expand(%x, %s)
          %y: f32[?] = Mul(%z, %e)
        }""",
    )
    expect_unchanged(
        SimplifyMasks(),
        """graph main(%m: bool[?], %flag: bool[?]) -> (y = %y) {
          @t: bool[3] = dense [true, true, true]
          %y: bool[?] = And(@t, %m)
        }""",
    )


# -- what is not known -----------------------------------------------------------------------------

EVERYTHING = """graph main(%x: f32[2, 3]) -> (y = %out) {{
  @w: f32[3, 3] = dense normal(0)
  @one: f32[] = dense [1.0]
  @row: f32[3] = dense [1.0, 2.0, 3.0]
  @axis: i64[1] = dense [0]
  @pads: i64[4] = dense [0, 0, 0, 0]
  @ids: i64[2] = dense [0, 0]
  @target: i64[2] = dense [0, 3]
  @c: bool[] = dense [true]
  %u: {type} = custom.Op(%x)
  %out: {made} = {line}
}}"""


@pytest.mark.parametrize("type", ["unknown", "f32[*]", "f32[?, ?]"])
@pytest.mark.parametrize(
    "line",
    [
        "MatMul(%u, @w)", "Gemm(%u, @w, @row)", "Add(%u, @one)", "Mul(%u, @one)", "Identity(%u)", "Transpose(%u)",
        "Reshape(%u, @target)", "Squeeze(%u, @axis)", "Unsqueeze(%u, @axis)", "Slice(%u, @axis, @axis)",
        "Pad(%u, @pads)", "Concat(%u) {axis = 0}", "Where(@c, %u, @one)", "Expand(%u, @target)",
        "Gather(%u, @ids) {axis = 0}", "LayerNormalization(%u, @row, @row)", "Sigmoid(%u)", "Softmax(%u)",
        "BatchNormalization(%u, @row, @row, @row, @row)", "Cast(%u) {to = 1}", "GatherND(%u, @ids)", "Neg(%u)",
        "ReduceMean(%u, @axis)", "Pow(%u, @one)", "Div(%u, @one)", "Gelu(%u)",
    ],
)  # fmt: skip
def test_values_of_unknown_type_pass_through(line: str, type: str) -> None:
    from tersor.passes.fuse import attention_layout, fusion

    made = "unknown" if type == "unknown" else "f32[*]"
    graph = parse(EVERYTHING.format(type=type, made=made, line=line), TABLE)
    passes = [canonicalization(), *fusion(), *attention_layout()]
    after = Pipeline(passes, level="text").run(graph)
    assert after.output_names == ["y"]
    assert "custom.Op" in [n.op for n in after.nodes]
