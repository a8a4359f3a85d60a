"""Random graphs over the whole op table through every lossless pass, judged by ONNX Runtime.

200 graphs by default; ``pytest --hypothesis-profile=long tests/passes/test_differential.py`` runs 10,000.
"""

from __future__ import annotations

from dataclasses import dataclass

import differential
import numpy as np
import pytest
from differential import LowerOptions, Unjudged
from hypothesis import assume, event, given
from strategies import Case, table_cases
from strategies.profile import scaled

from tersor.backends.ort.lower import lower
from tersor.ir import Graph, Node, parse, print_graph, verify
from tersor.ops import TABLE
from tersor.passes.canonicalize.dead_code import DeadCode
from tersor.passes.fuse.merge_linears import MergeLinears
from tersor.pipeline import EXACT, Pass, Pipeline, Rewrite, passes_in
from tersor.pipeline.registry import optimization

LOSSLESS: list[Pass] = [*passes_in(optimization()), MergeLinears()]
DEFAULT = LowerOptions()


def wanted_of(case: Case) -> list[differential.Expected]:
    try:
        return differential.expected(case)
    except Unjudged as reason:
        event(f"not judged: {reason}")
        assume(False)
        raise


@pytest.mark.slow
@scaled(200)
@given(table_cases(differential.judge))
def test_lossless_passes_keep_what_any_graph_computes(case: Case) -> None:
    wanted = wanted_of(case)
    before, interface = print_graph(case.graph), differential.interface(case.graph)
    for step in LOSSLESS:
        # Verified once and not in the pipeline too: most passes find nothing, and inference is slow.
        pipeline = Pipeline([step], level="none")
        after = pipeline.run(case.graph)
        if pipeline.reports[0].rewrites:
            verify(after)
            wrong = differential.complaint(wanted, after)
            assert not wrong, differential.guilty(case, wanted, [step])
    pipeline = Pipeline(optimization(), level="none")
    after = pipeline.run(case.graph)
    verify(after)
    assert print_graph(case.graph) == before, "the input graph has changed"
    assert differential.interface(after) == interface
    wrong = differential.complaint(wanted, after)
    assert not wrong, f"{wrong}; {differential.guilty(case, wanted, pipeline.ran)}"
    if differential.is_lowered_otherwise(after, DEFAULT):
        wrong = differential.complaint(wanted, after, DEFAULT)
        assert not wrong, f"lowered by default: {wrong}\n{print_graph(after)}"
    differential.check_round_trip(case.graph)


@pytest.mark.slow
@scaled(100)
@given(table_cases(foreign=True))
def test_what_nothing_is_known_of_passes_through(case: Case) -> None:
    """Ops of a foreign domain, and what reads their results, whose types are not known."""
    for step in LOSSLESS:
        verify(Pipeline([step], level="none").run(case.graph))
    after = Pipeline(optimization(), level="none").run(case.graph)
    verify(after)
    assert differential.interface(after) == differential.interface(case.graph)
    differential.check_round_trip(lower(after, differential.PORTABLE))
    differential.check_round_trip(case.graph)


@dataclass(frozen=True)
class Wrong(Pass):
    """Takes every second Neg for an Identity."""

    keeps = EXACT

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op != "Neg" or node.inputs[0] is None or node.inputs[0].producer is None:
            return None
        return node.inputs[0]


def test_a_pass_that_changes_outputs_is_named_with_its_rewrite() -> None:
    graph = parse(
        """
        graph main(%x: f32[batch, 2]) -> (y = %c) {
          %a: f32[batch, 2] = Neg(%x)
          %b: f32[batch, 2] = Relu(%a)
          %c: f32[batch, 2] = Neg(%b)
        }
        """,
        TABLE,
    )
    case = Case(graph, [{"x": np.array([[1.0, -2.0]], np.float32)}])
    wanted = differential.expected(case)
    passes: list[Pass] = [DeadCode(), Wrong(), DeadCode()]
    after = Pipeline(passes).run(graph)
    assert differential.complaint(wanted, after) == "output y differs by 4 (allowed 2.38e-05)"
    told = differential.guilty(case, wanted, passes)
    assert told.startswith("pass 1, wrong: output y differs by 4")
    assert "rewrite 1 of 1 is the first that does:\n- %c: f32[batch, 2] = Neg(%b)" in told
