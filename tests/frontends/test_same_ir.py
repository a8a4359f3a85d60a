"""A model gives the same graph from torch and from the ONNX file that torch exports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.frontends.onnx.importer import import_model
from tersor.frontends.torch import import_module
from tersor.ir import Encoding, Graph, Value
from tersor.models.minilm import build
from tersor.passes import optimization
from tersor.pipeline import Pipeline


def canonical(graph: Graph) -> list[str]:
    """The graph's lines with values by number and constants by content: what is left of it when names
    and the order of constants are taken away."""
    names: dict[Value, str] = {}

    def name(value: Value | None) -> str:
        if value is None:
            return "_"
        if value.encoding is not None:
            return f"@{value.type} {value.encoding.digest}"
        return names[value]

    lines = []
    for value in graph.inputs:
        names[value] = value.name
        lines.append(f"input {value!r}")
    for node in graph.nodes:
        for output in node.outputs:
            names[output] = f"%{len(names)}"
        attrs = {
            k: v.digest if isinstance(v, Encoding) else v for k, v in sorted(node.attrs.items())
        }
        results = ", ".join(f"{names[v]}: {v.type}" for v in node.outputs)
        lines.append(
            f"{results} = {node.op}({', '.join(map(name, node.inputs))}) {attrs} {node.scope}"
        )
    outputs = zip(graph.output_names, graph.outputs, strict=True)
    return [*lines, *(f"output {n} = {name(v)}" for n, v in outputs)]


def optimized(graph: Graph) -> list[str]:
    return canonical(Pipeline(optimization()).run(graph))


@pytest.mark.slow
def test_minilm_gives_the_same_graph_from_torch_and_from_onnx(tmp_path: Path) -> None:
    from_torch = import_module(
        build.build(),
        build.example_inputs(),
        dynamic_shapes=build.DYNAMIC_SHAPES,
        output_names=[build.OUTPUT],
    )
    from_file = import_model(build.export_onnx(tmp_path / "minilm.onnx"))
    assert optimized(from_torch) == optimized(from_file)
