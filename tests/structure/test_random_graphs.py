"""Random graphs and units: the cut graph is valid, and if a group is exact, cutting equals zeroing."""

from __future__ import annotations

import differential
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import Case, cases, table_cases
from strategies.profile import scaled

from tersor.ir import Graph, parse, print_graph, verify, weights_of
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.structure import (
    AxisGroup,
    axis_groups,
    merge_vectors,
    slice_graph,
    split_vectors,
    union,
    zero_graph,
)

SLOW_DRAWS = [HealthCheck.too_slow, HealthCheck.data_too_large]
# f64 in another order, and exponents that attention keeps as f32: 1e-6 of the largest number.
TOLERANCE = 1e-6


def check_said(groups: list[AxisGroup]) -> None:
    """Every unit that has to stay has a reason, every axis an owner for each of its positions."""
    for group in groups:
        assert group.name
        assert group.units > 0
        assert set(group.pinned) <= set(range(group.units))
        assert all(reason.strip() for reason in group.pinned.values())
        for (value, axis), owner in group.axes.items():
            dims = value.tensor.dims
            assert dims is not None and dims[axis] == len(owner)
            assert owner.max() < group.units
        owned = {u for owner in group.axes.values() for u in owner.tolist() if u >= 0}
        assert owned == set(range(group.units))


def drawn(group: AxisGroup, seed: int) -> list[int]:
    """Some of the units that may go; one stays."""
    rng = np.random.default_rng(seed)
    most = min(len(group.free), group.units - 1)
    return rng.permutation(group.free)[: rng.integers(0, most + 1)].tolist() if most else []


def cut_and_zeroed(graph: Graph, seed: int, *, exact: bool) -> tuple[Graph, Graph]:
    cut, zeroed = graph.copy(), graph.copy()
    parts = []
    for i, (group, same) in enumerate(zip(axis_groups(cut), axis_groups(zeroed), strict=True)):
        if exact and group.inexact:
            continue
        gone = drawn(group, seed + i)
        parts.append(group.positions(gone))
        if gone and not group.inexact:
            zero_graph(zeroed, same, gone)
    slice_graph(cut, union(*parts))
    return cut, zeroed


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW_DRAWS)
@given(cases(steps=10), st.integers(0, 1000))
def test_cutting_exact_groups_of_layers_equals_zeroing(case: Case, seed: int) -> None:
    graph = case.graph.copy()
    split_vectors(graph)
    check_said(axis_groups(graph))
    cut, zeroed = cut_and_zeroed(graph, seed, exact=True)
    verify(cut)
    assert cut.signature() == graph.signature()
    got, want = evaluate(cut, case.feed), evaluate(zeroed, case.feed)
    for name, array in want.items():
        assert got[name].shape == array.shape
        scale = np.abs(array, dtype=np.float64).max(initial=1.0)
        assert np.allclose(got[name], array, rtol=0, atol=TOLERANCE * scale, equal_nan=True), name


@scaled(100)
@given(table_cases(differential.judge, foreign=True), st.integers(0, 1000))
def test_any_graph_is_valid_after_cutting(case: Case, seed: int) -> None:
    """Over the whole op table, subgraphs and ops that nothing is known of included."""
    graph = case.graph.copy()
    before = print_graph(graph)
    copies = split_vectors(graph)
    verify(graph)
    check_said(axis_groups(graph))
    merge_vectors(graph, copies)
    assert print_graph(graph) == before
    split_vectors(graph)
    cut, _ = cut_and_zeroed(graph, seed, exact=False)
    verify(cut)
    text = print_graph(cut)
    assert print_graph(parse(text, TABLE, weights_of(cut))) == text
    assert cut.signature() == graph.signature()
