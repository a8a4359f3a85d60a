"""Names are untrusted text: they are preserved in models, and printed harmlessly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hostile.table import saved, text
from onnx import ModelProto, helper, numpy_helper
from typer.testing import CliRunner

import tersor
from tersor.cli.main import app
from tersor.frontends.onnx import import_model
from tersor.ir.text import parse, print_graph, weights_of

NAMES = {
    "an escape that clears the screen": "\x1b[2J\x1b[31mred",
    "a title of the terminal": "\x1b]0;title\x07",
    "rich markup": "[/red][link=http://x]y[/link]",
    "a script": "<script>alert(1)</script>",
    "lines": "a\r\nerror: b\n\tc",
    "a null byte": "a\0b",
    "quotes and backslashes": '"\'\\ \\" `$(id)`',
    "text turned around": "\u202egpj.exe\u2066",
    "nothing to see": "\u200b\u00ad\ufeff",
    "a path": "../../etc/passwd",
    "the text form": "%x: f32[2] = Relu(%y) {",
    "a format": "%s{0}{path}%(x)s",
    "wide": "模型\U0001f600",
    "long": "n" * 1_000_000,
}


def named(name: str) -> ModelProto:
    """A model that has ``name`` wherever a name can be."""
    model = text("(float[B, 4] x) => (float[B, 4] y) { y = MatMul (x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    relu = helper.make_node("Relu", ["y"], [f"{name}2"], name=f"/{name}/{name}")
    relu.metadata_props.add(key="namespace", value=name)
    model.graph.node[0].name = name
    model.graph.node.append(relu)
    model.graph.name = model.producer_name = model.doc_string = name
    model.metadata_props.add(key=name, value=name)
    graph = model.graph
    for item in (graph.input[0], graph.output[0], graph.initializer[0]):
        item.name = f"{item.name}{name}"
    matmul, relu = graph.node
    matmul.input[:] = [graph.input[0].name, graph.initializer[0].name]
    matmul.output[0] = relu.input[0] = f"{name}1"
    relu.output[0] = graph.output[0].name
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
    graph.output[0].type.tensor_type.shape.dim[0].dim_param = name
    return model


@pytest.mark.parametrize("case", NAMES)
def test_the_text_form_reads_back(case: str) -> None:
    graph = import_model(named(NAMES[case]))
    printed = print_graph(graph)
    assert all(line.isprintable() for line in printed.splitlines())
    assert print_graph(parse(printed, graph.table, weights_of(graph))) == printed


@pytest.mark.parametrize("case", NAMES)
def test_the_interface_keeps_its_names(case: str) -> None:
    model = named(NAMES[case])
    converted = tersor.convert(model).model
    assert isinstance(converted, bytes)
    exported = onnx.load_from_string(converted).graph
    assert [i.name for i in exported.input] == [model.graph.input[0].name]
    assert [o.name for o in exported.output] == [model.graph.output[0].name]


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("command", ["inspect {path}", "convert {path} {out} --skips"])
def test_commands_print_them_harmlessly(case: str, command: str, tmp_path: Path) -> None:
    path = saved(tmp_path, named(NAMES[case]))
    words = command.format(path=path, out=tmp_path / "out.onnx").split()
    result = CliRunner().invoke(app, words, prog_name="tersor", catch_exceptions=False)
    assert result.exit_code == 0
    output = result.stdout + result.stderr
    assert all(line.isprintable() for line in output.split("\n"))
    # A name may be in several cells of a table, wrapped; a long one is abbreviated.
    assert len(output) < 100_000


@pytest.mark.parametrize("case", NAMES)
def test_errors_print_them_harmlessly(case: str, tmp_path: Path) -> None:
    model = named(NAMES[case])
    model.graph.node[1].input[0] = f"{NAMES[case]}gone"
    path = saved(tmp_path, model)
    words = ["convert", str(path), str(tmp_path / "out.onnx")]
    result = CliRunner().invoke(app, words, prog_name="tersor", catch_exceptions=False)
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (1, "")
    assert line.startswith(f"error: {path}: Relu %") and line.isprintable() and len(line) < 2000
    assert not (tmp_path / "out.onnx").exists()
