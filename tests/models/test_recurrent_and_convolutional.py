"""What is left of recurrent and convolutional workloads after optimization: the layers, and nothing
that an exporter wrote around them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tersor.frontends import load_model
from tersor.ir import Graph
from tersor.models import zoo
from tersor.passes.quantize.quantize_dynamic import QuantizeDynamic
from tersor.pipeline import Pipeline, registry

# An inverted residual block: wider, each channel for itself, narrower; what came in is added.
BLOCK = ("Conv", "Clip", "Conv", "Clip", "Conv")
LAYERS = {
    # The LSTM takes and gives the length first; directions are merged behind the batch.
    "bilstm_tagger": (
        "Gather", "Transpose", "LSTM", "Transpose", "Reshape", "LSTM", "Transpose", "Reshape",
        "tersor.Linear",
    ),
    "gru_classifier": ("Gather", "Transpose", "GRU", "Squeeze", "tersor.Linear"),
    "mobilenet_digits": (
        "Conv", "Clip", *BLOCK, "Add", *BLOCK, *BLOCK, "Add", *BLOCK, *BLOCK, "Add", "Conv", "Clip",
        "ReduceMean", "tersor.Linear",
    ),
    "text_cnn": ("Gather", "Transpose", *("Conv", "Relu", "ReduceMax") * 3, "Concat", "tersor.Linear"),
}  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layers")


@cache
def optimized(name: str, source: str, folder: Path) -> Graph:
    workload = zoo.find(name)
    if source == "torch":
        graph = load_model(workload.module(), **workload.torch_arguments()).graph
    else:
        path = workload.export_onnx(folder / f"{name}.onnx", workload.module())
        graph = load_model(path).graph
    return Pipeline(registry.optimization()).run(graph)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["torch", "onnx"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_layers_are_all_that_is_left(name: str, source: str, folder: Path) -> None:
    graph = optimized(name, source, folder)
    assert tuple(node.op for node in graph.nodes) == LAYERS[name]
    assert "Shape" not in {node.op for node in graph.walk()}  # No size is computed at run time.


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_stay_in_float_are_named(name: str, folder: Path) -> None:
    pipeline = Pipeline([QuantizeDynamic()])
    made = pipeline.run(optimized(name, "torch", folder))
    layers = [n.op for n in made.nodes if n.op in ("Conv", "GRU", "LSTM")]
    said = [
        skip.reason for skip in pipeline.reports[0].skips if "has no integer form" in skip.reason
    ]
    assert said == [f"{op} has no integer form: it multiplies floats" for op in layers]
