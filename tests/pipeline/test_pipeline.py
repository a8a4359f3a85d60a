"""The pipeline: what each level of verification catches, how a failure is told, what is reported."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tersor.errors import InvalidOption, PassFailed
from tersor.ir import DType, Graph, Node, TensorType, Use, parse, print_graph
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.pipeline import (
    EXACT,
    LEVELS,
    LOSSY,
    ROUNDING,
    Context,
    Keeps,
    Pass,
    Pipeline,
    Repeat,
    Rewrite,
    Skip,
    erase_dead,
    replace_node,
    weight_bytes,
)
from tersor.pipeline.report import (
    BEST,
    INPUT,
    Decision,
    Decoded,
    Measurement,
    PassReport,
    Remark,
    Report,
    Timing,
)
from tersor.plain import read_plain

TEXT = """
graph main(%x: f32[batch, 4]) -> (y = %e) {
  @w: f32[4, 4] = dense normal(3)
  %a: f32[batch, 4] = Tanh(%x) scope "first"
  %b: f32[batch, 4] = MatMul(%a, @w) scope "second"
  %c: f32[batch, 4] = Tanh(%b) scope "third"
  %d: f32[batch, 4] = Neg(%c)
  %e: f32[batch, 4] = Tanh(%d) scope "last"
}
"""
FEEDS = [{"x": np.random.default_rng(0).standard_normal((n, 4)).astype(np.float32)} for n in (1, 3)]


def graph() -> Graph:
    return parse(TEXT, TABLE)


def run(step: Pass, level: str = "values", on: Graph | None = None) -> tuple[Graph, Pipeline]:
    pipeline = Pipeline([step], level=level, feeds=FEEDS, evaluate=evaluate)
    return pipeline.run(on or graph()), pipeline


# -- passes that break something -------------------------------------------------------------------


@dataclass(frozen=True)
class TanhToErf(Pass):
    """Wrong only for the node in ``guilty``; the others are put back as they were."""

    keeps = EXACT
    guilty: str = "third"

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op != "Tanh" or node.name == "done":
            return None
        op = "Erf" if node.scope == self.guilty else "Tanh"
        new = graph.emit_node(op, node.inputs, node_name="done")
        return new.output


@dataclass(frozen=True)
class Anything(Pass):
    """Runs a function on the graph."""

    change: Callable[[Graph], None] = print_graph  # type: ignore[assignment]
    counted: int = 1

    def run(self, graph: Graph, context: Context) -> None:
        self.change(graph)
        context.report.rewrites += self.counted


@dataclass(frozen=True)
class LossyAnything(Anything):
    keeps = LOSSY


@dataclass(frozen=True)
class NewSignature(Anything):
    keeps = Keeps(signature=False)


@dataclass(frozen=True)
class NewShapes(Anything):
    keeps = Keeps(shapes=False)


def wrong_type(g: Graph) -> None:
    node = next(g.nodes)
    node.output.type = TensorType(DType.F32, (3, 5))


def wrong_uses(g: Graph) -> None:
    g.inputs[0].uses[Use(g, 0)] = None


def renamed_output(g: Graph) -> None:
    g.output_names = ["z"]


def more_inputs(g: Graph) -> None:
    g.add_input("more", TensorType(DType.F32, ()))


def other_output_type(g: Graph) -> None:
    g.set_outputs([g.emit("Cast", g.outputs, {"to": 11})], ["y"])


def other_output_shape(g: Graph) -> None:
    g.set_outputs([g.emit("Concat", [*g.outputs, *g.outputs], {"axis": 1})], ["y"])


def wrong_values(g: Graph) -> None:
    g.set_outputs([g.emit("Neg", g.outputs)], ["y"])


def not_a_number(g: Graph) -> None:
    zero = g.constant(np.float32(0), "zero")
    nothing = g.emit("Div", [zero, zero])
    g.set_outputs([g.emit("Add", [g.outputs[0], nothing])], ["y"])


@pytest.mark.parametrize("level", ["types", "text", "values"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_type, r"after anything.*: %a: f32\[3, 5\] is inferred as f32\[batch, 4\]"),
        (wrong_uses, r"after anything.*: %x.* lists a use by"),
        (renamed_output, r"its outputs were y and are z"),
        (more_inputs, r"its inputs were x and are x, more"),
        (other_output_type, r"y was f32\[batch, 4\] and is f64\[batch, 4\]"),
        (other_output_shape, r"y was f32\[batch, 4\] and is f32\[batch, 8\]"),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_broken_structure_types_and_signature_are_caught_at_every_level(
    change: Callable[[Graph], None], message: str, level: str
) -> None:
    with pytest.raises(PassFailed, match=message):
        run(Anything(change), level)


def test_a_graph_that_does_not_print_and_read_back_is_caught() -> None:
    def unprintable(g: Graph) -> None:
        constant = g.constants["w"]
        constant.name = "x"  # The name of an input: the text would define it twice.
        g.constants = {"x": constant}

    with pytest.raises(PassFailed, match="two values are called %x"):
        run(LossyAnything(unprintable), "types")

    def two_dims_of_one_name(g: Graph) -> None:
        next(g.nodes).output.type = TensorType(DType.F32, (OddDim(), 4))  # type: ignore[arg-type]

    run(LossyAnything(two_dims_of_one_name), "types")
    with pytest.raises(PassFailed, match=r"after lossy-anything.*not a dimension: 'a b'"):
        run(LossyAnything(two_dims_of_one_name), "text")


class OddDim:
    """A dim that prints as what cannot be read."""

    def __str__(self) -> str:
        return "a b"


@pytest.mark.parametrize("change", [wrong_type, wrong_uses, renamed_output, wrong_values])
def test_the_level_none_verifies_nothing(change: Callable[[Graph], None]) -> None:
    run(Anything(change), "none")


def test_wrong_values_are_caught_where_values_are_claimed() -> None:
    run(Anything(wrong_values), "text")
    with pytest.raises(PassFailed, match="claims to keep values, but the outputs differ by"):
        run(Anything(wrong_values))
    run(LossyAnything(wrong_values))


def test_a_pass_that_counts_no_rewrites_is_checked_all_the_same() -> None:
    with pytest.raises(PassFailed, match="it counts no rewrites"):
        run(Anything(wrong_values, counted=0))


def test_numbers_may_not_become_nan() -> None:
    with pytest.raises(PassFailed, match="differ by inf"):
        run(Anything(not_a_number))


def test_a_pass_may_give_up_the_signature_or_the_shapes() -> None:
    after, _ = run(NewSignature(renamed_output), "types")
    assert after.output_names == ["z"]
    after, _ = run(NewShapes(other_output_shape), "types")
    assert str(after.outputs[0].type) == "f32[batch, 8]"
    with pytest.raises(PassFailed, match="y was f32"):
        run(NewShapes(other_output_type), "types")


@pytest.mark.parametrize(("guilty", "number"), [("first", 1), ("third", 2), ("last", 3)])
def test_bisection_names_the_guilty_rewrite(guilty: str, number: int) -> None:
    with pytest.raises(PassFailed) as caught:
        run(TanhToErf(guilty))
    message = str(caught.value)
    assert message.startswith(
        f"tanh-to-erf{'' if guilty == 'third' else '{guilty=' + guilty + '}'} claims"
    )
    assert f"rewrite {number} of 3 is the first that does:" in message
    changed = [line for line in message.splitlines()[1:] if "Tanh" in line or "Erf" in line]
    assert len(changed) == 2
    assert (
        changed[0].startswith("- ") and "Tanh" in changed[0] and f'scope "{guilty}"' in changed[0]
    )
    assert changed[1].startswith("+ ") and "Erf" in changed[1] and f'scope "{guilty}"' in changed[1]


def test_harmless_rewrites_pass_and_are_counted() -> None:
    after, pipeline = run(TanhToErf("none of them"))
    assert pipeline.reports[0].rewrites == 3
    assert pipeline.reports[0].max_error == 0.0
    assert [n.name for n in after.nodes if n.op == "Tanh"] == ["done"] * 3


# -- claims and tolerances -------------------------------------------------------------------------


@dataclass(frozen=True)
class Shift(Pass):
    """Adds ``by`` to the output."""

    keeps = ROUNDING
    by: float = 0.0

    def run(self, graph: Graph, context: Context) -> None:
        y = graph.outputs[0]
        by = graph.constant(np.asarray(self.by, y.tensor.dtype.numpy), "by")
        graph.set_outputs([graph.emit("Add", [y, by])], graph.output_names)
        context.rewrote()


@dataclass(frozen=True)
class ShiftExactly(Shift):
    keeps = EXACT


def test_rounding_is_allowed_to_those_who_claim_it_and_no_more() -> None:
    _, pipeline = run(Shift(5e-6))
    assert 0 < (pipeline.reports[0].max_error or 0) <= 1e-5
    with pytest.raises(PassFailed, match=r"allowed 1e-05"):
        run(Shift(5e-5))
    with pytest.raises(PassFailed, match=r"allowed 0"):
        run(ShiftExactly(5e-6))


def test_the_allowance_is_as_coarse_as_the_dtype() -> None:
    half = parse(
        "graph main(%x: f16[batch, 4]) -> (y = %y) {\n %y: f16[batch, 4] = Tanh(%x)\n}", TABLE
    )
    feeds = [{"x": np.linspace(-1, 1, 4, dtype=np.float16).reshape(1, 4)}]
    for by, fails in ((1e-3, False), (0.2, True)):
        pipeline = Pipeline([Shift(by)], level="values", feeds=feeds, evaluate=evaluate)
        if fails:
            with pytest.raises(PassFailed, match=r"allowed 0\.0"):
                pipeline.run(half)
        else:
            pipeline.run(half)


# -- sweeps, skips, needs --------------------------------------------------------------------------


@dataclass(frozen=True)
class NeverDone(Pass):
    keeps = LOSSY

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        return graph.emit(node.op, node.inputs, node.attrs) if node.op == "Neg" else None


def test_a_pass_that_never_comes_to_rest_is_stopped() -> None:
    with pytest.raises(PassFailed, match="never-done still changes the graph after 100 sweeps"):
        run(NeverDone(), "none")


def test_skips_are_reported_once_with_their_reasons() -> None:
    @dataclass(frozen=True)
    class TwoSweeps(Pass):
        def visit(self, graph: Graph, node: Node) -> Rewrite:
            if node.op == "Tanh":
                raise Skip(f"it is in {node.scope}")
            if node.op == "Neg" and node.name != "done":
                return graph.emit_node("Neg", node.inputs, node_name="done").output
            return None

    _, pipeline = run(TwoSweeps())
    report = pipeline.reports[0]
    assert report.rewrites == 1
    assert report.skips == [
        Remark("it is in first", layer="Tanh %a (first)"),
        Remark("it is in third", layer="Tanh %c (third)"),
        Remark("it is in last", layer="Tanh %e (last)"),
    ]


@pytest.mark.parametrize("need", ["calibration", "evaluate", "target"])
def test_what_a_pass_needs_is_asked_for_before_anything_runs(need: str) -> None:
    ran = []

    @dataclass(frozen=True)
    class First(Pass):
        def run(self, graph: Graph, context: Context) -> None:
            ran.append(self)

    @dataclass(frozen=True)
    class Needy(Pass):
        needs = frozenset({need})

        def run(self, graph: Graph, context: Context) -> None:
            assert getattr(context, need)

    with pytest.raises(InvalidOption, match=f"needy needs {need}, and none was given"):
        Pipeline([First(), Needy()]).run(graph())
    assert not ran
    given = {"calibration": FEEDS, "evaluate": evaluate, "target": "any"}[need]
    Pipeline([First(), Needy()], **{need: given}).run(graph())  # type: ignore[arg-type]
    assert len(ran) == 1


def test_an_unknown_level_and_values_without_inputs_are_refused() -> None:
    with pytest.raises(InvalidOption, match="no verification level 'all'; there are none, types"):
        Pipeline([], level="all").run(graph())
    with pytest.raises(InvalidOption, match="needs inputs and a way to run"):
        Pipeline([], level="values").run(graph())
    assert LEVELS == ("none", "types", "text", "values")


def test_the_given_graph_is_left_alone_and_weights_are_shared() -> None:
    before = graph()
    text = print_graph(before)
    after = Pipeline([TanhToErf()]).run(before)
    assert print_graph(before) == text
    assert after.constants["w"].encoding is before.constants["w"].encoding


def test_the_report_tells_size_and_time_and_progress_is_called() -> None:
    calls: list[tuple[int, int, str]] = []
    pipeline = Pipeline([TanhToErf("none")], progress=lambda *call: calls.append(call))
    pipeline.run(graph())
    report = pipeline.reports[0]
    assert (report.name, report.nodes, report.weight_bytes) == ("tanh-to-erf{guilty=none}", 5, 64)
    assert report.seconds > 0
    assert report.max_error is None  # Not measured is not zero.
    assert calls == [(0, 1, "tanh-to-erf{guilty=none}"), (1, 1, "done")]


def test_pass_names_are_written_with_hyphens() -> None:
    assert TanhToErf.pass_name() == "tanh-to-erf"

    @dataclass(frozen=True)
    class FuseRMSNorm2(Pass):
        pass

    assert FuseRMSNorm2.pass_name() == "fuse-rms-norm2"


def test_a_pass_without_run_and_visit_says_so() -> None:
    @dataclass(frozen=True)
    class Empty(Pass):
        pass

    with pytest.raises(TypeError, match="Empty defines neither run nor visit"):
        run(Empty(), "none")


# -- erasing ---------------------------------------------------------------------------------------

NESTED = """
graph main(%x: f32[2], %flag: bool[]) -> (y = %x) {
  @c: f32[2] = dense [1.0, 2.0]
  %a: f32[2] = Add(%x, @c)
  %b: f32[2] = Tanh(%a)
  %r: f32[2] = If(%flag) {else_branch = graph else() -> (e = %x) {
  }, then_branch = graph then() -> (t = %s) {
    %s: f32[2] = If(%flag) {else_branch = graph inner_else() -> (f = %b) {
    }, then_branch = graph inner_then() -> (g = %n) {
      %n: f32[2] = Neg(%a)
    }}
  }}
}
"""


def test_erasing_a_node_erases_what_fed_only_it_also_from_its_subgraphs() -> None:
    nested = parse(NESTED, TABLE)
    assert erase_dead([list(nested.nodes)[-1]]) == 5  # two If, Neg, Tanh, Add
    assert len(nested) == 0
    assert not nested.constants
    assert list(nested.inputs[0].uses) == [Use(nested, 0)]


def test_what_is_still_read_is_not_erased() -> None:
    nested = parse(NESTED, TABLE)
    nested.set_outputs([next(iter(nested.nodes)).output], ["y"])
    assert erase_dead([list(nested.nodes)[-1]]) == 4
    assert [n.op for n in nested.nodes] == ["Add"]
    assert weight_bytes(nested) == 8


# -- groups ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Swap(Pass):
    """One op in place of another, the first of them only."""

    keeps = LOSSY
    old: str = "Tanh"
    new: str = "Erf"

    def run(self, graph: Graph, context: Context) -> None:
        for node in graph.nodes:
            if node.op == self.old:
                with graph.at(node):
                    replace_node(node, [graph.emit(self.new, node.inputs)])
                context.rewrote()
                context.skip(next(iter(graph.nodes)), f"{self.old} elsewhere")
                return


def test_a_group_is_repeated_until_nothing_changes_and_has_one_row_a_pass() -> None:
    """Tanh -> Erf -> Neg, one in each round."""
    first, second, idle = Swap(), Swap("Erf", "Neg"), Swap("Sin", "Cos")
    pipeline = Pipeline([Repeat([idle, second, first])])
    after = pipeline.run(graph())
    assert [n.op for n in after.nodes] == ["Neg", "MatMul", "Neg", "Neg", "Neg"]
    told = {report.name: report for report in pipeline.reports}
    assert list(told) == [idle.label, second.label, first.label]
    assert [r.rewrites for r in told.values()] == [0, 3, 3]
    assert [len(r.skips) for r in told.values()] == [0, 1, 2]  # Each reason once for a place.
    assert not any(r.notes for r in told.values())
    assert all(r.nodes == 5 and r.seconds is not None for r in told.values())
    # What has seen the graph as it is does not run again: in the last round, none but the first two.
    assert pipeline.ran == [idle, second, first] * 4 + [idle, second]


def test_a_group_in_a_group_counts_as_one_step_of_it() -> None:
    first, second = Swap(), Swap("Erf", "Neg")
    pipeline = Pipeline([Repeat([Repeat([first]), Repeat([second])]), first])
    pipeline.run(graph())
    assert pipeline.ran == [*[first] * 4, *[second] * 4, first, first]
    assert [r.rewrites for r in pipeline.reports] == [3, 3, 0]


@pytest.mark.parametrize("nested", [False, True])
def test_passes_that_undo_each_other_are_named_and_stopped(nested: bool) -> None:
    there, back = Swap("MatMul", "Gemm"), Swap("Gemm", "MatMul")
    group = Repeat([there, back, Swap("Sin", "Cos")], rounds=5)
    pipeline = Pipeline([Repeat([group, Swap()]) if nested else group])
    pipeline.run(graph())
    told = [(r.name, r.rewrites, r.notes) for r in pipeline.reports if r.notes]
    why = [Remark("it still changes the graph after 5 rounds")]
    assert told == [(there.label, 5, why), (back.label, 5, why)]


def test_a_pass_in_a_group_is_verified_each_time_it_runs() -> None:
    step = TanhToErf()
    pipeline = Pipeline([Repeat([Swap("Neg", "Abs"), step])], "values", FEEDS, evaluate)
    with pytest.raises(PassFailed, match="tanh-to-erf claims to keep values"):
        pipeline.run(graph())


def test_each_pass_of_a_group_is_counted_as_progress_once() -> None:
    calls: list[tuple[int, int, str]] = []
    first, second = Swap(), Swap("Erf", "Neg")
    Pipeline([Repeat([first, second]), first], progress=lambda *call: calls.append(call)).run(
        graph()
    )
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert calls[0] == (0, 3, first.label) and calls[-1] == (3, 3, "done")


# -- remarks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remark", "text"),
    [
        (Remark("nothing to drop"), "nothing to drop"),
        (
            Remark("it pays", layer="fc", method="rank 3 of 8x8", error=0.25, of="the weight"),
            "fc: rank 3 of 8x8, relative error of the weight 0.2500, it pays",
        ),
        (
            Remark(layer="fc", method="alpha 0.5", before=0.5, error=0.25),
            "fc: alpha 0.5, relative error 0.5000 -> 0.2500",
        ),
        (
            Remark(error=0.25, worst=0.5, of="an output"),
            "relative error of an output: mean 0.2500, worst 0.5000",
        ),
        (Remark(method="5 ids", bytes=1_500_000), "5 ids, 1.5 MB of weights less"),
        (Remark("over the budget", bytes=-392), "over the budget, 392 B of weights more"),
        (Decision("import", "its pooler is left out"), "its pooler is left out"),
        (Decision("choose", outcome="kept", candidate="int8 tuned"), "kept int8 tuned"),
        (Decision("choose", "none is faster", "kept", INPUT), "kept the input: none is faster"),
        (Decision("choose", "no kernel", "refused", "int8"), "int8 was not kept: no kernel"),
        (
            Decision("recipe", "only lossless passes changed the graph", "unchanged", "int8"),
            "int8 found nothing to compress: only lossless passes changed the graph",
        ),
        (
            Decision("choose", outcome="slower", candidate="int8", at="n=8", speedup=0.8),
            "int8 is slower than the input at n=8 (0.80x) and was not kept",
        ),
        (
            Decision("choose", outcome="even", candidate="int8", at="n=8", speedup=0.99),
            "int8 is as fast as the input at n=8: 0.99x is within the noise of two equal models",
        ),
        (
            Decision("measure", "it was turned off", "unmeasured"),
            "not measured: it was turned off; whether it is faster is unknown",
        ),
        (
            Decoded("w", "affine(i4, axis=0)", "no kernel", 1200, True),
            "@w, affine(i4, axis=0), is decoded when the model is loaded (1.2 kB): no kernel",
        ),
    ],
)  # fmt: skip
def test_the_text_of_a_record_is_made_of_its_fields(
    remark: Remark | Decision | Decoded, text: str
) -> None:
    assert str(remark) == text


def full_report() -> Report:
    remarks = [Remark("why", layer="fc", error=0.5), Remark(method="5 ids", bytes=7)]
    timing = Timing(2.0, 1.0, 2.0, 1.9, 2.1, 20)
    return Report(
        [PassReport("a", skips=[Remark("x", layer="n", error=float("inf"))], notes=remarks)],
        [Measurement("fp32", BEST, refused="why"), Measurement("fp32", INPUT, "n=8", timing)],
        decisions=[Decision("choose", "", "even", "fp32", "n=8", 0.99)],
        decoded=[Decoded("w", "affine(i4)", "no kernel", 12, False)],
    )


def test_what_was_kept_is_read_from_the_decisions() -> None:
    slower = Decision("choose", outcome="slower", candidate="int8", at="n=8", speedup=0.9)
    kept = Decision("choose", outcome="kept", candidate="fp32 threads=1")
    assert Report(decisions=[slower, kept]).kept == "fp32 threads=1"
    assert Report(decisions=[slower]).kept is None


def test_a_report_is_read_back_as_it_was_saved() -> None:
    report = full_report()
    assert read_plain(Report, report.to_json()) == report


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("passes.0.notes.0.error", "much"),
        ("passes.0.skips.0.layer", None),
        ("measured.0.refused", 3),
        ("measured.1.timing.pairs", 2.5),
        ("decisions.0.outcome", "won"),
        ("decisions.0.speedup", "1"),
        ("decoded.0.loaded", "no"),
    ],
)
def test_a_record_with_a_field_of_another_type_is_refused(place: str, value: object) -> None:
    data = full_report().to_json()
    *outer, last = place.split(".")
    at: Any = data
    for key in outer:
        at = at[int(key) if key.isdigit() else key]
    assert last in at
    at[last] = value
    with pytest.raises(ValueError, match=re.escape(place)):
        read_plain(Report, data)
