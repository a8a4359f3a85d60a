"""Work grows as the graph does. Counted in calls, of Python and of C, so that it is the same each time
and on each machine; ``benchmarks/scaling.py`` tells what they take."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import pytest
from large import KINDS

from tersor.analysis.summary import summarize
from tersor.backends.ort.lower import lower
from tersor.frontends.onnx import export_model, import_model
from tersor.ir import Graph, Node, TensorType, Value, parse, print_graph, verify, weights_of
from tersor.ir.types import DType
from tersor.ops import TABLE
from tersor.passes import optimization
from tersor.pipeline import EXACT, Pass, Pipeline, Rewrite
from tersor.structure import axis_groups

SIZE = 250
# Twice as much is 2; what is sorted, and what is paid once a rank of a tree, adds a little.
ALLOWED = 2.3
# Below this, what is paid once for each graph hides how the rest grows.
WORTH_COUNTING = 2000


def calls(work: Callable[[], object]) -> int:
    """How many calls ``work`` makes."""
    count = 0

    def hook(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(hook)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def stages(data: bytes) -> dict[str, int]:
    """Calls that each thing done to a model takes."""
    graph = import_model(data)
    optimized = Pipeline(optimization()).run(graph)
    lowered = lower(optimized)
    text, weights = print_graph(graph), weights_of(graph)
    return {
        "import": calls(lambda: import_model(data)),
        "optimize": calls(lambda: Pipeline(optimization()).run(graph)),
        "lower": calls(lambda: lower(optimized)),
        "export": calls(lambda: export_model(lowered)),
        "print": calls(lambda: print_graph(graph)),
        "parse": calls(lambda: parse(text, TABLE, weights)),
        "copy": calls(graph.copy),
        "verify": calls(lambda: verify(graph)),
        "summarize": calls(lambda: summarize(graph)),
        "axis groups": calls(lambda: axis_groups(optimized)),
    }


@pytest.mark.slow
@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_graph_is_twice_the_work(kind: str) -> None:
    once, twice = (stages(KINDS[kind](size).SerializeToString()) for size in (SIZE, 2 * SIZE))
    grown = {
        stage: round(twice[stage] / once[stage], 2)
        for stage in once
        if twice[stage] > WORTH_COUNTING
    }
    assert {stage: ratio for stage, ratio in grown.items() if ratio > ALLOWED} == {}


def test_the_count_tells_a_loop_in_a_loop() -> None:
    def pairs(size: int) -> int:
        return calls(lambda: [len((i, j)) for i in range(size) for j in range(i)])

    assert pairs(200) / pairs(100) > 3.9


@dataclass(frozen=True)
class LastFirst(Pass):
    """Relu -> Tanh, where no Relu reads it: each makes way for the one before it."""

    keeps = EXACT

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op != "Relu" or any(user.op == "Relu" for user in node.output.users):
            return None
        return graph.emit("Tanh", node.inputs)


def chain(length: int) -> Graph:
    graph = TABLE.graph()
    x: Value = graph.add_input("x", TensorType(DType.F32, (4,)))
    for _ in range(length):
        x = graph.emit("Relu", [x])
    graph.set_outputs([x], ["y"])
    return graph


def test_a_rule_may_work_its_way_back_through_a_chain_of_any_length() -> None:
    after = Pipeline([LastFirst()]).run(chain(1000))
    assert {node.op for node in after.nodes} == {"Tanh"}


def test_a_rule_that_works_its_way_back_takes_twice_the_work_for_twice_the_chain() -> None:
    once, twice = (chain(size) for size in (300, 600))
    counts = [calls(lambda g=g: Pipeline([LastFirst()]).run(g)) for g in (once, twice)]
    assert counts[1] <= ALLOWED * counts[0]


def test_each_of_many_operands_may_be_replaced_in_turn() -> None:
    graph = TABLE.graph()
    x = graph.add_input("x", TensorType(DType.F32, (4,)))
    y = graph.emit("Sum", [graph.emit("Identity", [x]) for _ in range(20)])
    node = y.producer
    assert node is not None
    operands = node.inputs
    for i in range(20):
        graph.set_input(node, i, x)
    assert node.inputs is operands and all(v is x for v in operands)
    assert len(x.uses) == 40
