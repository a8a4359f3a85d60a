"""Copies of graphs whose open dims are given sizes."""

from __future__ import annotations

import pytest
from contract import by_size, each_its_own, static

from tersor.analysis.feeds import dim_names
from tersor.errors import InvalidGraph
from tersor.ir import Graph, TensorType, parse, print_graph, verify
from tersor.ir.copy import specialize
from tersor.ops import TABLE
from tersor.ops.samples import Dims, cases, one_node


def ir(text: str) -> Graph:
    return parse(text, TABLE)


BODY = """graph g(%x: f32[{batch}, {length}, 4], %c: bool[]) -> (y = %y, n = %n) {{
  %n: i64[3] = Shape(%x)
  %y: f32[{batch}, {length}, 4] = If(%c) {{
    then_branch = graph then() -> (t = %t) {{
      %t: f32[{batch}, {length}, 4] = Neg(%x)
    }},
    else_branch = graph else() -> (e = %e) {{
      %e: f32[{batch}, {length}, 4] = Relu(%x)
    }}
  }}
}}"""


def test_dims_and_contents_become_numbers_in_bodies_too() -> None:
    graph = ir(BODY.format(batch="batch", length="2*half"))
    before = print_graph(graph)
    made = specialize(graph, {"batch": 3, "half": 5})
    verify(made)
    assert print_graph(made) == print_graph(ir(BODY.format(batch=3, length=10)))
    shape = next(made.nodes).output
    assert shape.contents is not None and list(shape.contents) == [3, 10, 4]
    assert print_graph(graph) == before


def test_dims_without_a_size_stay() -> None:
    made = specialize(ir(BODY.format(batch="batch", length="length")), {"length": 7})
    assert print_graph(made) == print_graph(ir(BODY.format(batch="batch", length=7)))


def test_what_was_unknown_follows_from_sizes() -> None:
    text = """graph g(%x: f32[n, 4], %y: f32[m, 4]) -> (z = %z) {{
      %z: f32[{dim}, 4] = Add(%x, %y)
    }}"""
    graph = ir(text.format(dim="?"))
    assert graph.outputs[0].tensor.dims != (3, 4)
    made = specialize(graph, {"n": 1, "m": 3})
    assert made.outputs[0].tensor.dims == (3, 4)


def test_sizes_that_an_op_refuses_are_told() -> None:
    graph = ir("graph g(%x: f32[n], %y: f32[m]) -> (z = %z) { %z: f32[?] = Add(%x, %y) }")
    with pytest.raises(InvalidGraph, match=r"Add"):
        specialize(graph, {"n": 2, "m": 3})


@pytest.mark.parametrize("dims", [by_size, each_its_own])
def test_it_is_the_graph_that_has_these_sizes_from_the_start(dims: Dims) -> None:
    """For every sample of the op table: sizes end the names of its symbols."""
    compared = 0
    for case in cases():
        try:
            graph = one_node(case.row.op, case.sample, dims)
        except InvalidGraph:
            continue  # It takes operands of known sizes only.
        sizes = {name: int(name.rpartition("_")[2].lstrip("n")) for name in dim_names(graph)}
        made, wanted = specialize(graph, sizes), one_node(case.row.op, case.sample, static)
        assert print_graph(made) == print_graph(wanted), case.name
        for a, b in zip(made.outputs, wanted.outputs, strict=True):
            assert isinstance(a.type, TensorType)
            assert str(a.contents) == str(b.contents), case.name
        compared += bool(sizes)
    assert compared > 400
