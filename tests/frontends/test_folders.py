"""Model folders of transformers: heads, labels, weight formats, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_folders import CLOSE, batch, save_model
from typer.testing import CliRunner

import tersor
from tersor.cli.main import app
from tersor.errors import InvalidModel, TersorError, Unsupported
from tersor.frontends import load_model
from tersor.frontends.torch import load_pretrained
from tersor.ops.evaluate import evaluate

LABELS = {0: "negative", 1: "neutral", 2: "positive"}
NAMED = {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
WEIGHTS = "model.safetensors"


def expected(module: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        results = module(**{k: torch.from_numpy(v) for k, v in feeds.items()})
    return {k: v.numpy() for k, v in results.items() if isinstance(v, torch.Tensor)}


# -- heads -----------------------------------------------------------------------------------------

T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("name", "options", "more"),
    [
        ("BertForTokenClassification", NAMED, []),
        ("BertForQuestionAnswering", {}, ["token_type_ids"]),
        ("GPT2LMHeadModel", GPT2, []),
        ("T5ForConditionalGeneration", T5, ["decoder_input_ids"]),
    ],
)
def test_the_architecture_determines_the_head_and_its_inputs(
    tmp_path: Path, name: str, options: dict[str, Any], more: list[str]
) -> None:
    module = save_model(tmp_path, name, **options)
    module.config.use_cache = False
    graph = load_model(tmp_path).graph
    assert [v.name for v in graph.inputs] == ["input_ids", "attention_mask", *more]
    feeds = {**batch(), **{n: batch()["input_ids"][:, :4] for n in more}}
    if "token_type_ids" in more:
        feeds["token_type_ids"] = (np.arange(10) > 3) * batch()["attention_mask"]
    reference, results = expected(module, feeds), evaluate(graph, feeds)
    assert graph.output_names == list(reference)
    for output in reference:
        np.testing.assert_allclose(results[output], reference[output], **CLOSE)


def test_multiple_choice_has_an_additional_dim(tmp_path: Path) -> None:
    save_model(tmp_path, "BertForMultipleChoice")
    loaded = load_pretrained(tmp_path)
    assert loaded.shapes["input_ids"] == {0: "batch", 1: "choices", 2: "sequence"}
    assert {x.dim() for x in loaded.examples.values()} == {3}


def test_a_classifier_of_one_text_has_a_remark_on_pairs(tmp_path: Path) -> None:
    save_model(tmp_path, "BertForSequenceClassification")
    loaded = load_pretrained(tmp_path)
    assert list(loaded.examples) == ["input_ids", "attention_mask"]
    assert loaded.remarks == [
        "takes one text, with token_type_ids 0: for pairs of texts, give example_inputs that contain them"
    ]
    change(tmp_path / "config.json", sbert_ce_default_activation_function="torch.nn.Sigmoid")
    loaded = load_pretrained(tmp_path)
    assert list(loaded.examples) == ["input_ids", "attention_mask", "token_type_ids"]
    assert loaded.remarks == []


# -- labels ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folders") / "classifier"
    save_model(path, "BertForSequenceClassification", **NAMED)
    return path


@pytest.fixture(scope="module")
def artifact(classifier: Path) -> tersor.Artifact:
    return tersor.compile(classifier, recipe="fp32", measure=False)


TOLD = {"0": "negative", "1": "neutral", "2": "positive"}


def test_labels_are_stored_in_the_file(artifact: tersor.Artifact, tmp_path: Path) -> None:
    path = artifact.save(tmp_path / "m.onnx")
    metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["id2label"]) == TOLD
    assert tersor.inspect(path).labels == TOLD


def test_labels_and_tokenizer_are_next_to_the_model(
    artifact: tersor.Artifact, classifier: Path, tmp_path: Path
) -> None:
    loaded = tersor.load(artifact.save(tmp_path / "out"))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert loaded.files[name] == (classifier / name).read_bytes()
    assert json.loads(loaded.files["config.json"])["id2label"] == TOLD


def test_inspect_shows_labels(artifact: tersor.Artifact, classifier: Path, tmp_path: Path) -> None:
    saved = artifact.save(tmp_path / "out")
    for path in (classifier, saved):
        shown = CliRunner().invoke(app, ["inspect", str(path)]).stdout
        assert "labels: 0 negative, 1 neutral, 2 positive\n" in shown
        # What was remarked of a folder goes into the report of its compilation.
        assert ("remark: takes one text, with token_type_ids 0" in shown) == (path == classifier)
    assert any("takes one text" in said.reason for said in artifact.report.decisions)


@pytest.mark.parametrize("text", ["{", "[1]", "3", '"a"', "[" * 100_000])
def test_a_damaged_config_has_no_labels(artifact: tersor.Artifact, text: str) -> None:
    from tersor.analysis.summary import summarize
    from tersor.ops import TABLE

    graph = TABLE.graph("main")
    graph.metadata["id2label"] = text
    assert summarize(graph).labels == {}


# -- forms of weights ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path)
    return tmp_path


def change(path: Path, **options: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


def rewrite(folder: Path, weights: dict[str, Any], name: str = WEIGHTS) -> None:
    save_file(weights, folder / name, metadata={"format": "pt"})


def hidden(module: Any) -> np.ndarray:
    return expected(module, batch())["last_hidden_state"]


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.float64, "F64")])  # fmt: skip
def test_other_floats_are_computed_in_float32(folder: Path, dtype: torch.dtype, name: str) -> None:
    weights = {k: v.to(dtype) for k, v in load_file(folder / WEIGHTS).items()}
    rewrite(folder, weights)
    change(folder / "config.json", dtype=str(dtype).partition(".")[2])
    loaded = load_pretrained(folder)
    assert loaded.remarks == [f"weights are stored in {name}: computed in float32"]
    key = "embeddings.word_embeddings.weight"
    assert torch.equal(loaded.module.state_dict()[key], weights[key].float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_stay_in_16_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    save_model(tmp_path, hidden_size=64, num_hidden_layers=1, intermediate_size=128)
    rewrite(tmp_path, {k: v.to(dtype) for k, v in load_file(tmp_path / WEIGHTS).items()})
    reference = hidden(load_pretrained(tmp_path).module)
    weights = (tmp_path / WEIGHTS).stat().st_size
    assert sum(c.encoding.nbytes for c in load_model(tmp_path).graph.constants.values() if c.encoding) < 1.1 * weights  # fmt: skip
    artifact = tersor.compile(tmp_path, recipe="fp32", measure=False)
    np.testing.assert_allclose(artifact.run(batch())["last_hidden_state"], reference, **CLOSE)
    # Apart from the weights, the graph of one layer takes some kB.
    assert artifact.report.size_after < weights + 30_000 < 1.5 * weights


def test_a_type_in_the_config_does_not_round_the_weights(folder: Path) -> None:
    module = load_pretrained(folder).module
    change(folder / "config.json", torch_dtype="float16", dtype="float16")
    loaded = load_pretrained(folder)
    assert loaded.remarks == []
    np.testing.assert_array_equal(hidden(loaded.module), hidden(module))


def test_weights_in_several_files(folder: Path) -> None:
    module = load_pretrained(folder).module
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    for i, name in enumerate(names):
        rewrite(folder, {k: v for j, (k, v) in enumerate(weights.items()) if j % 2 == i}, name)
    places = {k: names[j % 2] for j, k in enumerate(weights)}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(hidden(load_pretrained(folder).module), hidden(module))
    (folder / names[1]).unlink()
    assert refused(InvalidModel, folder).startswith(f"{folder}: transformers cannot load it: ")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_for_gpus_is_traced_as_sdpa(folder: Path, key: str) -> None:
    change(folder / "config.json", **{key: "flash_attention_2"})
    assert load_pretrained(folder).module.config._attn_implementation == "sdpa"


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    save_model(tmp_path, "BertForMaskedLM")
    graph = load_model(tmp_path).graph
    assert sum(c.tensor.numel == 40 * 16 for c in graph.constants.values()) == 1


def test_a_pooler_without_weights_is_left_out(folder: Path) -> None:
    kept = {k: v for k, v in load_file(folder / WEIGHTS).items() if "pooler" not in k}
    rewrite(folder, kept)
    imported = load_model(folder)
    assert imported.graph.output_names == ["last_hidden_state"]
    assert imported.remarks == ["its pooler has no weights and is left out"]


def test_a_head_that_the_config_does_not_name_is_a_remark(classifier: Path, tmp_path: Path) -> None:
    save_model(tmp_path, "BertForSequenceClassification")
    change(tmp_path / "config.json", architectures=["BertModel"])
    assert load_pretrained(tmp_path).remarks == [
        "2 weights are not used by BertModel and are left out: classifier.bias, classifier.weight"
    ]


def test_pickled_weights_are_read_when_trusted(folder: Path) -> None:
    module = load_pretrained(folder).module
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert "pytorch_model.bin is a pickle, which can run code" in refused(Unsupported, folder)
    np.testing.assert_array_equal(
        hidden(load_pretrained(folder, trust=True).module), hidden(module)
    )


# -- refusals --------------------------------------------------------------------------------------


def refused(kind: type[TersorError], path: Path) -> str:
    with pytest.raises(TersorError) as error:
        load_pretrained(path)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_head_without_weights_is_refused(folder: Path) -> None:
    change(folder / "config.json", architectures=["BertForSequenceClassification"])
    assert refused(InvalidModel, folder) == (
        f"{folder}: 2 weights of BertForSequenceClassification are missing, for example classifier.bias: add "
        "them, or correct architectures in config.json"
    )


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    change(folder / "config.json", vocab_size=41)
    assert refused(InvalidModel, folder) == (
        f"{folder}: embeddings.word_embeddings.weight has shape [40, 16], but [41, 16] by config.json"
    )


def test_damaged_weights_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])
    assert refused(InvalidModel, folder).startswith(f"{folder}: transformers cannot load it: ")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"architectures": ["OwnModel"], "auto_map": {"AutoModel": "own.OwnModel"}}, "OwnModel is defined by code in the folder (auto_map in config.json), which is not run: load it in Python, and give the module"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "its weights are quantized by gptq, in an unsupported format: give the original or a dequantized model"),
    ],
)  # fmt: skip
def test_code_and_other_quantization_formats_are_refused_with_the_reason(
    folder: Path, options: dict[str, Any], reason: str
) -> None:
    change(folder / "config.json", **options)
    assert refused(Unsupported, folder) == f"{folder}: {reason}"


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert refused(InvalidModel, folder) == (
        f"{folder}: an adapter (adapter_config.json), not a model: merge it into its base model "
        "(merge_and_unload), and save that"
    )


def test_an_onnx_file_in_the_folder_is_suggested(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "onnx").mkdir()
    (folder / "onnx/model.onnx").write_bytes(b"")
    assert refused(InvalidModel, folder) == (
        f"{folder}: no *.safetensors, but onnx/model.onnx: give that file"
    )
