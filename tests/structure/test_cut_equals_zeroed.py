"""Cutting some units of every group equals zeroing them: every architecture and workload, from torch and from
ONNX files, at several sizes of the symbolic dims."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import ARCHITECTURES, batch, exported, traced
from cutting import chosen, cut_all, difference, prepared

from tersor.analysis.feeds import dim_names, make_feed
from tersor.backends import ort
from tersor.frontends import load_model
from tersor.ir import Graph
from tersor.models import zoo
from tersor.pipeline import registry
from tersor.structure import axis_groups, zero_graph
from tersor.target import Target

# Sums of some hundred float32 terms, of which those that are zero are left out: what is left is added in
# another order where kernels take several terms at once, a last digit (1e-7) in each of a few layers.
TOLERANCE = 1e-5
# What the cut must change at least, so that the comparison says something.
CHANGED = 100 * TOLERANCE
# Polynomials in place of the C library's functions, and sums in another order: see test_workloads_tvm.
ON_TVM = 2e-4
SHARES = (0.25, 0.5)
ROWS = ((2, 7), (5, 11))  # The example has 3 rows of 13.
# Quick to trace; all others, and all files, take some seconds each.
QUICK = ("bert", "gpt2", "llama", "lstm", "resnet", "grouped", "branches")

Feed = dict[str, np.ndarray]
Run = Callable[[Graph, Feed], dict[str, np.ndarray]]


def names() -> list[str]:
    return [*ARCHITECTURES, *zoo.names()]


def sources(name: str) -> list[str]:
    return ["torch", "onnx"] if name not in ARCHITECTURES or ARCHITECTURES[name].onnx else ["torch"]


CASES = [
    pytest.param(
        name, source, marks=[] if name in QUICK and source == "torch" else [pytest.mark.slow]
    )
    for name in names()
    for source in sources(name)
]


@cache
def module(name: str) -> Any:
    return ARCHITECTURES[name].build("sdpa") if name in ARCHITECTURES else zoo.find(name).module()


@cache
def graph_of(name: str, source: str, folder: Path) -> Graph:
    path = folder / f"{name}.onnx"
    if name in ARCHITECTURES:
        case = ARCHITECTURES[name]
        if source == "torch":
            return prepared(traced(case, module(name)))
        return prepared(load_model(exported(case, module(name), path)).graph)
    workload = zoo.find(name)
    if source == "torch":
        return prepared(load_model(module(name), **workload.torch_arguments()).graph)
    return prepared(load_model(workload.export_onnx(path, module(name))).graph)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


def feeds(name: str, graph: Graph) -> list[Feed]:
    """At two sizes of the open dims, neither the example's."""
    if name in ARCHITECTURES:
        return [batch(ARCHITECTURES[name], *size) for size in ROWS]
    dims = dim_names(graph)
    sizes = [{dim: first + 5 * i for i, dim in enumerate(dims)} for first in (2, 5)]
    feeds = [make_feed(graph, at, seed=i) for i, at in enumerate(sizes)]
    example = zoo.find(name).example_inputs()
    assert all(any(f[k].shape != tuple(v.shape) for k, v in example.items()) for f in feeds)
    return feeds


def on_onnx_runtime(graph: Graph, name: str) -> list[dict[str, np.ndarray]]:
    session = ort.open_session(ort.build(graph))
    return [session.run(feed) for feed in feeds(name, graph)]


@pytest.mark.sample(3)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("name", "source"), CASES)
def test_cutting_exact_groups_equals_zeroing_and_inexact_ones_run(
    name: str, source: str, share: float, folder: Path
) -> None:
    graph = graph_of(name, source, folder)
    exact, others = (cut_all(graph, share, exact=exact) for exact in (True, False))
    assert exact.groups >= 2
    for cuts in (exact, others):
        assert cuts.cut.signature() == graph.signature()
        assert (parameters(cuts.cut) < parameters(graph)) is (cuts.groups > 0)
    whole, cut, zeroed, rest = (
        on_onnx_runtime(g, name) for g in (graph, exact.cut, exact.zeroed, others.cut)
    )
    for before, got, want in zip(whole, cut, zeroed, strict=True):
        assert difference(want, got) < TOLERANCE
        assert difference(before, got) > CHANGED
    assert all(np.isfinite(array).all() for got in rest for array in got.values())


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize("name", names())
def test_cut_groups_agree_on_tvm_and_onnx_runtime(name: str, folder: Path) -> None:
    pytest.importorskip("tvm", reason="the tvm backend is not installed")
    tvm = registry.backend("tvm")
    cut = cut_all(graph_of(name, "torch", folder), 0.5, exact=True).cut
    choice = tvm.Choice.of(Target.host())
    session = tvm.open_session(tvm.build(cut, choice), choice)
    for feed, want in zip(feeds(name, cut), on_onnx_runtime(cut, name), strict=True):
        assert difference(want, session.run(feed)) < ON_TVM


def parameters(graph: Graph) -> int:
    return sum(v.tensor.numel for v in graph.constants.values())  # type: ignore[misc]


def test_zeroing_other_units_differs(folder: Path) -> None:
    """What is compared with is no graph in which anything is zero."""
    graph = graph_of("bert", "torch", folder)
    cuts = cut_all(graph, 0.5, exact=True)
    others, rng = graph.copy(), np.random.default_rng(1)
    for group in axis_groups(others):
        if group.free and not group.inexact:
            zero_graph(others, group, chosen(group, 0.5, rng))
    cut, zeroed = (on_onnx_runtime(g, "bert") for g in (cuts.cut, others))
    assert all(difference(a, b) > CHANGED for a, b in zip(cut, zeroed, strict=True))


@pytest.mark.parametrize("source", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_cut_bert_keeps_batch_and_length_symbolic(source: str, folder: Path) -> None:
    cut = cut_all(graph_of("bert", source, folder), 0.5, exact=True).cut
    assert [str(v.type) for v in cut.inputs] == ["i64[batch, length]"] * 2
    assert [str(v.type) for v in cut.outputs] == ["f32[batch, length, 32]"]
    session = ort.open_session(ort.build(cut))
    for rows, length in ((1, 3), (4, 32)):
        (got,) = session.run(batch(ARCHITECTURES["bert"], rows, length)).values()
        assert got.shape == (rows, length, 32)
