"""Every rule has a graph that breaks it, and the message names the stage, the node and the pass."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tersor.errors import PassFailed
from tersor.ir import Graph, parse
from tersor.ops import TABLE
from tersor.pipeline import Context, Pass, legality
from tersor.target import Target


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legality, "HARD", True)


PLAIN = "graph main(%x: f32[2]) -> (y = %y) { %y: f32[2] = Relu(%x) }"


def plain() -> Graph:
    return parse(PLAIN, TABLE)


def broken_use() -> Graph:
    graph = plain()
    graph.inputs[0].uses.clear()
    return graph


def wrong_type() -> Graph:
    graph = plain()
    graph.outputs[0].type = parse(PLAIN.replace("f32[2]", "f32[3]"), TABLE).outputs[0].type
    return graph


ENCODED = """graph main(%x: f32[2]) -> (y = %y) {
  @w: f32[2] = affine(i8[2] [1, -2], scale = f32[] [0.5], zero_point = i8[] [0])
  %y: f32[2] = Add(%x, @w)
}"""
LINEAR = """graph main(%x: f32[2, 2]) -> (y = %y) {
  @w: f32[2, 2] = dense arange
  %y: f32[2, 2] = tersor.Linear(%x, @w)
}"""
BREAKS = {
    "uses are exact": (broken_use, "import", "does not list it"),
    "every ONNX": (lambda: parse(PLAIN.replace("Relu", "Rellu")), "import", "Rellu %y has neither"),
    "types follow": (wrong_type, "import", "is inferred as"),
    "everything is read": (lambda: parse(PLAIN.replace("}", "%z: f32[2] = Neg(%x) }"), TABLE), "optimize", "nothing reads Neg %z"),
    "quantized weights": (
        lambda: parse(
            """graph main() -> (y = %y) {
              @q: i8[2] = dense [1, 2]
              @s: f32[] = dense [0.5]
              %y: f32[2] = DequantizeLinear(@q, @s)
            }""",
            TABLE,
        ),
        "optimize", "DequantizeLinear %y reads constants only",
    ),
    "constants are dense": (lambda: parse(ENCODED, TABLE), "emission", "is affine"),
    "tersor ops": (
        lambda: parse(LINEAR, TABLE),
        "emission", r"tersor\.Linear %y is not lowered",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_every_rule_has_a_graph_that_breaks_it(name: str) -> None:
    make, stage, why = BREAKS[name]
    (rule,) = [r for r in legality.RULES if r.says.startswith(name)]
    assert rule.stages[0] == stage and not list(rule.broken(plain()))
    with pytest.raises(PassFailed, match=f"after {stage}, {name}.*{why}"):
        legality.check(stage, make())
    if stage != "import":
        legality.check(legality.STAGES[legality.STAGES.index(stage) - 1], make())


def test_no_rule_is_untested() -> None:
    untested = {"the text form parses back unchanged"}  # Only a bug of the printer breaks it.
    assert {r.says for r in legality.RULES if not r.says.startswith(tuple(BREAKS))} == untested


@dataclass(frozen=True)
class LeaveSomething(Pass):
    """Adds a node that nothing reads."""

    def run(self, graph: Graph, context: Context) -> None:
        graph.emit("Neg", [graph.inputs[0]], name="left")


@dataclass(frozen=True)
class DoNothing(Pass):
    """Nothing."""

    def run(self, graph: Graph, context: Context) -> None:
        pass


def test_the_pass_that_did_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [DoNothing(), LeaveSomething(), DoNothing()]
    *_, (_, after) = legality.replay(steps, plain())
    with pytest.raises(PassFailed, match=r"nothing reads Neg %left .*: broken by leave-something"):
        legality.check("optimize", after, lambda: legality.replay(steps, plain()))
    monkeypatch.setattr(legality, "HARD", False)
    legality.check("optimize", after)  # A hard rule: not checked outside tests.


def test_what_tvm_lowers_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.backends.tvm.build import lower_for
    from tersor.backends.tvm.options import Choice

    stages: list[str] = []
    monkeypatch.setattr(legality, "check", lambda stage, graph: stages.append(stage))
    lower_for(plain(), Choice.of(Target.host()))
    assert stages == ["fusion"]
