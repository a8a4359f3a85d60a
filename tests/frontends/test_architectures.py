"""Architectures as people have them, from torch and from ONNX files: imported, fused, lowered and run in
ONNX Runtime at sizes that the example did not have, they compute what the torch module computes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from tersor.backends.ort.lower import lower
from tersor.frontends.onnx.exporter import export_model
from tersor.frontends.onnx.importer import import_model
from tersor.frontends.torch import import_module
from tersor.ir import Graph
from tersor.passes import optimization
from tersor.pipeline import Pipeline

# Two layers of float32 of magnitude 1, a few hundred terms a sum: errors are near 1e-6.
TOLERANCE = 1e-4
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 32}  # fmt: skip


class Encoder(torch.nn.Module):
    """A transformers model as a function of token ids and a padding mask."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class Recurrent(torch.nn.Module):
    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.layers = layers(16, 24, 2, batch_first=True, bidirectional=True)
        self.head = torch.nn.Linear(48, 5)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(input_ids))[0])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    """A module, and how many of which ops fusion makes of it (0: none may be left)."""

    build: Callable[[str], torch.nn.Module]
    ops: dict[str, int]
    masked: bool = True
    onnx: bool = True  # torch's exporter can write it.


def hugging_face(model: str, config: Any, **options: Any) -> Callable[[str], torch.nn.Module]:
    def build(attention: str) -> torch.nn.Module:
        torch.manual_seed(0)
        made = getattr(transformers, model)(config(**options, attn_implementation=attention))
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.dim() == 1:  # Scales of 1 and biases of 0 would fold away.
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return Encoder(made).eval()

    return build


def recurrent(layers: Any) -> Callable[[str], torch.nn.Module]:
    def build(attention: str) -> torch.nn.Module:
        torch.manual_seed(0)
        return Recurrent(layers).eval()

    return build


POST_NORM = {
    "Attention": 2, "tersor.EmbeddingLayerNormalization": 1, "tersor.AddLayerNormalization": 4,
    "LayerNormalization": 0, "Gelu": 0, "Erf": 0, "MatMul": 0, "Softmax": 0, "Transpose": 0,
    "Range": 0, "And": 0,
}  # fmt: skip
RMS_NORM = {
    "Attention": 2, "RMSNormalization": 1, "tersor.AddRMSNormalization": 4, "Pow": 0, "Sqrt": 0,
    "MatMul": 0, "Softmax": 0, "Expand": 0,
}  # fmt: skip
BERT, DISTIL = transformers.BertConfig, transformers.DistilBertConfig

CASES = {
    "bert": Case(hugging_face("BertModel", BERT, **SMALL), {**POST_NORM, "tersor.Linear": 12}),
    "distilbert": Case(
        hugging_face("DistilBertModel", DISTIL, dim=32, n_layers=2, n_heads=4, hidden_dim=64,
                     vocab_size=50, max_position_embeddings=32),
        {**POST_NORM, "tersor.Linear": 12},
    ),
    "albert": Case(
        hugging_face("AlbertModel", transformers.AlbertConfig, **SMALL, embedding_size=16),
        {**POST_NORM, "tersor.Linear": 13},
    ),
    "gpt2": Case(
        hugging_face("GPT2Model", transformers.GPT2Config, n_embd=32, n_layer=2, n_head=4,
                     vocab_size=50, n_positions=32, use_cache=False, bos_token_id=0, eos_token_id=0),
        {"Attention": 2, "LayerNormalization": 1, "tersor.AddLayerNormalization": 4,
         "tersor.Linear": 8, "Split": 2, "Gelu": 0, "Tanh": 0, "Softmax": 0, "Transpose": 0},
    ),
    "llama": Case(
        hugging_face("LlamaModel", transformers.LlamaConfig, **SMALL, num_key_value_heads=2,
                     use_cache=False),
        {**RMS_NORM, "tersor.Linear": 14, "Sigmoid": 0, "Swish": 0},
    ),
    "t5": Case(
        hugging_face("T5EncoderModel", transformers.T5Config, d_model=32, d_kv=8, d_ff=64,
                     num_layers=2, num_heads=4, vocab_size=50),
        {**RMS_NORM, "tersor.Linear": 12, "Relu": 0},
        onnx=False,
    ),
    "lstm": Case(recurrent(torch.nn.LSTM), {"LSTM": 2, "tersor.Linear": 1}, masked=False),
    "gru": Case(recurrent(torch.nn.GRU), {"GRU": 2, "tersor.Linear": 1}, masked=False),
}  # fmt: skip
EXPORTED = [name for name, case in CASES.items() if case.onnx]
# Each with every implementation of attention that it has.
TRACED = [
    pytest.param(name, attention, marks=[pytest.mark.slow] if name == "llama" else [])
    for name, case in CASES.items()
    for attention in (("sdpa", "eager") if case.masked else ("sdpa",))
]


def batch(case: Case, rows: int, length: int) -> dict[str, np.ndarray]:
    """Random ids; the first row is padded a little, the last by half."""
    ids = np.random.default_rng(rows).integers(2, 50, (rows, length))
    if not case.masked:
        return {"input_ids": ids}
    mask = np.ones_like(ids)
    mask[0, length - 2 :] = 0
    mask[-1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def examples(case: Case) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in batch(case, 3, 13).items()}


def dynamic(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: {0: "batch", 1: "length"} for name in inputs}


def optimized(graph: Graph) -> Graph:
    return Pipeline(optimization(), level="text").run(graph)


def check(graph: Graph, case: Case, module: torch.nn.Module) -> None:
    fused = optimized(graph)
    counts = Counter(node.op for node in fused.walk())
    assert {op: counts[op] for op in case.ops} == case.ops
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        export_model(lower(fused)).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for rows, length in ((2, 7), (5, 11), (1, 16)):
        feeds = batch(case, rows, length)
        with torch.no_grad():
            expected = module(**{k: torch.from_numpy(v) for k, v in feeds.items()}).numpy()
        (got,) = session.run(None, feeds)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < TOLERANCE


def exported(case: Case, module: torch.nn.Module, path: Path) -> Path:
    inputs = examples(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The exporter's own deprecations.
        torch.onnx.export(
            module, kwargs=inputs, f=str(path), dynamic_shapes=dynamic(inputs), dynamo=True,
            external_data=False, verbose=False, input_names=list(inputs), output_names=["states"],
        )  # fmt: skip
    return path


@pytest.mark.parametrize(("name", "attention"), TRACED)
def test_from_torch_any_batch_and_length_match_the_module(name: str, attention: str) -> None:
    case = CASES[name]
    module, inputs = case.build(attention), examples(case)
    graph = import_module(module, inputs, dynamic_shapes=dynamic(inputs), output_names=["states"])
    check(graph, case, module)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_from_an_onnx_file_any_batch_and_length_match_the_module(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    module = case.build("sdpa")
    check(import_model(exported(case, module, tmp_path / "model.onnx")), case, module)


def test_scopes_are_module_paths() -> None:
    case = CASES["bert"]
    inputs = examples(case)
    graph = import_module(case.build("sdpa"), inputs, dynamic_shapes=dynamic(inputs))
    scopes = {node.scope for node in optimized(graph).walk() if node.op == "tersor.Linear"}
    assert "model.encoder.layer.1.attention.self.key" in scopes
    assert "model.encoder.layer.0.output.dense" in scopes
