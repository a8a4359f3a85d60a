"""sentence-transformers folders: results equal those of the package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_folders import CLOSE, TEXTS, WIDTH, batch, package, save_model, words
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer import modules as theirs
from sentence_transformers.sparse_encoder.modules import SpladePooling

import tersor
from tersor.errors import InvalidModel, TersorError, Unsupported
from tersor.frontends import load_model
from tersor.frontends.torch import load_sentences
from tersor.ir import Graph
from tersor.ops.evaluate import evaluate

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers, without modules.json."""
    path = tmp_path_factory.mktemp("bert")
    save_model(path)
    return path


def saved(bert: Path, path: Path, *modules: Any, **options: Any) -> Path:
    """A folder that the package saved, with these modules after the encoder."""
    encoder = theirs.Transformer(str(bert), max_seq_length=24)
    SentenceTransformer(modules=[encoder, *modules], device="cpu", **options).save(str(path))
    return path


def embed(graph: Graph, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return evaluate(graph, feeds)["sentence_embedding"]


# -- modules ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pooled(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All modes concatenated, with prompts left out."""
    pooling = theirs.Pooling(WIDTH, MODES, include_prompt=False)
    return saved(bert, tmp_path_factory.mktemp("st") / "pooled", pooling, prompts={"q": "query: "})


@pytest.fixture(scope="module")
def graph(pooled: Path) -> Graph:
    return load_model(pooled).graph


def test_every_pooling_mode_equals_the_packages(pooled: Path, graph: Graph) -> None:
    assert [repr(v) for v in graph.inputs] == [
        "%input_ids: i64[batch, sequence]",
        "%attention_mask: i64[batch, sequence]",
        "%prompt_length: i64[1]",
    ]
    assert graph.output_names == ["sentence_embedding"]
    for left in (False, True):
        for length in (0, 3):
            feeds = {**batch(left), "prompt_length": np.array([length])}
            np.testing.assert_allclose(embed(graph, feeds), package(pooled, feeds), **CLOSE)


def test_a_text_without_tokens_is_pooled_as_in_the_package(pooled: Path, graph: Graph) -> None:
    feeds = {**batch(), "prompt_length": np.array([0])}
    feeds["attention_mask"] = feeds["attention_mask"].copy()
    feeds["attention_mask"][1] = 0
    np.testing.assert_allclose(embed(graph, feeds), package(pooled, feeds), **CLOSE)


def test_a_chain_of_modules_with_truncation(bert: Path, tmp_path: Path) -> None:
    path = saved(
        bert,
        tmp_path / "st",
        theirs.Pooling(WIDTH, ("cls", "mean")),
        theirs.Dense(2 * WIDTH, 2 * WIDTH, use_residual=True),
        theirs.Dense(
            2 * WIDTH, 12, bias=False, activation_function=torch.nn.GELU(), use_residual=True
        ),
        theirs.Dropout(),
        theirs.LayerNorm(12),
        theirs.Dense(12, 12, activation_function=torch.nn.PReLU()),
        theirs.Dense(12, 8, activation_function=None),
        theirs.Normalize(),
        truncate_dim=6,
    )
    graph = load_model(path).graph
    (output,) = graph.outputs
    assert [v.name for v in graph.inputs] == ["input_ids", "attention_mask"]
    assert str(output.type) == "f32[batch, 6]"
    np.testing.assert_allclose(embed(graph, batch()), package(path, batch()), **CLOSE)
    whole = SentenceTransformer(str(path), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embed(graph, batch()), whole, **CLOSE)
    scopes = {n.scope for n in graph.nodes}
    assert {"dense_1.module.linear", "layernorm.module.norm", "normalize.module"} <= scopes


def test_layers_are_weighted_if_the_encoder_returns_them(tmp_path: Path) -> None:
    save_model(tmp_path / "bert", output_hidden_states=True)
    weights = torch.nn.Parameter(torch.tensor([0.5, 2.0]))
    layers = theirs.WeightedLayerPooling(WIDTH, 2, layer_start=1, layer_weights=weights)
    path = saved(tmp_path / "bert", tmp_path / "st", layers, theirs.Pooling(WIDTH))
    graph = load_model(path).graph
    np.testing.assert_allclose(embed(graph, batch()), package(path, batch()), **CLOSE)


def test_words_with_weights_and_convolutions(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    listed = ["PADDING_TOKEN", "cat", "dog", "ran", "sat"]
    table = torch.randn((5, 6), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    modules = [
        theirs.WordEmbeddings(WhitespaceTokenizer(listed, stop_words=[]), table),
        theirs.WordWeights(listed, {"cat": 2.0, "dog": 0.5}, unknown_word_weight=0.25),
        theirs.CNN(6, 4, [1, 3]),
        theirs.Pooling(8, ("mean", "max", "weightedmean")),
    ]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "st"))
    imported = load_model(tmp_path / "st")
    feeds = {"input_ids": np.array([[1, 2, 3], [4, 0, 0]]), "attention_mask": np.array([[1, 1, 1], [1, 0, 0]])}  # fmt: skip
    np.testing.assert_allclose(
        embed(imported.graph, feeds), package(tmp_path / "st", feeds), **CLOSE
    )
    assert "whitespacetokenizer_config.json" in imported.files


@pytest.mark.parametrize("model2vec", [False, True])
def test_static_embeddings_take_padded_ids(tmp_path: Path, model2vec: bool) -> None:
    from safetensors.torch import save_file

    table = torch.randn((40, 6), generator=torch.Generator().manual_seed(0))
    module = theirs.StaticEmbedding(words(), embedding_weights=table)
    SentenceTransformer(modules=[module], device="cpu").save(str(tmp_path / "st"))
    if model2vec:  # Rows that several ids share, and a weight for each id.
        (weights,) = (tmp_path / "st").rglob("model.safetensors")
        tensors = {"embeddings": table[:9].contiguous(), "mapping": torch.arange(40) % 9}
        save_file({**tensors, "weights": torch.linspace(0.5, 2, 40)}, weights)
    graph = load_model(tmp_path / "st").graph
    expected = SentenceTransformer(str(tmp_path / "st"), device="cpu").encode([*TEXTS, ""])
    ids = [words().encode(t, add_special_tokens=False).ids for t in [*TEXTS, ""]]
    length = max(map(len, ids))
    feeds = {
        "input_ids": np.array([i + [0] * (length - len(i)) for i in ids]),
        "attention_mask": np.array([[1] * len(i) + [0] * (length - len(i)) for i in ids]),
    }
    np.testing.assert_allclose(embed(graph, feeds), expected, **CLOSE)


@pytest.mark.parametrize(("strategy", "activation"), [("max", "relu"), ("sum", "log1p_relu")])
def test_sparse_embeddings_of_a_masked_language_model(
    tmp_path: Path, strategy: str, activation: str
) -> None:
    save_model(tmp_path / "mlm", "BertForMaskedLM")
    encoder = theirs.Transformer(str(tmp_path / "mlm"), transformer_task="fill-mask")
    pooling = SpladePooling(strategy, activation)
    model = SparseEncoder(modules=[encoder, pooling], device="cpu")
    model.save(str(tmp_path / "sp"))
    graph = load_model(tmp_path / "sp").graph
    expected = model.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    np.testing.assert_allclose(embed(graph, batch()), expected, **CLOSE)


@pytest.mark.parametrize("labels", [1, 3])
def test_a_cross_encoder_scores_pairs(bert: Path, tmp_path: Path, labels: int) -> None:
    torch.manual_seed(0)
    model = CrossEncoder(str(bert), num_labels=labels, device="cpu")
    model.save(str(tmp_path / "ce"))
    graph = load_model(tmp_path / "ce").graph
    assert [v.name for v in graph.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    encoded = words().encode("the cat", "a red dog")
    feeds = {
        "input_ids": np.array([encoded.ids]),
        "attention_mask": np.array([encoded.attention_mask]),
        "token_type_ids": np.array([encoded.type_ids]),
    }
    expected = model.predict([("the cat", "a red dog")])
    got = evaluate(graph, feeds)["scores"]
    np.testing.assert_allclose(got.reshape(expected.shape), expected, **CLOSE)


def test_the_encoder_of_an_encoder_decoder_is_used(tmp_path: Path) -> None:
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    save_model(tmp_path / "t5", "T5ForConditionalGeneration", **sizes, decoder_start_token_id=0)
    path = saved(tmp_path / "t5", tmp_path / "st", theirs.Pooling(WIDTH), theirs.Normalize())
    graph = load_model(path).graph
    np.testing.assert_allclose(embed(graph, batch()), package(path, batch()), **CLOSE)


# -- forms of folders ------------------------------------------------------------------------------


def test_an_older_folder_in_subfolders(bert: Path, tmp_path: Path) -> None:
    """In the format of versions before 2: the encoder in a subfolder, modes as flags, no options."""
    shutil.copytree(bert, tmp_path / "0_Transformer")
    config = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}  # fmt: skip
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(config))
    kinds = ["Transformer", "Pooling", "Normalize"]
    listed = [{"idx": i, "name": str(i), "path": f"{i}_{k}", "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds)]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "0_Transformer/sentence_bert_config.json").write_text('{"max_seq_length": 24, "do_lower_case": false}')  # fmt: skip
    imported = load_model(tmp_path)
    np.testing.assert_allclose(embed(imported.graph, batch()), package(tmp_path, batch()), **CLOSE)
    assert sorted(imported.files) == [
        "0_Transformer/config.json",
        "0_Transformer/sentence_bert_config.json",
        "0_Transformer/tokenizer.json",
        "0_Transformer/tokenizer_config.json",
        "1_Pooling/config.json",
        "modules.json",
    ]


def test_half_precision_is_computed_in_float32(bert: Path, tmp_path: Path) -> None:
    path = saved(bert, tmp_path / "st", theirs.Pooling(WIDTH), theirs.Dense(WIDTH, 4))
    model = SentenceTransformer(str(path), device="cpu").bfloat16()
    model.save(str(tmp_path / "half"))
    imported = load_model(tmp_path / "half")
    assert imported.remarks == ["weights are stored in BF16: computed in float32"]
    expected = model.float().encode(TEXTS)
    np.testing.assert_allclose(embed(imported.graph, batch()), expected, **CLOSE)


def test_the_artifact_is_complete(pooled: Path, tmp_path: Path) -> None:
    artifact = tersor.compile(pooled, recipe="fp32", measure=False)
    loaded = tersor.load(artifact.save(tmp_path / "out"))
    for name in ("tokenizer.json", "config.json", "config_sentence_transformers.json", "1_Pooling/config.json"):  # fmt: skip
        assert loaded.files[name] == (pooled / name).read_bytes()
    assert tersor.artifact.verify(tmp_path / "out").notes == []
    feeds = {**batch(), "prompt_length": np.array([2])}
    np.testing.assert_allclose(
        loaded.run(feeds)["sentence_embedding"], package(pooled, feeds), **CLOSE
    )


# -- refusals --------------------------------------------------------------------------------------


@pytest.fixture
def folder(pooled: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pooled, tmp_path / "st"))


def refused(kind: type[TersorError], path: Path) -> str:
    with pytest.raises(TersorError) as error:
        load_sentences(path)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    return str(error.value)


def change(path: Path, **options: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


def add_module(folder: Path, **entry: Any) -> None:
    """Adds a module to modules.json."""
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    path.write_text(json.dumps([*modules, {"idx": 2, "name": "2", "path": "2_Own", **entry}]))


@pytest.mark.parametrize(
    ("type", "reason"),
    [
        ("custom_st.Own", "custom_st.Own, is code from outside sentence-transformers, which is not run: "),
        ("sentence_transformers.models.LSTM", "LSTM, is not supported: it runs on packed sequences"),
        ("sentence_transformers.base.modules.router.Router", "Router, is not supported: it has a route for each task"),
        ("sentence_transformers.models.New", "New, is not supported: supported are CNN, Dense, Dropout"),
    ],
)  # fmt: skip
def test_unsupported_modules_are_named(folder: Path, type: str, reason: str) -> None:
    add_module(folder, type=type)
    message = refused(Unsupported, folder)
    assert message.startswith(f"{folder}/modules.json: module 2, ")
    assert reason in message


@pytest.mark.parametrize("path", ["../other", "/etc", "2_Own/../../x", "..\\x"])
def test_a_module_outside_the_folder_is_refused(folder: Path, path: str) -> None:
    add_module(folder, type="sentence_transformers.models.Dense", path=path)
    assert "its path leads out of the folder" in refused(InvalidModel, folder)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pooling_mode": "median"}, "mode 'median' is not supported"),
        ({"pooling_mode": ["mean", 3]}, "mode '3' is not supported"),
        ({"window": 4}, "option 'window' is not supported"),
    ],
)
def test_unknown_options_are_named(folder: Path, options: dict[str, Any], reason: str) -> None:
    change(folder / "1_Pooling/config.json", **options)
    assert reason in refused(Unsupported, folder)


def test_an_option_of_another_type_is_refused(folder: Path) -> None:
    change(folder / "1_Pooling/config.json", include_prompt="no")
    assert "its config has include_prompt 'no'" in refused(InvalidModel, folder)


def test_an_activation_that_is_code_is_refused(bert: Path, tmp_path: Path) -> None:
    path = saved(bert, tmp_path / "st", theirs.Pooling(WIDTH), theirs.Dense(WIDTH, 4))
    for name in ("os.system", "torch.hub.load", "torch.nn.functional.relu", "own.Swish"):
        change(path / "2_Dense/config.json", activation_function=name)
        assert f"activation {name} is not in torch.nn" in refused(Unsupported, path)


def test_pickled_weights_of_a_module_are_read_when_trusted(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = saved(bert, tmp_path / "st", theirs.Pooling(WIDTH), theirs.Dense(WIDTH, 4))
    weights = path / "2_Dense/model.safetensors"
    torch.save(load_file(weights), path / "2_Dense/pytorch_model.bin")
    weights.unlink()
    assert "pytorch_model.bin is a pickle, which can run code" in refused(Unsupported, path)
    graph = load_model(path, trust=True).graph
    np.testing.assert_allclose(embed(graph, batch()), package(path, batch()), **CLOSE)
    (path / "2_Dense/pytorch_model.bin").unlink()
    assert "no model.safetensors in" in refused(InvalidModel, path)


def test_weights_that_do_not_match_are_refused(bert: Path, tmp_path: Path) -> None:
    path = saved(bert, tmp_path / "st", theirs.Pooling(WIDTH), theirs.Dense(WIDTH, 4))
    change(path / "2_Dense/config.json", out_features=5)
    assert "size mismatch for linear.weight" in refused(InvalidModel, path)


@pytest.mark.parametrize("text", ["{", "{}", "[3]", '[{"type": "a"}]', "[]"])
def test_a_damaged_list_of_modules_is_refused(folder: Path, text: str) -> None:
    (folder / "modules.json").write_text(text)
    assert refused(InvalidModel, folder).startswith(f"{folder}/modules.json: ")


def test_a_feature_must_be_computed_before_it_is_read(bert: Path, tmp_path: Path) -> None:
    path = saved(bert, tmp_path / "st", theirs.Normalize())
    with pytest.raises(
        InvalidModel, match="sentence_embedding is read before any module computes it"
    ):
        load_model(path)


def test_an_encoder_defined_by_code_in_the_folder_is_refused(folder: Path) -> None:
    change(folder / "config.json", model_type="own", auto_map={"AutoModel": "own.OwnModel"})
    assert (
        "transformers has no AutoModel for 'own', and code in the folder (auto_map) is not run"
        in (refused(Unsupported, folder))
    )
