"""Attention masks of all exporters: one Attention op per layer, and one mask for all layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import transformers
from architectures import SMALL
from nameless import lines

from tersor.frontends.onnx.importer import import_model
from tersor.ir import Graph
from tersor.models.exporting import export_onnx
from tersor.ops.evaluate import evaluate
from tersor.passes import optimization
from tersor.pipeline import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore")  # Exporters warn of themselves.

LAYERS = SMALL["num_hidden_layers"]
DYNAMIC = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}


class Bert(torch.nn.Module):
    """BERT with a mask that ``mask`` computes from i64[batch, sequence], or the one by transformers."""

    def __init__(self, attention: str, mask: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = transformers.BertConfig(**SMALL, attn_implementation=attention)
        self.model, self.mask = transformers.BertModel(config).eval(), mask
        for parameter in self.model.parameters():  # So that no scale is one, no bias zero.
            torch.nn.init.normal_(parameter, std=0.2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask if self.mask is None else self.mask(attention_mask)
        outputs = self.model(input_ids=input_ids, attention_mask=mask, return_dict=False)
        return outputs[0]  # type: ignore[no-any-return]


def minus_10000(mask: torch.Tensor) -> torch.Tensor:
    """As in the original BERT."""
    return (1.0 - mask[:, None, None, :].float()) * -10000.0


def lowest(mask: torch.Tensor) -> torch.Tensor:
    """As in transformers up to 4.40."""
    return (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min


def filled(mask: torch.Tensor) -> torch.Tensor:
    """As in decoders of transformers, and CLIP."""
    inverse = 1.0 - mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1).float()
    return inverse.masked_fill(inverse.bool(), torch.finfo(torch.float32).min)


FORMS: dict[str, tuple[str, Any, int]] = {
    "eager, opset 11": ("eager", None, 11),
    "eager, opset 17": ("eager", None, 17),
    "eager, dynamo": ("eager", None, 0),
    "sdpa, opset 17": ("sdpa", None, 17),
    "-10000, opset 11": ("eager", minus_10000, 11),
    "lowest, opset 17": ("eager", lowest, 17),
    "filled, opset 17": ("eager", filled, 17),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def export(form: str) -> Path:
        attention, mask, opset = FORMS[form]
        path = tmp_path_factory.mktemp("exported") / "bert.onnx"
        ids, ones = torch.full((3, 17), 7), torch.ones((3, 17), dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": ones}
        if not opset:
            return export_onnx(
                Bert(attention, mask), inputs, path, dynamic_shapes=DYNAMIC, outputs=["y"]
            )
        torch.onnx.export(
            Bert(attention, mask), tuple(inputs.values()), str(path), input_names=list(inputs),
            output_names=["y"], dynamic_axes=DYNAMIC, dynamo=False, opset_version=opset,
        )  # fmt: skip
        return path

    return export


def optimized(path: Path) -> Graph:
    return Pipeline(optimization()).run(import_model(path))


@pytest.mark.parametrize("form", ["eager, opset 17", "eager, dynamo"])
def test_all_exporters_give_the_same_graph(form: str, exported: Callable[[str], Path]) -> None:
    """Identical graphs, with equal constants, from every exporter."""
    assert lines(optimized(exported(form))) == lines(optimized(exported("eager, opset 11")))


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_is_computed_once_for_all_layers(form: str, exported: Callable[[str], Path]) -> None:
    """Apart from the nodes that compute it, all forms have the same number of nodes."""
    graph = optimized(exported(form))
    attentions = [n for n in graph.nodes if n.op == "Attention"]
    assert len(attentions) == LAYERS
    (mask,) = {n.inputs[3] for n in attentions}
    assert mask is not None
    kind = "bool" if form.startswith("sdpa") else "f32"
    assert str(mask.type) == f"{kind}[batch, 1, 1, sequence]"
    eager = optimized(exported("eager, opset 11"))
    after = [n.op for n in graph.nodes if n.op not in _MASKING]
    assert after == [n.op for n in eager.nodes if n.op not in _MASKING]


_MASKING = {"Cast", "Unsqueeze", "Sub", "Mul", "Where"}


@pytest.mark.parametrize("form", FORMS)
def test_padding_and_rows_without_keys_match_onnx_runtime(
    form: str, exported: Callable[[str], Path]
) -> None:
    """Against ONNX Runtime on the file as it is. Where torch's guard stands for zeros, rows without a key are
    not compared: see decision 1."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(exported(form)), options, providers=["CPUExecutionProvider"])
    mask = np.ones((3, 6), np.int64)
    mask[1, 3:], mask[2] = 0, 0
    feeds = {"input_ids": np.arange(18).reshape(3, 6) % 50, "attention_mask": mask}
    (want,) = session.run(None, feeds)
    (got,) = evaluate(optimized(exported(form)), feeds).values()
    rows = slice(0, 2 if form.startswith("sdpa") else 3)
    # Rows of -10000 have scores that are rounded to 1e-3.
    tolerance = 1e-2 if form.startswith("-10000") else 1e-4
    np.testing.assert_allclose(got[rows], want[rows], atol=tolerance)
