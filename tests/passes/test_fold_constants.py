"""Folding gives what the model would have computed: ONNX Runtime's numbers, whatever other
implementations of an op make of its corners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort
import pytest

from tersor.backends.ort import Evaluator
from tersor.errors import InvalidOption
from tersor.frontends.onnx import export_model
from tersor.ir import Graph, parse
from tersor.ops import TABLE
from tersor.passes.canonicalize.fold_constants import FoldConstants
from tersor.pipeline import Pipeline

# Each of these came out otherwise from ONNX's reference implementation.
CORNERS = {
    "underflow": """@x: f32[1, 2] = dense [200.0, -200.0]
        %y: f32[1, 2] = LogSoftmax(@x)""",
    "negative norms": """@x: f32[3, 1] = dense [3.0, -1.0, 2.0]
        %y: f32[3, 1] = LpNormalization(@x) {axis = 0, p = 1}""",
    "saturation": """@x: f32[3] = dense [1e20, -1e20, 300.0]
        @s: f32[] = dense [0.5]
        @z: u8[] = dense [3]
        %y: u8[3] = QuantizeLinear(@x, @s, @z)""",
    "a range of nothing": """@x: f32[2, 2] = dense [0.0, 0.0, 0.0, 0.0]
        %q: u8[2, 2], %y: f32[], %z: u8[] = DynamicQuantizeLinear(@x)""",
    "corners": """@x: f32[1, 1, 4, 5] = dense normal(1)
        @s: f32[4] = dense [1.0, 1.0, 0.7, 1.6]
        %y: f32[1, 1, 2, 8] = Resize(@x, _, @s) {coordinate_transformation_mode = "align_corners", mode = "linear"}""",
    "no bounds": """@x: f32[3] = dense [inf, -inf, nan]
        %y: f32[3] = Clip(@x)""",
    "bounds of nan": """@x: f32[3] = dense [inf, 0.5, -2.0]
        @low: f32[] = dense [nan]
        @high: f32[] = dense [1.0]
        %y: f32[3] = Clip(@x, @low, @high)""",
    "texts": """@x: f32[3] = dense [nan, inf, 0.1]
        %y: string[3] = Cast(@x) {to = 8}""",
    "a mean of nothing": """@x: f32[2, 0] = dense []
        @a: i64[1] = dense [1]
        %y: f32[2, 1] = ReduceMean(@x, @a)""",
    "numbers beyond": """@x: f32[3] = dense [3e9, nan, -129.0]
        %y: i32[3] = Cast(@x) {to = 6}""",
}


def ir(lines: str) -> Graph:
    return parse(f"graph main() -> (y = %y) {{\n{lines}\n}}", TABLE)


def plain(graph: Graph) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = export_model(graph).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {})[0])


@dataclass
class Counted:
    """Runs graphs, and remembers of each how many nodes it had; refuses some ops."""

    refused: tuple[str, ...] = ()
    runs: list[int] = field(default_factory=list)
    evaluate: Evaluator = field(default_factory=Evaluator)

    def __call__(self, graph: Graph, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        ops = [node.op for node in graph.nodes]
        self.runs.append(len(ops))
        if set(ops) & set(self.refused):
            raise InvalidOption("not this one")
        return self.evaluate(graph, inputs)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


@pytest.mark.parametrize("lines", CORNERS.values(), ids=CORNERS)
def test_corners_are_those_of_the_runtime(lines: str) -> None:
    graph = ir(lines)
    folded = Pipeline([FoldConstants()], evaluate=Evaluator()).run(graph)
    assert ops(folded) == []
    got, wanted = folded.outputs[0].numpy(), plain(graph)
    assert got.dtype == wanted.dtype
    assert got.tolist() == wanted.tolist() or np.array_equal(got, wanted, equal_nan=True)


@pytest.mark.parametrize("lines", CORNERS.values(), ids=CORNERS)
def test_without_a_runtime_they_stay(lines: str) -> None:
    graph = ir(lines)
    assert ops(Pipeline([FoldConstants()]).run(graph)) == ops(graph)


CHAIN = """@x: f32[2, 2] = dense [1.0, 2.0, 3.0, 4.0]
  @d: f32[2] = dense [0.5, 0.25]
  %a: f32[2, 2] = Exp(@x)
  %t: f32[2, 2] = Transpose(%a)
  %b: f32[2, 2] = Mul(%t, @d)
  %c: f32[2, 2] = Tan(@x)
  %e: f32[2, 2] = Sin(%c)
  %y: f32[2, 2] = Sub(%b, %e)"""


def test_all_of_a_graph_is_computed_in_one_run() -> None:
    evaluate = Counted()
    pipeline = Pipeline([FoldConstants()], evaluate=evaluate)
    folded = pipeline.run(ir(CHAIN))
    assert (ops(folded), evaluate.runs) == ([], [6])
    assert (folded.outputs[0].numpy() == plain(ir(CHAIN))).all()
    assert pipeline.reports[0].rewrites == 6


def test_what_the_runtime_refuses_stays_and_the_rest_is_computed() -> None:
    folded = Pipeline([FoldConstants()], evaluate=Counted(("Tan",))).run(ir(CHAIN))
    assert ops(folded) == ["Tan", "Sin", "Sub"]
    assert (plain(folded) == plain(ir(CHAIN))).all()


def test_nothing_is_run_where_numpy_is_exact() -> None:
    evaluate = Counted()
    lines = """@x: f32[2, 3] = dense [1.0, 2.0, 3.0, 4.0, 5.0, nan]
      @i: i64[2] = dense [7, -7]
      @j: i64[2] = dense [2, 2]
      %t: f32[3, 2] = Transpose(@x)
      %u: f32[3, 2] = Add(%t, %t)
      %q: i64[2] = Div(@i, @j)
      %f: f32[2] = Cast(%q) {to = 1}
      %y: f32[3, 2] = Mul(%u, %f)"""
    folded = Pipeline([FoldConstants()], evaluate=evaluate).run(ir(lines))
    assert (ops(folded), evaluate.runs) == ([], [])
    np.testing.assert_array_equal(folded.outputs[0].numpy(), plain(ir(lines)))


@pytest.mark.parametrize("divisor", ["[0]", "[-1]"])
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_quotients_that_processors_trap_on_are_never_computed(op: str, divisor: str) -> None:
    evaluate = Counted()
    lines = f"""@x: i32[1] = dense [-2147483648]
      @d: i32[1] = dense {divisor}
      %y: i32[1] = {op}(@x, @d)"""
    folded = Pipeline([FoldConstants()], evaluate=evaluate).run(ir(lines))
    assert (ops(folded), evaluate.runs) == ([op], [])


def test_branches_that_read_folded_values_read_constants() -> None:
    text = """graph main(%p: bool[]) -> (y = %y) {
      @x: f32[2] = dense [1.0, 2.0]
      %a: f32[2] = Exp(@x)
      %y: f32[2] = If(%p) {else_branch = graph e() -> (b = %b) {
        %b: f32[2] = Cos(%a)
      }, then_branch = graph t() -> (c = %a) {
      }}
    }"""
    folded = Pipeline([FoldConstants()], evaluate=Evaluator()).run(parse(text, TABLE))
    assert ops(folded) == ["If"]
    assert [len(sub) for sub in next(folded.nodes).subgraphs] == [0, 0]
    for p, wanted in ((True, np.exp([1, 2])), (False, np.cos(np.exp([1, 2])))):
        got = Evaluator()(folded, {"p": np.array(p)})["y"]
        np.testing.assert_allclose(got, wanted, rtol=1e-6)  # float32 against float64.
