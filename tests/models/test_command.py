"""``python -m tersor.models``: lists, exports and tells metrics; errors are one line and write nothing."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

from tersor.models import zoo
from tersor.models.__main__ import app


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_list_shows_every_workload_and_what_it_is() -> None:
    lines = run("list").stdout.splitlines()
    assert lines[::2] == zoo.names()
    assert all(line.strip() for line in lines[1::2])


@pytest.mark.slow
def test_an_exported_file_reaches_the_metric_of_the_module(tmp_path: Path) -> None:
    path = tmp_path / "gru.onnx"
    assert run("export", "gru_classifier", str(path)).exit_code == 0
    assert list(tmp_path.iterdir()) == [path]
    onnx.checker.check_model(path)
    told = [run("metric", "gru_classifier", *file).stdout.split() for file in ((), (str(path),))]
    for (name, _), (key, value) in zip(
        zoo.find("gru_classifier").floor.items(),
        zip(told[0][::2], told[0][1::2], strict=True),
        strict=True,
    ):
        assert key == name
        assert 0 < float(value) < 1
    # Float32 in another order of summing: of some hundred words, one may turn.
    assert told[1][::2] == told[0][::2]
    assert [float(v) for v in told[1][1::2]] == pytest.approx(
        [float(v) for v in told[0][1::2]], abs=0.003
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("metric bert_tyni", "no workload 'bert_tyni', did you mean 'bert_tiny'?"),
        ("export bert_tiny out.pt", "cannot write out.pt: the path must end in .onnx"),
        ("export bert_tiny nowhere/out.onnx", "does not exist; create it first"),
        ("metric t5_tiny missing.onnx", "missing.onnx"),
        (
            "metric t5_tiny other.onnx",
            "other.onnx is not t5_tiny: its inputs are x and its outputs y",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tensor = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "other", tensor[:1], tensor[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), "other.onnx")
    result = run(*arguments.split())
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["other.onnx"]
