"""Substituting sizes for symbolic dims in a copy of a graph."""

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


def test_dims_and_contents_become_numbers_in_subgraphs_too() -> None:
    graph = ir(BODY.format(batch="batch", length="2*half"))
    before = print_graph(graph)
    specialized = specialize(graph, {"batch": 3, "half": 5})
    verify(specialized)
    assert print_graph(specialized) == print_graph(ir(BODY.format(batch=3, length=10)))
    shape = next(specialized.nodes).output
    assert shape.contents is not None and list(shape.contents) == [3, 10, 4]
    assert print_graph(graph) == before


def test_symbols_without_a_size_stay() -> None:
    specialized = specialize(ir(BODY.format(batch="batch", length="length")), {"length": 7})
    assert print_graph(specialized) == print_graph(ir(BODY.format(batch="batch", length=7)))


def test_unknown_dims_are_inferred_from_sizes() -> None:
    text = """graph g(%x: f32[n, 4], %y: f32[m, 4]) -> (z = %z) {{
      %z: f32[{dim}, 4] = Add(%x, %y)
    }}"""
    graph = ir(text.format(dim="?"))
    assert graph.outputs[0].tensor.dims != (3, 4)
    specialized = specialize(graph, {"n": 1, "m": 3})
    assert specialized.outputs[0].tensor.dims == (3, 4)


def test_sizes_that_an_op_rejects_raise() -> None:
    graph = ir("graph g(%x: f32[n], %y: f32[m]) -> (z = %z) { %z: f32[?] = Add(%x, %y) }")
    with pytest.raises(InvalidGraph, match=r"Add"):
        specialize(graph, {"n": 2, "m": 3})


@pytest.mark.parametrize("dims", [by_size, each_its_own])
def test_equals_the_graph_built_with_these_sizes(dims: Dims) -> None:
    """For every sample of the op table; the name of each symbol ends in its size."""
    compared = 0
    for case in cases():
        try:
            graph = one_node(case.row.op, case.sample, dims)
        except InvalidGraph:
            continue  # It takes operands of known sizes only.
        sizes = {name: int(name.rpartition("_")[2].lstrip("n")) for name in dim_names(graph)}
        specialized, wanted = specialize(graph, sizes), one_node(case.row.op, case.sample, static)
        assert print_graph(specialized) == print_graph(wanted), case.name
        for a, b in zip(specialized.outputs, wanted.outputs, strict=True):
            assert isinstance(a.type, TensorType)
            assert str(a.contents) == str(b.contents), case.name
        compared += bool(sizes)
    assert compared > 400
