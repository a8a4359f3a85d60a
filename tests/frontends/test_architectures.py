"""Common architectures, from torch and from ONNX files: imported, fused, lowered and run in
ONNX Runtime at sizes that the example did not have, they compute what the torch module computes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from architectures import ARCHITECTURES, batch, exported, traced

from tersor.backends.ort.lower import lower
from tersor.frontends.onnx.exporter import export_model
from tersor.frontends.onnx.importer import import_model
from tersor.ir import Graph
from tersor.passes import optimization
from tersor.pipeline import Pipeline

# Two layers of float32 of magnitude 1, a few hundred terms a sum: errors are near 1e-6.
TOLERANCE = 1e-4
POST_NORM = {
    "Attention": 2, "tersor.EmbeddingLayerNormalization": 1, "tersor.AddLayerNormalization": 4,
    "LayerNormalization": 0, "Gelu": 0, "Erf": 0, "MatMul": 0, "Softmax": 0, "Transpose": 0,
    "Range": 0, "And": 0,
}  # fmt: skip
RMS_NORM = {
    "Attention": 2, "RMSNormalization": 1, "tersor.AddRMSNormalization": 4, "Pow": 0, "Sqrt": 0,
    "MatMul": 0, "Softmax": 0, "Expand": 0,
}  # fmt: skip
# How many of which ops fusion makes of each (0: none may be left).
OPS: dict[str, dict[str, int]] = {
    "bert": {**POST_NORM, "tersor.Linear": 12},
    "distilbert": {**POST_NORM, "tersor.Linear": 12},
    "albert": {**POST_NORM, "tersor.Linear": 13},
    "gpt2": {
        "Attention": 2, "LayerNormalization": 1, "tersor.AddLayerNormalization": 4,
        "tersor.Linear": 8, "Split": 2, "Gelu": 0, "Tanh": 0, "Softmax": 0, "Transpose": 0,
    },
    "llama": {**RMS_NORM, "tersor.Linear": 14, "Sigmoid": 0, "Swish": 0},
    "t5": {**RMS_NORM, "tersor.Linear": 12, "Relu": 0},
    "lstm": {"LSTM": 2, "tersor.Linear": 1},
    "gru": {"GRU": 2, "tersor.Linear": 1},
}  # fmt: skip
EXPORTED = [name for name in OPS if ARCHITECTURES[name].onnx]
# Each with every implementation of attention that it has.
TRACED = [
    pytest.param(name, attention, marks=[pytest.mark.slow] if name == "llama" else [])
    for name in OPS
    for attention in (("sdpa", "eager") if ARCHITECTURES[name].masked else ("sdpa",))
]


def optimized(graph: Graph) -> Graph:
    return Pipeline(optimization(), level="text").run(graph)


def check(graph: Graph, name: str, module: torch.nn.Module) -> None:
    fused = optimized(graph)
    counts = Counter(node.op for node in fused.walk())
    assert {op: counts[op] for op in OPS[name]} == OPS[name]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        export_model(lower(fused)).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for rows, length in ((2, 7), (5, 11), (1, 16)):
        feeds = batch(ARCHITECTURES[name], rows, length)
        with torch.no_grad():
            expected = module(**{k: torch.from_numpy(v) for k, v in feeds.items()}).numpy()
        (got,) = session.run(None, feeds)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < TOLERANCE


@pytest.mark.parametrize(("name", "attention"), TRACED)
def test_from_torch_matches_the_module_at_other_sizes(name: str, attention: str) -> None:
    module = ARCHITECTURES[name].build(attention)
    check(traced(ARCHITECTURES[name], module), name, module)


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize("name", EXPORTED)
def test_from_an_onnx_file_matches_the_module_at_other_sizes(name: str, tmp_path: Path) -> None:
    module = ARCHITECTURES[name].build("sdpa")
    path = exported(ARCHITECTURES[name], module, tmp_path / "model.onnx")
    check(import_model(path), name, module)


def test_scopes_are_module_paths() -> None:
    case = ARCHITECTURES["bert"]
    graph = traced(case, case.build("sdpa"))
    scopes = {node.scope for node in optimized(graph).walk() if node.op == "tersor.Linear"}
    assert "model.encoder.layer.1.attention.self.key" in scopes
    assert "model.encoder.layer.0.output.dense" in scopes
